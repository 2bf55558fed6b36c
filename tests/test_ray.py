"""Runs on a local Ray cluster: pipelines and verifiers in workers, one of which is killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import experiment.ray_run
import experiment.speed
from experiment.config import RayArgs
from experiment.guests import seated
from experiment.interrupts import Interrupted
from experiment.mirror import Place, output_place
from experiment.ray_actors import BEGUN, Job, Pipeline, Ready, Remote
from experiment.ray_run import run_on_ray
from experiment.records import read_candidates, read_object
from experiment.resume import CONFIG_HASH, config_hash
from experiment.runner import load, plan, run, saved
from experiment.shard_files import ShardStore, merge
from experiment.store import RunStore
from main import main
from tests.graders import Brightness
from tests.interrupted import content
from tests.test_shards import Ask, ask  # noqa: F401
from utils import UserError
from verifiers.base import Item, Score
from verifiers.moving import models_within

WORLD = {"address": "local", "pipelines": 2, "verifiers": 1, "verifier_cpus": 0}


def test_without_ray_the_remedy_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["--pipeline_config_path", "configs/shapes_flux.json", "--output_dir", str(tmp_path)]
    assert main([*words, "--executor", "ray"]) == 2
    assert capsys.readouterr().err == "--executor ray needs Ray: pip install ray.\n"
    assert main([*words, "--executor", "ray", "--num_shards", "2"]) == 2
    assert "leave out --num_shards" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "gpus", "count", "each"),
    [
        ({}, 0, 1, 0.0),
        ({}, 8, 8, 1.0),
        ({"verifiers": 2, "verifier_gpus": 1}, 8, 6, 1.0),
        ({"verifiers": 1, "verifier_gpus": 0.5, "pipeline_gpus": 0.5}, 2, 3, 0.5),
        ({"pipelines": 3}, 8, 3, 1.0),
        ({"pipeline_gpus": 0}, 8, 1, 0.0),
    ],
)
def test_unset_there_is_a_pipeline_for_each_gpu_that_verifiers_leave(
    args: dict[str, Any], gpus: float, count: int, each: float
) -> None:
    found = RayArgs(**args)
    assert (found.count(gpus), found.gpus_each(gpus)) == (count, each)


def test_a_verifier_elsewhere_is_asked_by_its_name_and_loads_nothing(ask: Ask) -> None:  # noqa: F811
    asked: list[tuple[str, int]] = []

    def answer(name: str, items: Any) -> list[Score]:
        asked.append((name, len(items)))
        return [Score.of(brightness=0.5) for _ in items]

    def elsewhere(chosen: Any, name: str) -> Any:
        return Remote(chosen.verifier, chosen.name, chosen.metric, ask=answer, asked_as=name)

    clip = {"name": "clip", "model_name": "shapes/models/shapes-clip"}
    config = ask(judges=[clip, clip])
    engine = load(config, plan(config), elsewhere)
    assert engine.verifier.remote and seated(engine.verifier, engine.denoiser) is engine.verifier
    engine.verifier.score([Item(None, "a"), Item(None, "b")])
    engine.judges["clip#2"].score([Item(None, "a")])
    assert asked == [("", 2), ("clip#2", 1)]
    assert not list(models_within(engine.judges["clip"].verifier))


def test_a_worker_reads_nothing_of_the_others_prompts(
    tmp_path: Path,
    ask: Ask,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither what they came to, nor the names of their pictures."""
    whole = run(ask(), str(tmp_path / "one")).folder
    planned, asked = plan(ask()), ask()
    store = ShardStore(RunStore.create(str(tmp_path / "ray"), asked, "r").folder, asked.export)
    store.write_json("config.json", saved(asked, 2))
    store.shards.mkdir(parents=True)
    store.result_path(3).write_text("nobody needs to read this")
    worker = Pipeline()
    job = Job(saved(asked, 2), str(store.folder), planned.prompts, os.getcwd())
    assert worker.ready(job, None) == Ready()
    listed: list[Path] = []
    glob = Path.glob

    def noting(path: Path, pattern: str) -> Any:
        listed.append(path)
        return glob(path, pattern)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", noting)
        told = [worker.search(index) for index in (2, 0, 1)]
    assert not any(each.failed or each.stopped for each in told)
    assert set(listed) == {store.state}  # where only unfinished prompts have files
    store.result_path(3).unlink()
    assert not worker.search(3).failed
    assert merge(store, planned.prompts) == 0
    assert content(store.folder) == content(whole)


def test_workers_with_only_a_url_in_common_go_by_the_first_ones_choices(
    tmp_path: Path,
    ask: Ask,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not each by its own; and what was chosen is copied by nobody but the driver."""
    asked = ask(batch_size_for_img_gen=None)
    planned, url = plan(asked), f"file://{tmp_path / 'url'}"
    job = Job(saved(asked, "auto"), str(tmp_path), planned.prompts, os.getcwd(), url)
    workers, chosen = [Pipeline(), Pipeline()], []
    for worker, size in zip(workers, (2, 1), strict=True):
        with monkeypatch.context() as patched:
            patched.setattr(experiment.speed, "BATCH_SIZE", size)
            chosen.append(worker.ready(job, None).chosen)
    assert [each["config.json"]["engine_args"]["batch_size"] for each in chosen] == [2, 1]
    job = replace(job, begun=chosen[0])
    for worker in workers:
        assert worker.ready(job, None) == Ready()
    for index, worker in enumerate(workers):
        assert not worker.search(index).failed
        worker.leave()
    there = sorted((tmp_path / "url").rglob("*"))
    assert not {path.name for path in there} & set(BEGUN)
    rows = [path.read_text().splitlines() for path in there if path.suffix == ".jsonl"]
    assert [{json.loads(row)["batch_size"] for row in each} for each in rows] == [{2}, {2}]


def titled(title: str, above: int) -> list[int]:
    """Processes below this one whose title begins so."""
    psutil: Any = pytest.importorskip("psutil")
    found = []
    for child in psutil.Process(above).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(title):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_killed_worker_changes_nothing(
    scheme: str,
    tmp_path: Path,
    ask: Ask,  # noqa: F811
) -> None:
    """Workers share a folder, or each has its own and only a URL in common."""
    pytest.importorskip("ray")
    clip = {"name": "clip", "model_name": "shapes/models/shapes-clip"}
    search = {"search_method": "random", "search_rounds": 3}
    whole = ask(search_args=search, judges=[clip]).model_dump(
        mode="json", by_alias=True, exclude={"schema_", "ray_args"}
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(whole))
    path.with_name("ray.json").write_text(json.dumps({**whole, "ray_args": WORLD}))
    watched = tmp_path / "temporary" if scheme else tmp_path / "ray"
    (tmp_path / "temporary").mkdir()
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp",
               "TMPDIR": str(tmp_path / "temporary")}  # fmt: skip
    one = [sys.executable, "main.py", "--pipeline_config_path", str(path)]
    subprocess.run([*one, "--output_dir", str(tmp_path / "one")], env=environ, check=True)

    words = ["main.py", "--pipeline_config_path", str(tmp_path / "ray.json"), "--executor", "ray"]
    process = subprocess.Popen(
        [sys.executable, *words, "--output_dir", f"{scheme}{tmp_path / 'ray'}"],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    killed: list[int] = []
    end = time.monotonic() + 200
    while process.poll() is None and not killed and time.monotonic() < end:
        rows = watched.rglob("state/shards/prompt*.jsonl")
        if any(not path.with_suffix(".json").exists() for path in rows):
            killed = titled("ray::Pipeline.search", process.pid)[:1]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    workers = titled("ray::", process.pid)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert killed and "A worker was lost" in said, said
    (left,) = (p.parent for p in (tmp_path / "one").rglob("summary.json"))
    (folder,) = (p.parent for p in (tmp_path / "ray").rglob("summary.json"))
    assert content(folder) == content(left)
    kept = [p for kind in ("worker_*", "run_*") for p in (tmp_path / "temporary").glob(kind)]
    assert kept == []  # of the killed worker's neither
    time.sleep(1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a local cluster of so many cores, which may grow or not, as its driver believes."""

    def have(count: int, *, fixed: bool = True) -> None:
        pytest.importorskip("ray")
        cluster = experiment.ray_run._cluster

        @contextmanager
        def believed(args: RayArgs) -> Iterator[Any]:
            with cluster(args) as (ray, _):
                yield ray, fixed

        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(RayArgs, "cores", count)
        monkeypatch.setattr(experiment.ray_run, "_cluster", believed)
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")

    return have


@dataclass
class Unlike(Brightness):
    """Whichever process loads it chooses another batch size: 1, 2 and so on."""

    folder: str = ""

    def load(self, device: str) -> None:
        for size in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                Path(self.folder, str(size)).mkdir()
                experiment.speed.BATCH_SIZE = size
                return


@pytest.mark.slow
def test_workers_that_would_choose_otherwise_leave_one_run_at_a_url(
    tmp_path: Path,
    ask: Ask,  # noqa: F811
    cores: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cores(2)
    (tmp_path / "loaded").mkdir()
    asked = ask(
        batch_size_for_img_gen=None,
        search_args={"search_method": "random", "search_rounds": 4},
        verifier_args={"name": "tests.test_ray:Unlike", "folder": str(tmp_path / "loaded")},
        ray_args={"address": "local", "pipelines": 2},
    )
    url, where = f"file://{tmp_path / 'url'}", (None, "r")
    for _ in range(2):  # the second time it is taken for the run that it is
        with output_place(asked, url, *where) as place:
            run_on_ray(asked, place, *where)
    assert "is finished" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "loaded").iterdir()} == {"1", "2"}
    (folder,) = (path.parent for path in (tmp_path / "url").rglob("summary.json"))
    size = read_object(folder / "config.json")["engine_args"]["batch_size"]
    assert {row.batch_size for row in read_candidates(folder)} == {size}
    assert read_object(folder / "manifest.json")[CONFIG_HASH] == config_hash(folder)


TWO_VERIFIERS = {"address": "local", "verifiers": 2, "pipelines": 1}


@pytest.mark.slow
def test_a_cluster_with_too_little_room_begins_with_what_there_is(
    tmp_path: Path,
    ask: Ask,  # noqa: F811
    cores: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cores(2)
    whole = run(ask(), str(tmp_path / "one")).folder
    done = run_on_ray(ask(ray_args=TWO_VERIFIERS), Place(str(tmp_path / "ray")))
    assert content(done.folder) == content(whole)
    assert "take 3 CPUs and 0 GPUs, and the cluster has 2 and 0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cluster_without_room_for_one_of_each_is_refused_or_waited_for(
    tmp_path: Path,
    ask: Ask,  # noqa: F811
    cores: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ask(ray_args=TWO_VERIFIERS)
    cores(1)
    with pytest.raises(UserError, match="not even one of each"):
        run_on_ray(asked, Place(str(tmp_path / "refused")))
    cores(1, fixed=False)
    timer = threading.Timer(25, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted):
        run_on_ray(asked, Place(str(tmp_path / "waiting")))
    assert not timer.is_alive() and "some wait" in capsys.readouterr().out
