"""Real processes: killed at any moment, told to stop, on a full disk, two at a time."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from experiment.lock import locked
from main import main
from tests.fake_api import FakeApi, Reply, grading
from tests.interrupted import content
from tests.test_run import config, on_stable_diffusion
from utils import ROOT, UserError

BATCH = 2
METHODS: dict[str, dict[str, Any]] = {
    "random": {"pool": "nested"},
    "zero-order": {"num_neighbors": 3},
    "halving": {"pool": 4},
    "steering": {"particles": 3, "check_every": 1},
    "ses": {"popsize": 3, "k_elites": 2},
}


def graded(call: Any) -> Reply:
    """A grade that is the picture's own: its first pixel's."""
    return Reply(grading(1 + call.image % 89 / 10))


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi(graded) as server:
        yield server


class Child:
    """The command line in a process of its own, always with the same words."""

    def __init__(
        self, tmp_path: Path, method: str, api: FakeApi, name: str = "out", **others: Any
    ) -> None:
        self.root = tmp_path / name
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red circle\na blue square\n")
        call = {**config()["pipeline_call_args"], "num_inference_steps": 4}
        changes = {
            "search_args": {"search_method": method, **METHODS[method]},
            "pipeline_call_args": call,
            "budget": {"nfe": 4 * 5},
            "verifier_args": {"name": "gemini", "base_url": api.url, "mode": "full"},
            "judges": [{"name": "gemini", "base_url": api.url, "seed": 1}],
            "prompt": None,
            "prompts": str(prompts),
            "num_prompts": "all",
            "batch_size_for_img_gen": BATCH,
            **others,
        }
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config(**changes)))
        self.argv = [sys.executable, "main.py", "--pipeline_config_path", str(path),
                     "--output_dir", str(self.root)]  # fmt: skip

    def start(self, *flags: str, **how: Any) -> subprocess.Popen[str]:
        env = {**os.environ, "GEMINI_API_KEY": "k", "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*self.argv, *flags], cwd=ROOT, env=env, **pipes, **how)

    def end(self, *flags: str, **how: Any) -> tuple[int, str]:
        child = self.start(*flags, **how)
        out, err = child.communicate()
        return child.returncode, out + err

    def here(self, *flags: str) -> int:
        """The same command in this process, which has all imports behind it."""
        with mock.patch.dict(os.environ, GEMINI_API_KEY="k"):
            return main([*self.argv[2:], *flags])

    @property
    def folders(self) -> list[Path]:
        return sorted(self.root.glob("*/*/*/*"))


def until(true: Callable[[], bool], child: subprocess.Popen[str], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert child.poll() is None and time.monotonic() < ends, child.communicate()
        time.sleep(0.005)


def pictures(api: FakeApi) -> Counter[bytes]:
    """How often each picture was graded, of each question."""
    return Counter(json.dumps(call.body, sort_keys=True).encode() for call in api.calls)


def killed_at_random(tmp_path: Path, method: str, api: FakeApi, kills: int, **others: Any) -> None:
    """A run killed again and again, and started again with the same words until it ends."""
    whole = Child(tmp_path, method, api, "whole", **others)
    assert whole.here() == 0
    expected, paid = content(whole.folders[0]), pictures(api)
    api.calls.clear()
    child = Child(tmp_path, method, api, "killed", **others)
    chance = random.Random(method)
    landed = 0
    for _ in range(kills):
        before = len(api.calls)
        process = child.start("--resume", "auto")
        until(lambda process=process, n=before: len(api.calls) > n or _ended(process), process)  # type: ignore[misc]
        time.sleep(chance.random() * 0.5)
        landed += not _ended(process)
        process.kill()
        process.communicate()
        if any((folder / "summary.json").exists() for folder in child.folders):
            break
    assert landed, "no kill came in time"
    assert child.end("--resume", "auto")[0] == 0
    (folder,) = child.folders
    assert content(folder) == expected
    asked = pictures(api)
    assert asked.keys() == paid.keys()
    again = sum((asked - paid).values())
    assert again <= BATCH * landed, f"{again} pictures were graded twice in {landed} kills"


def _ended(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None


def test_a_run_killed_at_random_ends_as_if_nothing_had_been(tmp_path: Path, api: FakeApi) -> None:
    killed_at_random(tmp_path, "zero-order", api, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["steering", "zero-order"])
def test_kills_lose_nothing_on_the_other_bundled_pipeline(
    method: str, tmp_path: Path, api: FakeApi
) -> None:
    killed_at_random(tmp_path, method, api, kills=5, **on_stable_diffusion(steps=4))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_fifty_kills_lose_nothing(method: str, tmp_path: Path, api: FakeApi) -> None:
    killed_at_random(tmp_path, method, api, kills=10)


@pytest.mark.slow
def test_kills_between_half_answered_batches_cost_the_calls_in_flight(tmp_path: Path) -> None:
    """Four prompts at once; while they are to be killed, every second picture gets no answer."""
    prompts = tmp_path / "four.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(4)))
    asked = {"prompts": str(prompts), "judges": []}
    count, killing = itertools.count(), [True]

    def script(call: Any) -> Reply:
        return Reply(fault="hang") if next(count) % 2 and killing else graded(call)

    with FakeApi(script, hangs=300) as api:
        child = Child(tmp_path, "random", api, "killed", **asked)
        for _ in range(3):
            before = len(api.calls)
            process = child.start("--resume", "auto")
            until(lambda process=process, n=before: _stuck(api, n), process)  # type: ignore[misc]
            process.kill()
            process.communicate()
        killing.clear()
        in_flight = len(api.calls) - sum(api.answered.values())
        assert child.end("--resume", "auto")[0] == 0
        killed = pictures(api)
        assert sum(killed.values()) - len(killed) == in_flight > 4
        whole = Child(tmp_path, "random", api, "whole", **asked)
        assert whole.here() == 0
    assert content(child.folders[0]) == content(whole.folders[0])


def _stuck(api: FakeApi, before: int) -> bool:
    """Whether nobody asks any more, for all wait for answers."""
    calls = len(api.calls)
    time.sleep(1)
    return before < calls == len(api.calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 4, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_after_the_batch_in_flight(
    number: signal.Signals, code: int, tmp_path: Path, api: FakeApi
) -> None:
    child = Child(tmp_path, "random", api)
    ignored = None
    if number == signal.SIGINT:  # as a shell starts what it puts in the background
        ignored = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    process = child.start(preexec_fn=ignored)
    until(lambda: len(api.calls) > 0, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code
    (folder,) = child.folders
    assert "finishing the batch in flight" in err
    assert f"--resume {folder}" in out + err
    assert not (folder / ".lock").exists() and not (folder / "summary.json").exists()
    paid = pictures(api)
    assert child.here("--resume", str(folder)) == 0
    assert (folder / "summary.json").exists()
    assert max((pictures(api) - paid).values()) == 1
    assert sum(pictures(api).values()) == len(pictures(api))  # nothing was graded twice


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    with FakeApi(lambda _: Reply(fault="hang"), hangs=60) as api:
        process = Child(tmp_path, "random", api).start()
        until(lambda: len(api.calls) > 0, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None  # it waits for its batch
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 143 and time.monotonic() - started < 10


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_dead_owners_lock_taken_over(
    tmp_path: Path, api: FakeApi
) -> None:
    child = Child(tmp_path, "random", api)
    process = child.start()
    until(lambda: len(api.calls) > 0, process)
    process.send_signal(signal.SIGSTOP)
    try:
        (folder,) = child.folders
        code, said = child.end("--resume", "auto")
        assert code == 2
        assert f"Process {process.pid} on {socket.gethostname()} is working in {folder}" in said
    finally:
        process.kill()  # without a chance to let go of the lock
        process.communicate()
    assert (folder / ".lock").exists()
    assert child.end("--resume", "auto")[0] == 0
    assert not (folder / ".lock").exists() and child.folders == [folder]


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"pid": 7, "host": "elsewhere"}')
    with pytest.raises(UserError, match="Process 7 on elsewhere"), locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text('{"pid": 7, "ho')  # its owner died as it wrote this
    with locked(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())
        assert owner == {"pid": os.getpid(), "host": socket.gethostname()}
        with pytest.raises(UserError, match=f"Process {os.getpid()}"), locked(tmp_path):
            pass
    assert not (tmp_path / ".lock").exists()


def test_without_locks_in_the_file_system_a_living_owner_is_known_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    host = socket.gethostname()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / ".lock").write_text(json.dumps({"pid": child.pid, "host": host}))
    with pytest.raises(UserError, match=f"Process {child.pid}"), locked(tmp_path):
        pass
    child.communicate(b"")
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_room_lets_it_end(tmp_path: Path, api: FakeApi) -> None:
    """No file may grow beyond a few thousand bytes, which the rows soon do."""
    whole = Child(tmp_path, "zero-order", api, "whole")
    assert whole.end()[0] == 0
    expected, paid = content(whole.folders[0]), pictures(api)
    sizes = [path.stat().st_size for path in whole.folders[0].glob("*.png")]
    api.calls.clear()
    room = max(sizes) // 2
    child = Child(tmp_path, "zero-order", api, "full")

    def cramped() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    code, said = child.end(preexec_fn=cramped)
    (folder,) = child.folders
    assert code == 4, said
    assert "The disk is full: make room and resume." in said and f"--resume {folder}" in said
    assert "Traceback" not in said
    assert child.end("--resume", "auto")[0] == 0
    assert content(folder) == expected
    assert sum((pictures(api) - paid).values()) <= BATCH
