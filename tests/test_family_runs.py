"""Every family from a config and a checkpoint on disk, through the command line, to its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiment.video import probe, read_frames
from main import main
from tests.families import FAMILIES, PROMPT, Family

FPS = 8
SEARCHES: dict[str, dict[str, Any]] = {
    "random": {"search_rounds": 1},
    "zero-order": {"search_rounds": 2, "num_neighbors": 2, "on_reject": "resample"},
}
Saved = tuple[str, Family, Path]


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A family's name and its tiny checkpoint on disk."""
    folder = tmp_path_factory.mktemp("models") / request.param
    family = FAMILIES[request.param]
    family.build().save_pretrained(folder)
    if "image" in family.call_args:
        family.call_args["image"].save(folder / "start.png")
    return request.param, family, folder


def ran(saved: Saved, root: Path, search: dict[str, Any]) -> Path:
    name, family, model = saved
    call = {**family.call_args, "num_inference_steps": 2}
    if "image" in call:
        call["image"] = str(model / "start.png")
    content = {
        "pretrained_model_name_or_path": str(model),
        "torch_dtype": "fp32",
        "pipeline_call_args": call,
        "verifier_args": {"name": "contrast"},
        "search_args": search,
        "engine_args": {"batch_size": 2},
        "export_args": {"fps": FPS},
        "prompt": PROMPT,
    }
    path = root / "config.json"
    path.write_text(json.dumps(content))
    assert main([f"--pipeline_config_path={path}", f"--output_dir={root}/out"]) == 0
    (folder,) = root.glob(f"out/{name}/contrast/*/*")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", SEARCHES)
def test_a_run_ends_with_its_files(method: str, saved: Saved, tmp_path: Path) -> None:
    _, family, _ = saved
    folder = ran(saved, tmp_path, {"search_method": method, **SEARCHES[method]})
    rows = rows_of(folder)
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["seed"] for row in rows}) == len(rows)
    suffix = ".mp4" if family.video else ".png"
    kept = {row["path"] for row in rows if row["path"]}
    assert kept == {p.name for p in folder.iterdir() if p.suffix == suffix}
    best = json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]
    assert best["score"] == max(row["score"] for row in rows) and best["path"] in kept
    for record in (json.loads(p.read_text()) for p in folder.glob("prompt@*.json")):
        assert Path(record["best_img_path"]).is_file()
    frames = family.call_args.get("num_frames")
    for name in kept:
        if frames is None:
            assert np.asarray(Image.open(folder / name)).std() > 1
        else:
            seen = probe(folder / name)
            assert seen.frames == frames and seen.fps == FPS
            assert len(read_frames(folder / name)) == frames


def test_its_pictures_are_plain_diffusers_own(saved: Saved, tmp_path: Path) -> None:
    _, family, _ = saved
    rows = rows_of(folder := ran(saved, tmp_path, {"search_method": "random", "search_rounds": 1}))
    inputs = {**family.inputs([row["seed"] for row in rows]), "num_inference_steps": 2}
    result = family.build()(**inputs, output_type="pil")
    if family.video:  # MP4 is lossy: its size is all that can be told
        size = result.frames[0][0].size
        assert all(probe(folder / row["path"]).size == size for row in rows)
        return
    for row, image in zip(rows, result.images, strict=True):
        written = np.asarray(Image.open(folder / row["path"]))
        assert np.array_equal(written, np.asarray(image.convert("RGB")))
