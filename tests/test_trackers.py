"""What experiment trackers are told of a run, read back from what they have written."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from experiment.config import parse_config
from experiment.runner import Ran, run
from experiment.tracker import asked_trackers
from experiment.trackers import hyperparameters
from main import main
from tests.interrupted import Counting, Killed
from tests.test_run import config, rows_of
from utils import UserError

PROMPTS = ("a red circle", "a blue square")
ROUNDS = 2  # of 2 and 4 images


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two prompts of two rounds, with a judge that wants the opposite."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return config(
        prompt=None,
        prompts=str(prompts),
        num_prompts="all",
        search_args={"search_method": "random", "search_rounds": ROUNDS},
        verifier_args={"name": "tests.interrupted:Counting"},
        judges=[{"name": "tests.graders:Brightness", "sign": -1.0}],
        batch_size_for_img_gen=2,
    )


def ran(content: dict[str, Any], root: Path, at: int = -1, **options: Any) -> Ran:
    """A run whose grader ends the process at a call."""
    Counting.begin(at)
    return run(parse_config(content), str(root), **options)


@pytest.fixture(scope="module")
def whole(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was told to all trackers that are here; its root also holds Trackio's files."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("TRACKIO_DIR", str(root / "trackio"))  # read as it is imported
        names = [name for name in ("tensorboard", "trackio") if find_spec(name)]
        yield ran(asked, root, report_to=names).folder


@dataclass
class Shown:
    """The events below a folder: by tag, (step, value) in the order they were written."""

    folder: Path

    def __post_init__(self) -> None:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.images: dict[str, list[tuple[int, bytes]]] = {}
        self.texts: set[str] = set()
        for file in sorted(self.folder.rglob("events.*"), key=os.path.getmtime):
            events = accumulator.EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
            for tag in events.Tags()["scalars"]:
                own = [(event.step, event.value) for event in events.Scalars(tag)]
                self.scalars.setdefault(tag, []).extend(own)
            for tag in events.Tags()["images"]:
                pictures = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
                self.images.setdefault(tag, []).extend(pictures)
            self.texts.add(file.read_bytes().decode("latin-1"))


def test_tensorboard_is_told_rounds_prompts_pictures_and_the_config(
    whole: Path,
) -> None:
    shown = Shown(whole / "tensorboard")
    rows = rows_of(whole)

    best: list[float] = []
    for index in range(len(PROMPTS)):
        for number in range(1, ROUNDS + 1):
            own = [r for r in rows if (r["prompt_index"], r["round"]) == (index, number)]
            best.append(max(row["score"] for row in own))
    so_far = [best[0], max(best[:2]), best[2], max(best[2:])]
    steps = [1, 2, 3, 4]
    for tag, expected in {
        "round/best": best,
        "round/best_so_far": so_far,
        "round/judges/tests.graders:Brightness/brightness": [-value for value in best],
        "round/nfe": [4, 12, 4, 12],
        "round/number": [1, 2, 1, 2],
        "round/prompt_index": [0, 0, 1, 1],
    }.items():
        assert shown.scalars[tag] == [
            (step, pytest.approx(value)) for step, value in zip(steps, expected, strict=True)
        ], tag
    rows_spent = sum(row["rows"] for row in rows if row["prompt_index"] == 0)
    assert shown.scalars["round/rows"][1] == (2, rows_spent)
    assert all(seconds > 0 for _, seconds in shown.scalars["round/seconds"])

    assert shown.scalars["prompts/prompt_001"] == shown.scalars["round/best_so_far"][2:]
    finals = [so_far[1], so_far[3]]
    means = [(2, pytest.approx(finals[0])), (4, pytest.approx(float(np.mean(finals))))]
    assert shown.scalars["finished/best"] == means
    assert shown.scalars["finished/prompts"] == [(2, 1.0), (4, 2.0)]

    # A picture where the best changed, and no other.
    changes = [step for step, value in enumerate(so_far, 1) if step in (1, 3) or value > so_far[0]]
    logged = sorted(step for each in shown.images.values() for step, _ in each)
    assert set(logged) <= set(changes) and {1, 3} <= set(logged)
    assert all(picture.startswith(b"\x89PNG") for _, picture in shown.images["pictures/prompt_000"])

    told = "".join(shown.texts)
    assert "search_args.search_method" in told and PROMPTS[1] in told


def test_a_resumed_run_logs_nothing_twice_and_leaves_nothing_out(
    asked: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    expected = Shown(whole / "tensorboard")
    with pytest.raises(Killed):  # within the second prompt's second round
        ran(asked, tmp_path, at=5, report_to=["tensorboard"])
    (folder,) = tmp_path.glob("*/*/*/*")
    assert json.loads((folder / "state" / "trackers.json").read_text())["rounds"] == {"1": 1}
    ran(asked, tmp_path, resume=str(folder), report_to=["tensorboard"])

    found = Shown(folder / "tensorboard")
    for tag, values in expected.scalars.items():
        if "seconds" not in tag:
            assert found.scalars[tag] == values, tag
    pictures = {tag: [step for step, _ in each] for tag, each in found.images.items()}
    assert pictures == {tag: [s for s, _ in each] for tag, each in expected.images.items()}
    assert not (folder / "state").exists()


class Brittle(GeneralTracker):
    """Fails at every call but its first few; counts them."""

    name = "brittle"
    requires_logging_directory = False
    tracker = None
    calls: ClassVar[int] = 0
    sound: ClassVar[int] = 2

    def __init__(self, run_name: str, **kwargs: Any) -> None:
        super().__init__()

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        type(self).calls += 1
        if self.calls > self.sound:
            raise ConnectionError("the server has gone")


class Shut(Brittle):
    """Cannot even be opened."""

    name = "shut"

    def start(self) -> None:
        raise PermissionError("no key")


def test_trackers_that_fail_are_named_once_and_cost_nothing(
    asked: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One is left alone after three failures in a row, or at once if it never opened."""
    for build in (Brittle, Shut):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, build.name, build)
    monkeypatch.setattr("experiment.tracker.installed", lambda name: True)
    Brittle.calls, Shut.calls = 0, 0
    done = ran(asked, tmp_path, report_to=["brittle", "shut"])
    assert done.failed == 0 and (done.folder / "summary.json").exists()
    assert len(rows_of(done.folder)) == 12
    assert (Brittle.calls, Shut.calls) == (Brittle.sound + 3, 0)
    output = capsys.readouterr().out
    assert output.count("The tracker brittle fails") == output.count("The tracker shut fails") == 1
    assert "the server has gone" in output and "no key" in output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--report_to", "comet_ml"], "pip install comet-ml"),
        (["--report_to", "tensorbord"], "There is no tracker 'tensorbord'"),
        (["--report_to=wandb", "--compare=configs/compare/shapes.json"], "goes with a search"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_cannot_be_logged_to_is_refused_before_anything_loads(
    flags: list[str],
    sentence: str,
    dry: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    monkeypatch.setattr("experiment.runner.load", lambda *_: pytest.fail("something was loaded"))
    flags = [*flags, "--pipeline_config_path=configs/shapes_flux.json", f"--output_dir={tmp_path}"]
    assert main([*flags, *(["--dry_run"] if dry else [])]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_hyperparameters_are_plain_and_keep_secrets() -> None:
    told = hyperparameters(
        {
            "seed": 3, "prompt": None, "sizes": [1, 2], "eta": 0.5, "max_new_tokens": 800,
            "verifier_args": {"name": "http", "api_key": "sk-1", "url": "http://me:pw@host/s?key=2"},
            "judges": [{"name": "clip", "hf_token": "hf_1"}],
        }
    )  # fmt: skip
    assert told == {
        "seed": 3, "prompt": "null", "sizes": "[1, 2]", "eta": 0.5, "max_new_tokens": 800,
        "verifier_args.name": "http", "verifier_args.api_key": "***",
        "verifier_args.url": "http://***@host/s?***",
        "judges.0.name": "clip", "judges.0.hf_token": "***",
    }  # fmt: skip


def test_a_launchers_variables_open_no_process_group() -> None:
    """In a process of its own, for accelerate's state is one for all."""
    code = (
        "import os, torch\n"
        "from accelerate import PartialState\n"
        "from experiment.tracker import be_alone\n"
        "be_alone()\n"
        "state = PartialState()\n"
        "assert state.num_processes == 1 and state.is_main_process, state\n"
        "assert not torch.distributed.is_initialized()\n"
        "assert os.environ['WORLD_SIZE'] == '2'\n"
    )
    launched = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | launched, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_trackio_writes_rounds_and_pictures_to_its_local_database(whole: Path) -> None:
    pytest.importorskip("trackio")
    root = whole.parents[3] / "trackio"
    (database,) = root.rglob("inference-time-scaling.db")
    with sqlite3.connect(database) as connection:
        logged = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step")
        found = [(name, step, json.loads(metrics)) for name, step, metrics in logged]
    assert {name for name, _, _ in found} == {"-".join(whole.parts[-4:])}
    rounds = {step: values["round/nfe"] for _, step, values in found if "round/nfe" in values}
    assert rounds == {1: 4, 2: 12, 3: 4, 4: 12}
    pictures = [v["pictures/prompt_000"] for _, _, v in found if "pictures/prompt_000" in v]
    assert pictures and all("trackio" in picture["_type"] for picture in pictures)
    assert list(root.rglob("*.png"))


def test_report_to_takes_names_apart_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.tracker.installed", lambda name: True)
    assert asked_trackers(["wandb,mlflow", "wandb"]) == ("wandb", "mlflow")
    with pytest.raises(UserError, match="wandb"):
        asked_trackers(["wand"])
