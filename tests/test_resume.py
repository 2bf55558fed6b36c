"""A run that was interrupted anywhere and resumed leaves what one that never was leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiment.config import ExperimentConfig, parse_config
from experiment.disk import short_of_room
from experiment.progress import remove_state
from experiment.resume import config_hash, finished
from experiment.runner import Engine, Experiment, load, plan, saved
from experiment.store import RunStore
from main import main
from pipelines.memory import Placement
from pipelines.memory_errors import out_of_memory
from pipelines.placement import Residence
from tests.families import FAMILIES
from tests.graders import Motion
from tests.interrupted import Counting, Killed, content, killed_at, rewritten
from tests.test_run import config, on_stable_diffusion
from utils import UserError

BATCH = 2
PROMPTS = "a red circle\na blue square left of a green ring\n"
COUNTING = {"name": "tests.interrupted:Counting"}
CLIP = {"name": "clip", "model_name": "shapes/models/shapes-clip"}
METHODS: dict[str, dict[str, Any]] = {
    "random": {"pool": "nested"},
    "zero-order": {"num_neighbors": 3, "on_reject": "resample"},
    "paths": {},
    "ses": {"popsize": 3, "k_elites": 2},
    "evolution": {"population": 3},
    "halving": {"pool": 4},
    "monitor": {"check_interval": 1, "action": "reject"},
    "steering": {"particles": 3, "check_every": 1},
    "svdd": {"branches": 2, "chains": 1},
    "code": {"n_samples": 2, "block_size": 2, "chains": 1},
    "rbf": {"init_particles": 2, "chains": 1},
    "evosearch": {"start": 3, "population": 2, "elites": 1, "schedule": (0.0, 0.5)},
    "tree": {"depths": 2},
    "draft": {"keep": 2},
    "ascent": {"iterations": 2},
}


@dataclass(frozen=True)
class World:
    """A loaded engine, and the runs made on it."""

    folder: Path
    config: ExperimentConfig
    engine: Engine

    def begun(self, name: str) -> Path:
        """A new run's folder, as far as it is written before the search."""
        store = RunStore(self.folder / name, self.config.export)
        store.folder.mkdir()
        store.write_json("config.json", saved(self.config, self.engine.batch_size))
        return store.folder

    def begun_and_ended(self, name: str) -> Path:
        folder = self.begun(name)
        self.go_on(folder)
        return folder

    def go_on(self, folder: Path) -> None:
        """The search from where it was left, by a process that remembers nothing."""
        if finished(folder):
            remove_state(RunStore(folder, self.config.export))
            return
        engine = self.engine
        made = Experiment(
            self.config,
            engine.denoiser,
            engine.verifier,
            engine.judges,
            RunStore(folder, self.config.export),
            plan(self.config),
            engine.batch_size,
        )
        made.run()


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def made(**changes: Any) -> World:
        prompts = tmp_path / "prompts.txt"
        prompts.write_text(PROMPTS)
        common = {"prompt": None, "prompts": str(prompts), "num_prompts": "all",
                  "verifier_args": COUNTING, "batch_size_for_img_gen": BATCH}  # fmt: skip
        asked = parse_config(config(**{**common, **changes}))
        return World(tmp_path, asked, load(asked, plan(asked)))

    return made


def searching(method: str, steps: int = 4, images: int = 5, **options: Any) -> dict[str, Any]:
    """The part of a config that asks for a method and a few images."""
    call = {**config()["pipeline_call_args"], "num_inference_steps": steps}
    return {
        "search_args": {"search_method": method, **METHODS[method], **options},
        "pipeline_call_args": call,
        "budget": {"nfe": images * steps + 1},
        "verifier_args": CLIP if method == "ascent" else COUNTING,
        "judges": [{**COUNTING, "sign": -1.0}],
    }


def runs_equal(world: World, kills: Callable[[int], range]) -> int:
    """Interrupt runs at writes, go on with each, and compare; returns how many there were."""
    Counting.begin()
    whole = world.begun("whole")
    with killed_at(-1) as count:
        world.go_on(whole)
    expected, images, told = content(whole), Counting.images, Counting.told
    assert "state" not in expected and len(expected["candidates.jsonl"]) > 4
    for number in kills(2 * count[0]):
        Counting.begin()
        folder = world.begun(f"killed{number}")
        with pytest.raises(Killed), killed_at(number):
            world.go_on(folder)
        told_before = len(Counting.told)
        world.go_on(folder)
        assert content(folder) == expected, f"killed at {number}"
        assert images <= Counting.images <= images + BATCH, f"killed at {number}"
        # Whoever judges whole sets has heard of every prompt once more, in order.
        assert Counting.told[told_before:] == told or told_before == len(told)
    return len(kills(2 * count[0]))


OFTEN = ("random", "zero-order", "halving", "steering", "ses", "draft", "ascent")
QUICK = "zero-order"  # tests/test_every_kill.py has all methods, on a model that costs nothing


@pytest.mark.parametrize(
    "method", [QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in OFTEN if m != QUICK)]
)
def test_a_run_killed_at_a_write_goes_on_to_the_same_bytes(
    method: str, world: Callable[..., World]
) -> None:
    made = world(**searching(method, images=3))
    assert runs_equal(made, lambda n: range(OFTEN.index(method), n, 29)) >= 2


@pytest.mark.slow
def test_the_other_bundled_pipeline_goes_on_to_the_same_bytes_too(
    world: Callable[..., World],
) -> None:
    made = world(**{**searching(QUICK, images=3), **on_stable_diffusion(steps=4)})
    assert runs_equal(made, lambda n: range(n // 2, n, n)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["draft", "steering", "zero-order"])
def test_a_run_killed_at_any_third_write_goes_on_to_the_same_bytes(
    method: str, world: Callable[..., World]
) -> None:
    made = world(**searching(method, images=3))
    assert runs_equal(made, lambda n: range(1, n, 3)) >= 13


def in_process(tmp_path: Path, *flags: str, **changes: Any) -> tuple[int, list[Path]]:
    """Run main with a config file of these changes; its exit code, and all run folders so far."""
    path = tmp_path / "config.json"
    if changes or not path.exists():
        path.write_text(json.dumps(config(**changes)))
    code = main(["--pipeline_config_path", str(path), "--output_dir", str(tmp_path / "o"), *flags])
    return code, sorted((tmp_path / "o").glob("*/*/*/*"))


SHORT = {"search_args": {"search_method": "random", "search_rounds": 2}, "verifier_args": COUNTING,
         "batch_size_for_img_gen": BATCH}  # fmt: skip


@pytest.mark.slow
def test_auto_goes_on_with_the_newest_unfinished_run_of_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Counting.begin()
    code, (whole,) = in_process(tmp_path, "--resume", "auto", **SHORT)
    assert code == 0 and "nothing" not in capsys.readouterr().out
    for at in (1, 2):  # two runs are left
        Counting.begin(at, KeyboardInterrupt)
        assert in_process(tmp_path)[0] == 130
    said = capsys.readouterr().err
    _, (_, older, newest) = in_process(tmp_path, "--dry_run")
    assert f"python main.py --resume {newest}" in said
    Counting.begin()
    assert in_process(tmp_path, "--resume", "auto", "--seed=1")[0] == 0  # of another config
    assert in_process(tmp_path, "--resume", "auto")[0] == 0
    assert content(newest) == content(whole) and not (older / "summary.json").exists()
    # The older one is next; it needs no config beside its own.
    assert main(["--resume", str(older)]) == 0
    assert content(older) == content(whole)
    before = {path: path.stat().st_mtime_ns for path in older.iterdir()}
    assert main(["--resume", str(older)]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in older.iterdir()} == before
    # The newest run of the config is finished, and "auto" begins no other.
    runs = in_process(tmp_path, "--resume", "auto")
    assert runs == in_process(tmp_path, "--resume", "auto") and runs[0] == 0
    assert "is finished" in capsys.readouterr().out


def test_auto_goes_on_with_a_run_from_before_an_option_existed(tmp_path: Path) -> None:
    Counting.begin(1, KeyboardInterrupt)
    _, (folder,) = in_process(tmp_path, **SHORT)
    saved, noted = (folder / name for name in ("config.json", "manifest.json"))
    whole = json.loads(saved.read_text())
    del whole["search_args"]["stochastic"], whole["engine_args"]["verifier_device"]
    saved.write_text(json.dumps(whole))
    manifest = json.loads(noted.read_text())
    noted.write_text(json.dumps({**manifest, "config_hash": config_hash(folder)}))
    Counting.begin()
    assert in_process(tmp_path, "--resume", "auto", **SHORT) == (0, [folder])
    assert finished(folder)


def test_a_run_of_another_config_is_refused_key_by_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Counting.begin(1, KeyboardInterrupt)
    _, (folder,) = in_process(tmp_path, **SHORT)
    kept = content(folder)
    capsys.readouterr()
    flags = ["--seed=3", "--set=search_args.pool=nested", "--batch_size_for_img_gen=4"]
    assert in_process(tmp_path, "--resume", str(folder), *flags)[0] == 2
    said = capsys.readouterr().err
    assert "seed was 0 and is 3 now" in said
    assert 'search_args.pool was "fresh" and is "nested" now' in said
    assert "engine_args.batch_size was 2 and is 4 now" in said
    assert said.count(" was ") == 3 and said.count("\n") == 1
    assert content(folder) == kept
    assert main(["--resume", str(tmp_path / "nowhere")]) == 2
    assert "There is no run in" in capsys.readouterr().err
    assert in_process(tmp_path, "--resume", str(folder.parent))[0] == 2
    assert "There is no run in" in capsys.readouterr().err
    assert main(["--resume", "auto", "--probe"]) == 2


def test_other_prompts_or_weights_than_a_run_began_with_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\nthree\n")
    Counting.begin(4, KeyboardInterrupt)
    _, (folder,) = in_process(tmp_path, **SHORT, prompt=None, prompts=str(prompts), num_prompts=2)
    prompts.write_text("one\nzwei\n")
    capsys.readouterr()
    assert in_process(tmp_path, "--resume", "auto")[0] == 2
    assert "begun with other prompts" in capsys.readouterr().err
    prompts.write_text("one\ntwo\nvier\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    other = {**manifest, "weights": "files:0123"}
    (folder / "manifest.json").write_text(json.dumps(other))
    assert in_process(tmp_path, "--resume", "auto")[0] == 2
    assert "begun with other weights" in capsys.readouterr().err
    other = {**manifest, "device": "an older computer"}
    (folder / "manifest.json").write_text(json.dumps(other))
    Counting.begin()
    assert in_process(tmp_path, "--resume", "auto")[0] == 0
    assert "Other device than before" in capsys.readouterr().out


def test_rows_keep_the_seconds_that_were_measured_when_they_were_made(
    tmp_path: Path, world: Callable[..., World]
) -> None:
    made = world(**searching("random"))
    folder = made.begun("one")
    Counting.begin(3)
    with pytest.raises(Killed):
        made.go_on(folder)
    (journal,) = (folder / "state").glob("prompt*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    known = [line for line in lines if line["kind"] == "batch"]
    assert known
    Counting.begin()
    made.go_on(folder)
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    for line in known:
        mine = [row for row in rows if row["seed"] in line["asked"]["seeds"]]
        each = line["cost"]["seconds"] / len(mine)
        assert mine and all(row["seconds"] == round(each, 6) for row in mine)


def test_seconds_spent_before_an_interruption_count(world: Callable[..., World]) -> None:
    """A journal that says an hour was worked leaves nothing of a minute: one round, no more."""
    made = world(**{**searching("random"), "budget": {"seconds": 60}})
    folder = made.begun("one")
    Counting.begin(2)
    with pytest.raises(Killed):
        made.go_on(folder)
    journal = folder / "state" / "prompt0.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    batches = [line for line in lines if line["kind"] == "batch"]

    def an_hour_later(lines: list[dict[str, Any]]) -> None:
        [line for line in lines if line["kind"] == "batch"][-1]["elapsed"] = 3600.0

    rewritten(journal, an_hour_later)
    (made.folder / "prompts.txt").write_text(PROMPTS.splitlines()[0])
    Counting.begin()
    made.go_on(folder)
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == sum(len(line["asked"]["seeds"]) for line in batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "candidates.jsonl",
        pytest.param("state/prompt1.jsonl", marks=pytest.mark.slow),
        pytest.param("state/done.jsonl", marks=pytest.mark.slow),
    ],
)
def test_a_torn_last_line_is_dropped_and_a_torn_middle_line_is_named(
    name: str, world: Callable[..., World]
) -> None:
    made = world(**searching("random"))
    Counting.begin()
    whole = made.begun("whole")
    made.go_on(whole)
    folder = made.begun("torn")
    Counting.begin(Counting.calls - 2)  # in the second prompt
    with pytest.raises(Killed):
        made.go_on(folder)
    path = folder / name
    good = path.read_bytes()
    for torn in (b'{"id": 6, "prom', b"\0\0\0\n", b'{"id": 6}'):
        path.write_bytes(b"\xff" + good + torn)
        with pytest.raises(UserError, match=f"Line 1 of .*{path.name} is damaged"):
            made.go_on(folder)
    path.write_bytes(good + b'{"id": 6, "prom')
    Counting.begin()
    made.go_on(folder)
    assert content(folder) == content(whole)


def test_a_journal_of_another_search_is_refused_by_its_difference(
    world: Callable[..., World],
) -> None:
    made = world(**searching("random"))
    folder = made.begun("one")
    Counting.begin(2)
    with pytest.raises(Killed):
        made.go_on(folder)
    journal = folder / "state" / "prompt0.jsonl"
    rewritten(journal, lambda lines: lines[1]["asked"].update(until=3))
    with pytest.raises(UserError, match=r"Line 2 of .*prompt0.jsonl answers until 3.* until 4"):
        made.go_on(folder)
    (folder / "state" / "prompt0_0.safetensors").write_bytes(b"")
    rewritten(journal, lambda lines: lines[1]["asked"].update(until=4))
    with pytest.raises(UserError, match=r"prompt0_0.safetensors has been changed"):
        made.go_on(folder)


class Boom(Exception):
    """What a user's own code may raise."""


def test_a_prompt_that_fails_does_not_end_the_run_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\nthree\n")
    changes = {**SHORT, "prompt": None, "prompts": str(prompts), "num_prompts": "all"}
    Counting.begin()
    code, (whole,) = in_process(tmp_path, **changes)
    images, calls = Counting.images, Counting.calls
    Counting.begin(calls // 3 + 1, Boom)  # at the second prompt's second batch
    code, (_, folder) = in_process(tmp_path, **changes)
    assert code == 3
    summary = json.loads((folder / "summary.json").read_text())["prompts"]
    assert [prompt.get("failed") for prompt in summary] == [
        None, "Boom: the grader fell over", None,
    ]  # fmt: skip
    assert "Boom" in (folder / "state" / "prompt1.failed.txt").read_text()
    assert "the grader fell over" in capsys.readouterr().out
    before = Counting.images
    Counting.begin()
    code, folders = in_process(tmp_path, "--resume", "auto")
    assert code == 0 and len(folders) == 2
    assert content(folder) == content(whole)
    assert before + Counting.images == images  # what was answered is not asked again


def test_a_prompt_that_fails_before_its_first_image_does_not_end_the_run_either(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world(search_args={"search_method": "random", "search_rounds": 1})
    span = made.engine.denoiser.span

    def failing(prompt: str, rows: int = 1) -> tuple[int, int]:
        if prompt == "a red circle":
            raise RuntimeError("this prompt cannot be encoded")
        return span(prompt, rows)

    folder = made.begun("one")
    with monkeypatch.context() as patch:
        patch.setattr(made.engine.denoiser, "span", failing)
        made.go_on(folder)
    first, second = json.loads((folder / "summary.json").read_text())["prompts"]
    assert first["failed"] == "RuntimeError: this prompt cannot be encoded"
    assert first["best"] is None and second["best"] is not None
    made.go_on(folder)
    assert content(folder) == content(made.begun_and_ended("whole"))  # also the rows' order


def test_prompts_that_all_fail_stop_the_run(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(9)))
    search = {"search_method": "random", "search_rounds": 1}
    changes = {"prompt": None, "prompts": str(prompts), "num_prompts": "all"}
    path = tmp_path / "config.json"
    grader = {"name": "tests.interrupted:Broken"}
    path.write_text(json.dumps(config(**changes, verifier_args=grader, search_args=search)))
    flags = ["--pipeline_config_path", str(path), "--output_dir", str(tmp_path / "o")]
    assert main(flags) == 4
    (folder,) = (tmp_path / "o").glob("*/*/*/*")
    assert len(list((folder / "state").glob("*.failed.txt"))) == 5
    assert not (folder / "summary.json").exists()


@pytest.mark.slow
def test_a_verifier_that_never_answers_stops_the_run_and_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers for a prompt, then falls silent for good; mended, the run ends as it should."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    search = {"search_method": "random", "search_rounds": 20, "pool": "fresh"}
    call = {**config()["pipeline_call_args"], "num_inference_steps": 1}
    changes = {**SHORT, "prompt": None, "prompts": str(prompts), "num_prompts": "all",
               "search_args": search, "budget": {"nfe": 10},
               "pipeline_call_args": call}  # fmt: skip
    code, (whole,) = in_process(tmp_path, **changes)
    assert code == 0
    Counting.begin()
    monkeypatch.setattr(Counting, "silent_after", 14)
    monkeypatch.setattr("experiment.stops.UNSCORED_IN_A_ROW", 6)
    assert in_process(tmp_path, **changes)[0] == 4
    said = capsys.readouterr().err
    assert "6 images in a row got no score" in said and "its lips are sealed" in said
    assert Counting.images == 14 + 6
    monkeypatch.setattr(Counting, "silent_after", 10**9)
    Counting.begin()
    code, (_, folder) = in_process(tmp_path, "--resume", "auto")
    assert code == 0 and content(folder) == content(whole)
    assert Counting.images == 20 - 14


def test_a_prompt_without_any_score_has_failed_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counting.begin()
    _, (whole,) = in_process(tmp_path, **SHORT)
    monkeypatch.setattr(Counting, "silent_after", 0)
    code, (_, folder) = in_process(tmp_path, **SHORT)
    assert code == 3 and len(list(folder.glob("*.png"))) == 6
    monkeypatch.setattr(Counting, "silent_after", 10**9)
    assert in_process(tmp_path, "--resume", "auto")[0] == 0
    assert content(folder) == content(whole)


def test_what_is_refused_at_first_is_wrong_and_what_is_refused_later_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that no server knows, and a quota that is spent."""
    Counting.begin()
    _, (whole,) = in_process(tmp_path, **SHORT)
    Counting.begin(0, UserError)
    assert in_process(tmp_path)[0] == 2
    assert "resume" not in capsys.readouterr().err
    Counting.begin(2, UserError)
    code, (_, _, folder) = in_process(tmp_path)
    assert code == 4
    assert f"the grader fell over\nTo resume: python main.py --resume {folder}" in (
        capsys.readouterr().err
    )
    Counting.begin()
    assert in_process(tmp_path, "--resume", "auto")[0] == 0
    assert content(folder) == content(whole)


def test_a_disk_that_may_fill_up_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    planned = plan(parse_config(config(search_args={"search_method": "random"})))  # 30 images
    call = {"height": 1024, "width": 1024}
    for free, short in ((48 * 10**6, False), (46 * 10**6, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, n=free: usage._replace(free=n))
        said = short_of_room(planned, call, Path("out"))
        assert (said is not None) == short
    assert said is not None and "0.0 GB are free" in said and "can be resumed" in said
    # One prompt's frames, in raw pixels: 30 x 10 x 3 MB.
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=943 * 10**6))
    assert short_of_room(planned, {**call, "num_frames": 10}, Path("out")) is not None


class Cramped:
    """A module's forward with room for so many rows; torch's own error beyond."""

    def __init__(self, module: Any, rows: int) -> None:
        self.sizes: list[int] = []
        self._rows, self._forward = rows, module.forward

    def __call__(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(hidden_states))
        if len(hidden_states) > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._forward(hidden_states, *args, **kwargs)


@pytest.mark.slow
def test_out_of_memory_halves_the_batches_for_the_rest_of_the_run(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"search_method": "random", "search_rounds": 3}
    made = world(search_args=search, batch_size_for_img_gen=8)
    small = world(search_args=search, batch_size_for_img_gen=4)
    Counting.begin()
    expected = content(small.begun_and_ended("small"))
    transformer = made.engine.denoiser.pipe.transformer
    cramped = Cramped(transformer, rows=4)
    monkeypatch.setattr(transformer, "forward", cramped)
    ended = made.begun("whole")
    with killed_at(-1) as count:
        made.go_on(ended)
    whole = content(ended)
    # The rounds of 2 and 4 are as before, that of 8 takes two batches: as if 4 had been asked for.
    assert whole["candidates.jsonl"] == expected["candidates.jsonl"]
    assert {k: v for k, v in whole.items() if k.endswith(".png")} == {
        k: v for k, v in expected.items() if k.endswith(".png")
    }
    assert cramped.sizes.count(8) == 1  # also over both prompts
    for number in range(5, 2 * count[0], 61):
        folder = made.begun(f"killed{number}")
        with pytest.raises(Killed), killed_at(number):
            made.go_on(folder)
        made.go_on(folder)
        assert content(folder) == whole


def test_no_memory_for_a_single_image_is_said_with_its_remedies(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world(search_args={"search_method": "random", "search_rounds": 1})
    transformer = made.engine.denoiser.pipe.transformer
    cramped = Cramped(transformer, rows=0)
    monkeypatch.setattr(transformer, "forward", cramped)
    with pytest.raises(UserError, match=r"offload.*vae.*quantization"):
        made.go_on(made.begun("one"))
    assert cramped.sizes == [2, 1]


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_runs_out_in_other_words_too(said: str) -> None:
    assert out_of_memory(RuntimeError(f"{said} when calling"))
    assert out_of_memory(torch.OutOfMemoryError("no room"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError(said))


@pytest.mark.slow
def test_what_is_made_before_the_verifier_moves_in_is_not_made_again(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pipeline and verifier take turns on the device, whole rounds wait to be judged."""
    monkeypatch.setattr(
        "experiment.runner.settle",
        lambda pipe, device, *_, **__: Residence(pipe, device, Placement(), alone=True),
    )
    grader = {"name": "tests.interrupted:Settling"}
    made = world(
        search_args={"search_method": "random", "search_rounds": 2, "pool": "nested"},
        pipeline_call_args={**config()["pipeline_call_args"], "num_inference_steps": 4},
        verifier_args=grader,
        num_prompts=1,
    )
    rows = made.engine.denoiser.rows
    whole = made.begun("whole")
    with killed_at(-1) as count:
        made.go_on(whole)
    expected, each = content(whole), made.engine.denoiser.rows - rows
    assert each == 4 * 4
    for number in range(1, 2 * count[0], 9):
        folder = made.begun(f"killed{number}")
        rows = made.engine.denoiser.rows
        with pytest.raises(Killed), killed_at(number):
            made.go_on(folder)
        made.go_on(folder)
        assert content(folder) == expected, number
        assert made.engine.denoiser.rows - rows <= each + 4 * BATCH
    folder = made.begun("judging")
    rows = made.engine.denoiser.rows
    Counting.begin(1)
    with pytest.raises(Killed):
        made.go_on(folder)
    Counting.begin()
    made.go_on(folder)
    assert content(folder) == expected
    assert made.engine.denoiser.rows - rows == each  # all was made, and only scores were missing


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "zero-order"])
def test_videos_are_judged_by_their_very_frames_after_an_interruption(
    method: str, tmp_path: Path, world: Callable[..., World]
) -> None:
    """Which MP4 would not give back: judges, and verifiers of whole sets, see them all the same."""
    family = FAMILIES["wan"]
    family.build().save_pretrained(tmp_path / "wan")
    moving = {"name": "tests.graders:Motion"}
    made = world(
        pretrained_model_name_or_path=str(tmp_path / "wan"),
        pipeline_call_args={**family.call_args, "num_inference_steps": 2},
        search_args={"search_method": method, **METHODS[method]},
        budget={"nfe": 2 * 4},
        verifier_args=moving,
        judges=[moving],
        batch_size_for_img_gen=1,
    )
    whole = made.begun("whole")
    Motion.chosen.clear()
    with killed_at(-1) as count:
        made.go_on(whole)
    expected, chosen = content(whole), list(Motion.chosen)
    assert len(chosen) == 2 * 2 and any(name.endswith(".mp4") for name in expected)
    for number in range(1, 2 * count[0], 19):
        folder = made.begun(f"killed{number}")
        with pytest.raises(Killed), killed_at(number):
            made.go_on(folder)
        Motion.chosen.clear()
        made.go_on(folder)
        assert content(folder) == expected
        assert Motion.chosen in (chosen, [])  # none where the summary had been written


def test_a_chosen_set_goes_on_where_it_was(tmp_path: Path, world: Callable[..., World]) -> None:
    """Values that depend on the prompts before: the distance of all winners so far."""
    statistics = tmp_path / "statistics.npz"
    np.savez(statistics, mu=np.zeros(128), sigma=np.eye(128))
    fid = {"name": "fid", "model_name": "shapes/models/shapes-clip", "statistics": str(statistics)}
    changes = {"search_args": {"search_method": "random", "search_rounds": 1}}
    first = world(**changes, verifier_args=fid)
    expected = content(first.begun_and_ended("whole"))
    second = world(**changes, verifier_args=fid)
    folder = second.begun("killed")
    with pytest.raises(Killed), killed_at(2 * 14):  # in the second prompt
        second.go_on(folder)
    assert (folder / "state" / "done.jsonl").exists()
    third = world(**changes, verifier_args=fid)  # a verifier that has seen nothing yet
    third.go_on(folder)
    assert content(folder) == expected
    details = [row["details"]["chosen"] for row in expected["candidates.jsonl"]]
    assert sorted(set(details)) == [0, 1]
