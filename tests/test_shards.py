"""Several processes share a run: its prompts, its folder, and what it comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import experiment.fitting
from experiment.choices import agreed_engine, settled
from experiment.config import parse_config
from experiment.lock import locked
from experiment.outcome import unsearched
from experiment.prompts import listed
from experiment.records import read_candidates
from experiment.runner import load, plan, run, world
from experiment.shard_files import ShardProgress, ShardStore, sharing
from experiment.sharded import run_shard
from experiment.shards import Shard, which_shard
from experiment.store import RunStore
from main import main
from tests.interrupted import content
from tests.test_run import config
from utils import ROOT, UserError

PROMPTS = "a red circle\na blue square\na red circle\na green ring\n"
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5",
         "SLURM_ARRAY_JOB_ID": "99"}  # fmt: skip
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TASKS = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("flags", "environ", "found"),
    [
        ((None, None), {}, None),
        ((4, 2), TORCHRUN, (2, 4, 1, None)),
        ((1, None), TORCHRUN, None),
        ((None, None), TORCHRUN, (1, 3, 1, None)),
        ((None, None), {"RANK": "0", "WORLD_SIZE": "1"}, None),
        ((None, None), ARRAY, (2, 4, None, "slurm_99")),
        ((None, None), {**ARRAY, "SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_STEP": "2"},
         (2, 4, None, "slurm_99")),
        ((None, None), {**ARRAY, "RANK": "0", "WORLD_SIZE": "1"}, (2, 4, None, "slurm_99")),
        ((None, None), TASKS, (3, 4, 0, None)),
        ((None, None), {**TASKS, "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"},
         (3, 4, 0, "slurm_12")),
        ((None, None), {**TASKS, "SLURM_JOB_ID": "12"}, None),  # a batch script, not srun
        ((None, None), {**ARRAY, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
         (2, 4, None, "slurm_99")),
    ],
)  # fmt: skip
def test_flags_win_over_launchers(flags: Any, environ: dict[str, str], found: Any) -> None:
    shard = which_shard(*flags, environ)
    if found is None:
        assert shard is None
    else:
        assert shard is not None
        assert (shard.index, shard.count, shard.local, shard.launch) == found


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        ((2, None), {}, "go together"),
        ((None, 1), {}, "go together"),
        ((2, 2), {}, "no shard 2 of 2"),
        ((0, 0), {}, "no shard 0 of 0"),
        ((None, None), {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ((None, None), {**ARRAY, "SLURM_ARRAY_TASK_ID": "20"}, "gaps"),
        ((None, None), {**ARRAY, **TASKS}, "--num_shards"),
        ((None, None), {**ARRAY, **TORCHRUN}, "one process a task"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: Any, environ: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        which_shard(*flags, environ)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_even_and_together_everything(count: int) -> None:
    prompts = listed((f"prompt {i % 20}", None) for i in range(30))
    shares = [Shard(i, count, "").share(prompts) for i in range(count)]
    indices = [prompt.index for share in shares for prompt in share]
    assert sorted(indices) == list(range(30))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == sorted(share, key=lambda p: p.index) for share in shares)
    # A prompt's place depends on its text, not on where it stands in the file.
    turned = listed((prompt.text, None) for prompt in reversed(prompts))
    for i, share in enumerate(shares):
        again = Shard(i, count, "").share(turned)
        assert {(p.text, p.occurrence) for p in again} == {(p.text, p.occurrence) for p in share}


Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS)
    common = {"prompt": None, "prompts": str(prompts), "num_prompts": "all",
              "batch_size_for_img_gen": 2}  # fmt: skip

    def asked(**changes: Any) -> Any:
        rounds = {"search_args": {"search_method": "random", "search_rounds": 1}}
        return parse_config(config(**{**common, **rounds, **changes}))

    return asked


def shard(
    asked: Any, root: Path, index: int, count: int, resume: str | None = "auto", **kw: Any
) -> Any:
    return run_shard(asked, str(root), Shard(index, count, "a test"), resume, **kw)


def test_three_shards_gone_on_with_by_two_come_to_what_one_process_does(
    tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(ask(), str(tmp_path / "one")).folder
    root = tmp_path / "many"
    folder = shard(ask(), root, 1, 3).folder
    done = {row.prompt_index for row in read_candidates(folder)}
    assert done == {p.index for p in Shard(1, 3, "").share(_prompts())}
    assert not (folder / "summary.json").exists()
    pictures = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    said = capsys.readouterr().out
    assert "Shard 1 of 3, by a test" in said and "the last one to end writes summary.json" in said

    (folder / ".killed.part").write_text("a file that another process was writ")
    assert shard(ask(), root, 0, 2).folder == folder
    assert shard(ask(), root, 1, 2).folder == folder
    assert content(folder) == content(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in pictures.items())
    assert "All 4 prompts are done" in capsys.readouterr().out
    assert shard(ask(), root, 0, 2, str(folder)).failed == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_shard_searches_for_prompts_at_once(tmp_path: Path, ask: Ask) -> None:
    whole = run(ask(), str(tmp_path / "one")).folder
    turns = {"prompts_at_once": 2, "compile": "auto"}
    for index in (0, 1):
        folder = shard(ask(engine_args=turns), tmp_path / "many", index, 2).folder
    left, right = content(folder), content(whole)
    assert left.pop("config.json")["engine_args"].pop("prompts_at_once") == 2
    assert right.pop("config.json")["engine_args"].pop("prompts_at_once") == "auto"
    assert left == right


@pytest.mark.parametrize("damaged", ["rows", "record"])
def test_what_a_shard_has_done_is_checked_as_one_process_would(
    damaged: str, tmp_path: Path, ask: Ask
) -> None:
    folder = shard(ask(), tmp_path, 0, 2).folder
    (rows, *_), (record, *_) = (
        sorted(folder.glob(name)) for name in ("state/shards/*.jsonl", "prompt@*.json")
    )
    path = rows if damaged == "rows" else record
    path.write_bytes(path.read_bytes().replace(b'"seed": ', b'"seed": 1').replace(b"a ", b"b "))
    with pytest.raises(UserError, match=f"{path.name}.* changed"):
        for index in (0, 1):
            shard(ask(), tmp_path, index, 2, str(folder))
    with pytest.raises(UserError, match=f"{path.name}.* changed"):
        run(ask(), str(tmp_path), str(folder))


def test_a_process_that_would_choose_otherwise_takes_over_what_the_first_chose(
    tmp_path: Path, ask: Ask
) -> None:
    asked = ask()
    engine, planned = load(asked, plan(asked)), plan(asked)
    store = RunStore.create(str(tmp_path), asked, "r")
    run_config, others = settled(asked, replace(engine, compiled=True), store)
    store.write_json("manifest.json", world(engine, planned, store.folder))
    assert not others and run_config.engine_args.compile == "on"
    run_config, others = settled(asked, engine, store)
    assert others == {"compile"} and run_config.engine_args.compile == "on"


@pytest.mark.parametrize(("otherwise", "loads"), [("batch_size", 1), ("vae", 2)])
def test_a_process_never_holds_two_engines(
    otherwise: str, loads: int, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes the one it has, or lets go of it before it loads another."""
    asked, pipes = ask(batch_size_for_img_gen=None), []

    def begin(config: Any) -> Any:
        assert all(pipe() is None for pipe in pipes)
        engine = load(config, plan(asked))
        pipes.append(weakref.ref(engine.denoiser.pipe))
        return engine

    store = ShardStore(RunStore.create(str(tmp_path), asked, "r").folder, asked.export)
    first = load(asked, plan(asked)).saved(asked)
    first["engine_args"][otherwise] = {"batch_size": 3, "vae": "slicing"}[otherwise]
    store.write_json("config.json", first)
    store.write_json("manifest.json", {})
    found, engine = agreed_engine(asked, plan(asked), store, lambda config: config, begin)
    assert len(pipes) == loads and engine.saved(found) == first


def test_memory_that_was_short_elsewhere_lowers_no_other_processes_batches(
    tmp_path: Path, ask: Ask
) -> None:
    asked, prompts = ask(), _prompts()
    store = ShardStore(RunStore.create(str(tmp_path), asked, "r").folder, asked.export)
    store.shards.mkdir(parents=True)
    for prompt, size in zip(prompts, (1, 4, 8, 8), strict=True):
        store.write_failed(unsearched(prompt, "a test"), size)
    found = [ShardProgress(store, [prompt], 8).batch_size for prompt in prompts]
    assert found == [1, 4, 8, 8]


@pytest.mark.slow
def test_a_shard_counts_its_own_passes_to_see_whether_compiling_pays(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []

    def counting(config: Any, checkpoint: str, device: str, offload: str, passes: Any) -> bool:
        counted.append(passes)
        return False

    monkeypatch.setattr(experiment.fitting, "compiles", counting)
    run(ask(), str(tmp_path / "one"))
    for index in (0, 1):
        shard(ask(), tmp_path / "many", index, 2)
    assert counted == [counted[0], counted[0] / 2, counted[0] / 2]


def test_trackers_are_for_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pipeline_config_path", "configs/shapes_flux.json", "--output_dir", str(tmp_path)]
    shares = (["--num_shards", "2", "--shard_index", "0"], ["--executor", "ray"])
    for share in shares:
        assert main([*words, *share, "--report_to", "tensorboard"]) == 2
        assert "leave out --report_to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _prompts() -> Any:
    return listed((line, None) for line in PROMPTS.splitlines())


@pytest.mark.slow
def test_one_process_goes_on_with_what_shards_began_and_the_other_way(
    tmp_path: Path, ask: Ask
) -> None:
    whole = run(ask(), str(tmp_path / "one")).folder
    folder = shard(ask(), tmp_path / "a", 0, 2, None, run_name="mine").folder
    assert folder.name == "mine"
    assert run(ask(), str(tmp_path / "a"), run_name="mine").folder == folder
    assert content(folder) == content(whole)

    begun = run(ask(num_prompts="all"), str(tmp_path / "b")).folder
    lines = (begun / "candidates.jsonl").read_text().splitlines()
    (begun / "state").mkdir()
    entry = json.loads((begun / "summary.json").read_text())["prompts"][0]
    done = json.dumps({"summary": entry, "batch_size": 2}) + "\n"
    (begun / "state" / "done.jsonl").write_text(done)  # as if it had been killed in its second
    (begun / "summary.json").unlink()
    (begun / "candidates.jsonl").write_text("\n".join(lines[: len(lines) // 2 - 1]) + "\n")
    for index in (0, 1):
        shard(ask(), tmp_path / "b", index, 2)
    assert content(begun) == content(whole)


@pytest.mark.slow
def test_a_failed_prompt_does_not_hold_up_the_others_and_is_tried_again(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    import experiment.searching as searching

    whole = run(ask(), str(tmp_path / "one")).folder
    wanted = searching.Experiment._play

    def failing(self: Any, prompt: Any, *args: Any) -> None:
        wanted(self, prompt, *args)
        if prompt.index == 1:
            raise ZeroDivisionError("nothing left")

    root = tmp_path / "many"
    with monkeypatch.context() as patched:
        patched.setattr(searching.Experiment, "_play", failing)
        alone = run(ask(), str(tmp_path / "failing"))
        each = [shard(ask(), root, index, 2, None, run_name="r") for index in (0, 1)]
    assert alone.failed == 1 and each[1].failed == 1
    assert results(content(each[0].folder)) == results(content(alone.folder))
    for index in (0, 1):
        shard(ask(), root, index, 2, None, run_name="r")
    assert content(each[0].folder) == content(whole)


def results(found: dict[str, Any]) -> dict[str, Any]:
    """Without what is kept for another try."""
    return {name: what for name, what in found.items() if not name.startswith("state")}


def test_two_processes_are_not_the_same_shard_nor_of_different_counts(
    tmp_path: Path, ask: Ask
) -> None:
    folder = shard(ask(), tmp_path, 0, 2).folder
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), ".shard1of2.lock"],
                             cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    try:
        for index, count in ((1, 2), (0, 3)):
            with pytest.raises(UserError, match=f"Process {other.pid} on"):
                shard(ask(), tmp_path, index, count, str(folder))
        with pytest.raises(UserError, match=f"Process {other.pid} on"):
            run(ask(), str(tmp_path), str(folder))
    finally:
        other.kill()
        other.communicate()
    assert shard(ask(), tmp_path, 0, 3, str(folder)).failed == 0  # its owner is dead


HOLD = """
import sys, pathlib
from experiment.lock import locked
with locked(pathlib.Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    input()
"""


def test_a_shard_waits_for_one_on_another_machine_that_may_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / ".shard1of2.lock"
    lock.write_text('{"pid": 7, "host": "elsewhere"}')

    def years_pass(seconds: float) -> None:
        before = lock.stat().st_mtime - 1000
        os.utime(lock, (before, before))

    monkeypatch.setattr("experiment.shard_files.time.sleep", years_pass)
    with sharing(tmp_path, 1, 2):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert "Process 7 on elsewhere" in capsys.readouterr().out


def test_a_lock_of_another_machine_is_taken_over_after_long_silence(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text('{"pid": 7, "host": "elsewhere"}')
    with pytest.raises(UserError, match="Process 7 on elsewhere"), locked(tmp_path):
        pass
    before = lock.stat().st_mtime - 1000
    os.utime(lock, (before, before))
    with locked(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("changes", "resume", "said"),
    [
        ({}, None, "--run_name"),
        ({"verifier_args": {"name": "tests.interrupted:Counting"}}, "auto", "in one process"),
        ({"verifier_args": {"name": "ensemble", "verifiers": [
            {"name": "tests.graders:Brightness"},
            {"name": "tests.interrupted:Counting"}]}}, "auto", "Counting' judges all"),
    ],
)  # fmt: skip
def test_what_shards_cannot_do_is_said_before_anything_loads(
    changes: Any, resume: Any, said: str, tmp_path: Path, ask: Ask
) -> None:
    with pytest.raises(UserError, match=said):
        shard(ask(**changes), tmp_path, 0, 2, resume)
    assert list(tmp_path.glob("*/*")) == []


def test_more_shards_than_prompts(tmp_path: Path, ask: Ask) -> None:
    assert shard(ask(), tmp_path / "out", 6, 7).failed == 0
    assert not (tmp_path / "out").exists()


def written(path: Path, asked: Any) -> list[str]:
    """The words that run this config."""
    whole = asked.model_dump(mode="json", by_alias=True, exclude={"schema_", "ray_args"})
    path.write_text(json.dumps(whole))
    return ["main.py", "--pipeline_config_path", str(path), "--output_dir"]


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["state/prompt*.jsonl", "state/shards/prompt*.json"])
def test_three_processes_are_killed_and_two_go_on(stem: str, tmp_path: Path, ask: Ask) -> None:
    """Within their first prompts, and when some prompts are done."""
    rounds = {"search_method": "random", "search_rounds": 3}
    whole = run(ask(search_args=rounds), str(tmp_path / "one")).folder
    words = written(tmp_path / "config.json", ask(search_args=rounds))
    root = tmp_path / "many"

    def start(index: int, count: int) -> subprocess.Popen[str]:
        share = ["--num_shards", str(count), "--shard_index", str(index), "--run_name", "r"]
        return subprocess.Popen(
            [sys.executable, *words, str(root), *share],
            cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    processes = [start(index, 3) for index in range(3)]
    until(lambda: any(p.suffix == ".json" or '"batch"' in text(p) for p in root.rglob(stem)))
    for process in processes:
        process.kill()
        process.communicate()
    (folder,) = (path.parent for path in root.rglob("config.json"))
    assert not (folder / "summary.json").exists()
    done = [path.name for path in (folder / "state" / "shards").glob("prompt*.json")]
    assert bool(done) == stem.endswith(".json")
    pictures = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    named = {p for p in pictures if any(p.name in text(j) for j in journals(folder))}
    assert named

    processes = [start(index, 2) for index in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum("All 4 prompts are done" in each for each in said) == 1
    assert content(folder) == content(whole)
    assert all(path.stat().st_mtime_ns == pictures[path] for path in named)  # not made again


def journals(folder: Path) -> list[Path]:
    return [*(folder / "state").glob("prompt*.jsonl"), *(folder / "state/shards").glob("*.jsonl")]


def text(path: Path) -> str:
    """What is in a file that may go at any moment."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def until(true: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_accelerate_launches_two_processes_that_come_to_what_one_does(
    tmp_path: Path, ask: Ask
) -> None:
    """Without GPUs accelerate starts one process, whatever number it is given, save by torchrun."""
    words = written(tmp_path / "config.json", ask())
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    starts = {
        "one": [sys.executable],
        "plain": launch,
        "two": [*launch, "--multi_gpu", "--main_process_port", "0"],
    }
    found = {}
    for name, start in starts.items():
        command = [*start, *words, str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = (p.parent for p in (tmp_path / name).rglob("summary.json"))
        found[name] = content(folder)
        assert ("Shard 1 of 2, by RANK" in done.stdout) == (name == "two")
    assert found["one"] == found["plain"] == found["two"]
