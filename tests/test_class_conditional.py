"""Class-conditional pipelines: a prompt is a class, by name or by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from PIL import Image

from experiment.config import parse_config
from experiment.runner import run
from main import main
from pipelines.denoiser import Denoiser
from pipelines.labels import class_names, class_number
from tests.families import FAMILIES
from tests.graders import Asked
from utils import UserError

CLASSES = {"134": "crane", "207": "golden retriever", "517": "crane", "985": "daisy, white daisy"}
CALL = {"num_inference_steps": 2, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny DiT on disk; the names of its classes stand in its index, as DiT's own do."""
    folder = tmp_path_factory.mktemp("models") / "dit"
    FAMILIES["dit"].build().save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": CLASSES}))
    return str(folder)


def config(checkpoint: str, **changes: Any) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": checkpoint,
        "torch_dtype": "fp32",
        "pipeline_call_args": CALL,
        "verifier_args": {"name": "tests.graders:Asked"},
        "search_args": {"search_rounds": 1},
        **changes,
    }


def ran(root: Path, checkpoint: str, **changes: Any) -> Path:
    Asked.told.clear()
    return run(parse_config(config(checkpoint, **changes)), str(root)).folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def plain(checkpoint: str, number: int, seeds: list[int]) -> list[Any]:
    pipe = DiTPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe([number] * len(seeds), generator=generators, **CALL).images
    return [np.asarray(image) for image in images]


def test_each_prompt_of_a_list_is_its_own_class(checkpoint: str, tmp_path: Path) -> None:
    prompts = tmp_path / "classes.txt"
    prompts.write_text("golden retriever\n985\nWhite_Daisy\n")
    folder = ran(tmp_path / "out", checkpoint, prompts=str(prompts), num_prompts="all")
    rows = rows_of(folder)
    assert [row["prompt"] for row in rows] == ["golden retriever"] * 2 + ["985"] * 2 + [
        "White_Daisy"
    ] * 2
    for number, pair in zip((207, 985, 985), (rows[:2], rows[2:4], rows[4:]), strict=True):
        expected = plain(checkpoint, number, [row["seed"] for row in pair])
        for row, image in zip(pair, expected, strict=True):
            assert np.array_equal(np.asarray(Image.open(folder / row["path"])), image)
    assert Asked.told == [
        *[("golden retriever", "207")] * 2,
        *[("985", "985")] * 2,
        *[("White_Daisy", "985")] * 2,
    ]
    records = sorted(p.name for p in folder.glob("prompt@*.json"))
    assert len(records) == 3
    assert records[1].startswith("prompt@White_Daisy_hash@")
    best = [p["best"]["path"] for p in json.loads((folder / "summary.json").read_text())["prompts"]]
    assert all((folder / path).is_file() for path in best)


@pytest.mark.parametrize("asked", ["golden retriever", 207, "207", [207], ["golden_retriever"]])
def test_a_class_among_the_call_arguments_is_every_prompts(
    asked: Any, checkpoint: str, tmp_path: Path
) -> None:
    call = {**CALL, "class_labels": asked}
    folder = ran(tmp_path, checkpoint, pipeline_call_args=call, prompt="a dog in the sun")
    rows = rows_of(folder)
    expected = plain(checkpoint, 207, [row["seed"] for row in rows])
    assert np.array_equal(np.asarray(Image.open(folder / rows[0]["path"])), expected[0])
    assert Asked.told == [("a dog in the sun", "207")] * 2


def test_midway_and_neighbours_keep_to_the_class(checkpoint: str, tmp_path: Path) -> None:
    call = {**CALL, "num_inference_steps": 4}
    for number, method in enumerate(("tests.searches:Halving", "zero-order")):
        search = {"search_method": method, "search_rounds": 1}
        folder = ran(tmp_path / str(number), checkpoint, search_args=search, prompt="daisy",
                     pipeline_call_args=call)  # fmt: skip
        assert {label for _, label in Asked.told} == {"985"}
        assert json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]


def refused(capsys: pytest.CaptureFixture[str], content: Any, tmp_path: Path, *argv: str) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    code = main([f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/out", *argv])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    return err


@pytest.mark.parametrize("dry", [["--dry_run"], []])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("golden retreiver", "no class 'golden retreiver' among the model's 1000: did you mean"
                             " 'golden retriever'?"),
        ("1000", "no class '1000' among the model's 1000"),
        ("-1", "no class '-1'"),
    ],
)  # fmt: skip
def test_an_unknown_class_is_refused_before_weights_load(
    asked: str,
    said: str,
    dry: list[str],
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("experiment.runner.load_pipeline", loads)
    assert said in refused(capsys, config(checkpoint, prompt=asked), tmp_path, *dry)
    given = config(checkpoint, prompt="x", pipeline_call_args={**CALL, "class_labels": asked})
    assert said in refused(capsys, given, tmp_path, *dry)


def test_two_classes_for_one_prompt_are_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(checkpoint, prompt="x", pipeline_call_args={**CALL, "class_labels": [1, 2]})
    assert "holds 2 values for one prompt" in refused(capsys, given, tmp_path)


def test_a_checkpoint_that_names_no_classes_is_asked_by_number() -> None:
    family = FAMILIES["dit"]
    denoiser = Denoiser(family.build(), CALL)
    assert denoiser.label("207") == denoiser.label("class 207") == "207"
    with pytest.raises(UserError, match=r"names none, so ask by number from 0 to 999"):
        denoiser.draw("golden retriever", [0])
    assert Denoiser(FAMILIES["sd15"].build(), {}).label("207") is None


def test_names_are_read_as_the_pipeline_reads_them() -> None:
    pipe = DiTPipeline(**FAMILIES["dit"].build().components, id2label=CLASSES)
    assert class_names(CLASSES) == pipe.labels
    assert class_number("CRANE", pipe.labels) == pipe.get_label_ids(["crane"])[0] == 517
    assert class_number("134", pipe.labels, 1000) == 134
    with pytest.raises(UserError, match="no name of theirs is near it"):
        class_number("zzz", {f"name {i}": i for i in range(30)})
