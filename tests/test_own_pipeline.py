"""A pipeline that neither diffusers nor the project has heard of runs as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from main import main
from pipelines.denoiser import Denoiser
from pipelines.space import LatentSpace
from tests.families import FAMILIES, PROMPT
from tests.own_pipeline import WovenPipeline

OWN = "tests.own_pipeline:WovenPipeline"
CALL: dict[str, Any] = {"side": 32, "num_inference_steps": 4, "strictness": 3.0}


def woven() -> WovenPipeline:
    parts = FAMILIES["sd15"].build().components
    names = ("unet", "scheduler", "vae", "text_encoder", "tokenizer")
    pipe = WovenPipeline(**{name: parts[name] for name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "woven"
    woven().save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "WovenPipeline"
    return str(folder)


def called(root: Path, checkpoint: str, *flags: str, **changes: Any) -> int:
    content = {
        "pretrained_model_name_or_path": checkpoint,
        "pipeline_class": OWN,
        "torch_dtype": "fp32",
        "pipeline_call_args": CALL,
        "verifier_args": {"name": "tests.graders:Brightness"},
        "search_args": {"search_rounds": 1},
        "prompt": PROMPT,
        **changes,
    }
    path = root / "config.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return main([f"--pipeline_config_path={path}", f"--output_dir={root}/out", *flags])


def folder_of(root: Path) -> Path:
    (folder,) = root.glob("out/woven/*/*/*")
    return folder


def rows_of(root: Path) -> list[dict[str, Any]]:
    text = (folder_of(root) / "candidates.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


SEARCHES: dict[str, dict[str, Any]] = {
    "random": {"search_rounds": 2},
    "zero-order": {"search_rounds": 2, "num_neighbors": 2},
    "tests.searches:Halving": {"search_rounds": 1},
    "paths": {"search_rounds": 1},
}


@pytest.mark.parametrize("method", SEARCHES)
def test_searches_run_on_it_end_to_end(method: str, checkpoint: str, tmp_path: Path) -> None:
    search = {"search_method": method, **SEARCHES[method]}
    assert called(tmp_path, checkpoint, search_args=search) == 0
    rows = rows_of(tmp_path)
    assert {row["status"] for row in rows} <= {"ok", "unasked"}
    for row in rows:
        assert row["rows"] == 2 * row["nfe"]  # both halves of guidance
    summary = json.loads((folder_of(tmp_path) / "summary.json").read_text())
    finished = [row["score"] for row in rows if row["step"] == row["steps"]]
    assert summary["prompts"][0]["best"]["score"] == max(finished)
    assert json.loads((folder_of(tmp_path) / "manifest.json").read_text())["pipeline"] == (
        "WovenPipeline"
    )


def test_its_pictures_are_those_of_a_plain_call(checkpoint: str, tmp_path: Path) -> None:
    assert called(tmp_path, checkpoint) == 0
    rows = rows_of(tmp_path)
    generators = [torch.Generator().manual_seed(row["seed"]) for row in rows]
    images = woven()([PROMPT] * len(rows), generator=generators, **CALL).images
    for row, image in zip(rows, images, strict=True):
        written = Image.open(folder_of(tmp_path) / row["path"])
        assert np.array_equal(np.asarray(written), np.asarray(image))


def test_its_packing_is_learned() -> None:
    denoiser = Denoiser(woven(), CALL)
    space = LatentSpace(denoiser, PROMPT)
    drawn = space.draw(2)
    assert drawn.latents.shape == (2, 4, 16)
    for seed, unit in zip(drawn.seeds, space.spatial(drawn.latents), strict=True):
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(unit, noise[0])
    assert torch.equal(space.from_spatial(space.spatial(drawn.latents)), drawn.latents)


def test_its_call_arguments_are_checked_too(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {**CALL, "strictnes": 1.0}
    assert called(tmp_path, checkpoint, pipeline_call_args=call) == 2
    err = capsys.readouterr().err
    assert "WovenPipeline takes no call argument 'strictnes': did you mean 'strictness'?" in err


def test_ones_own_class_may_run_any_checkpoint(tmp_path: Path) -> None:
    """That of a checkpoint whose index names another class with the same parts and more."""
    FAMILIES["sd15"].build().save_pretrained(tmp_path / "model")
    assert called(tmp_path, str(tmp_path / "model"), "--dry_run") == 0


@pytest.mark.parametrize("flags", [["--dry_run"], []])
@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("WovenPipeline", "no pipeline_class 'WovenPipeline': give the path of your own class"),
        ("no.such:Thing", "The pipeline_class 'no.such:Thing' cannot be imported"),
        ("tests.own_pipeline:Absent", "cannot be imported"),
        ("collections:Counter", "asks for a collections:Counter, which is no pipeline"),
        ("json:dumps", "which is no pipeline"),
    ],
)
def test_a_class_that_is_no_pipeline_is_refused(
    own: str,
    said: str,
    flags: list[str],
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("experiment.runner.load_pipeline", loads)
    assert called(tmp_path, checkpoint, *flags, pipeline_class=own) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_an_unknown_class_says_how_to_name_ones_own(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(tmp_path, checkpoint, pipeline_class=None) == 2
    err = capsys.readouterr().err
    assert "asks for a WovenPipeline, which diffusers does not have" in err
    assert "name your own class in 'pipeline_class'" in err and err.count("\n") == 1
