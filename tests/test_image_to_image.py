"""From a picture: a config names it, the checkpoint's sibling takes it, sampling starts late."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from experiment.config import load_config, parse_config
from experiment.replay import replay
from experiment.runner import plan, run
from main import main
from pipelines.denoiser import Denoiser
from pipelines.loading import load_scheduler
from pipelines.schedule import set_steps
from pipelines.space import LatentSpace
from pipelines.start_image import first_step, from_image, load_picture
from tests.families import FAMILIES, PROMPT
from utils import UserError

BUNDLED = "shapes/models/shapes-sd"  # whose pictures mean something
STEPS = 4
SIZE = {"flux": {"height": 32, "width": 32, "max_sequence_length": 32}, "sd15": {}}
SIBLINGS = {"flux": FluxImg2ImgPipeline, "sd15": StableDiffusionImg2ImgPipeline}
Models = dict[str, str]

each = pytest.mark.parametrize("name", SIBLINGS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny text-to-image checkpoints on disk."""
    root = tmp_path_factory.mktemp("models")
    for name in SIBLINGS:
        FAMILIES[name].build().save_pretrained(root / name)
    return {name: str(root / name) for name in SIBLINGS}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth picture, 32 pixels a side."""
    ramp = np.linspace(0, 255, 32)
    red, green = np.meshgrid(ramp, ramp)
    pixels = np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "ramp.png"
    Image.fromarray(pixels).save(path)
    return path


def config(checkpoint: str, **changes: Any) -> dict[str, Any]:
    size = SIZE.get(Path(checkpoint).name, {})
    return {
        "pretrained_model_name_or_path": checkpoint,
        "torch_dtype": "fp32",
        "pipeline_call_args": {"num_inference_steps": STEPS, **size},
        "verifier_args": {"name": "tests.graders:Brightness"},
        "search_args": {"search_rounds": 1},
        "prompt": "a red circle",
        **changes,
    }


def ran(root: Path, checkpoint: str, **changes: Any) -> Path:
    return run(parse_config(config(checkpoint, **changes)), str(root)).folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


@each
def test_a_run_equals_plain_diffusers_called_once_a_candidate(
    name: str, models: Models, picture: Path, tmp_path: Path
) -> None:
    checkpoint = models[name]
    folder = ran(tmp_path, checkpoint, init_image=str(picture), strength=0.7,
                 engine_args={"batch_size": 2})  # fmt: skip
    pipe = SIBLINGS[name].from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    args = {**config(checkpoint)["pipeline_call_args"], "image": Image.open(picture)}
    rows = rows_of(folder)
    for row in rows:
        generator = torch.Generator().manual_seed(row["seed"])
        (alone,) = pipe("a red circle", generator=generator, strength=0.7, **args).images
        apart = np.abs(pixels(folder / row["path"]) - np.asarray(alone, dtype=int))
        assert apart.max() <= 1  # of 255: batch sizes round differently
    one, other = (pixels(folder / row["path"]) for row in rows)
    assert not np.array_equal(one, other)
    first = STEPS - rows[0]["nfe"]
    assert 0 < first < STEPS and rows[0]["step"] == STEPS
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["init_image"], saved["strength"]) == (str(picture), 0.7)


def test_the_less_is_painted_over_the_nearer_the_picture(picture: Path, tmp_path: Path) -> None:
    given = pixels(picture)
    apart, nfe = [], []
    for strength in (0.25, 0.5, 1.0):
        folder = ran(tmp_path / str(strength), BUNDLED, init_image=str(picture), strength=strength)
        rows = rows_of(folder)
        nfe.append(rows[0]["nfe"])
        apart.append(np.mean([np.abs(pixels(folder / r["path"]) - given).mean() for r in rows]))
    assert apart == sorted(apart) and apart[2] > 1.5 * apart[0]
    assert nfe == [1, 2, 4]


@each
def test_zero_order_moves_where_sampling_starts_by_noise_that_fits(
    name: str, models: Models, picture: Path, tmp_path: Path
) -> None:
    search = {"search_method": "zero-order", "search_rounds": 2, "num_neighbors": 2,
              "threshold": 0.9, "on_reject": "resample"}  # fmt: skip
    content = config(models[name], init_image=str(picture), strength=0.7, search_args=search)
    folder = run(parse_config(content), str(tmp_path)).folder
    rows = rows_of(folder)
    near = [row for row in rows if row["recipe"]["op"] == "perturb"]
    assert near and all(row["recipe"]["cosine"] == 0.9 and row["parents"] for row in near)
    assert all(row["recipe"]["drawn"] == rows[0]["seed"] for row in near[:2])
    assert replay(folder, str([row for row in near if row["path"]][-1]["id"]), {}).same
    assert {row["status"] for row in rows} == {"ok"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["prompts"][0]["best"]["score"] == max(row["score"] for row in rows)
    assert plan(parse_config(content)).most.nfe >= summary["total"]["nfe"]  # type: ignore[union-attr]
    again = run(parse_config(json.loads((folder / "config.json").read_text())), str(tmp_path))
    assert [r["score"] for r in rows_of(again.folder)] == [r["score"] for r in rows]


@each
def test_neighbours_lie_on_the_noises_shell_and_stay_there(name: str) -> None:
    """The picture's part stays as it is, and 20 rounds of neighbours add no noise."""
    family = FAMILIES[f"{name}_img2img"]
    denoiser = Denoiser(family.build(), family.call_args)
    space = LatentSpace(denoiser, PROMPT)
    pivot = space.draw(1)
    assert pivot.step == space.first > 0
    still = denoiser.picture(PROMPT, pivot.seeds[0])
    level = denoiser.schedule(PROMPT)[space.first].noise
    first = (pivot.latents - still).flatten(1)
    assert float(first.std()) == pytest.approx(level, rel=0.3)  # of some 64 numbers
    for cosine in (0.5, 0.0, -1.0):
        near = (space.perturb(pivot, 1, cosine).latents - still).flatten(1)
        assert float(torch.cosine_similarity(near, first)) == pytest.approx(cosine, abs=1e-4)
    for _ in range(20):
        pivot = space.perturb(pivot, 1, 0.9)
    last = (pivot.latents - still).flatten(1)
    assert float(last.norm()) == pytest.approx(float(first.norm()), rel=1e-4)


def test_neighbours_of_points_on_the_way_lie_as_far_off_as_their_noise_says() -> None:
    family = FAMILIES["flux_img2img"]
    denoiser = Denoiser(family.build(), family.call_args)
    space = LatentSpace(denoiser, PROMPT)
    taken_back = space.renoise(replace(space.draw(1), step=space.first + 1), space.first)
    near = space.perturb(taken_back, 8, 0.9)
    moved = (near.latents - taken_back.latents).flatten(1).square().mean(1).sqrt()
    level = denoiser.schedule(PROMPT)[space.first].noise
    assert torch.allclose(moved, torch.full((8,), level * 0.2**0.5), rtol=0.2)


def test_a_search_that_stops_midway_starts_from_the_picture(
    models: Models, picture: Path, tmp_path: Path
) -> None:
    call = {"num_inference_steps": 10}
    search = {"search_method": "tests.searches:Halving", "search_rounds": 1}
    changes = {"pipeline_call_args": call, "search_args": search}
    folder = ran(tmp_path, models["sd15"], init_image=str(picture), strength=0.8, **changes)
    steps = [(row["step"], row["nfe"]) for row in rows_of(folder)]
    assert steps == [(5, 3)] * 4 + [(10, 6)] * 2


@each
@pytest.mark.parametrize("strength", [0.35, 0.5, 0.75, 0.99, 1.0])
def test_the_plan_knows_the_step_that_the_pipeline_starts_at(
    name: str, models: Models, strength: float
) -> None:
    build, family = SIBLINGS[name], FAMILIES[f"{name}_img2img"]
    for steps in (5, 8):
        call = {**family.call_args, "strength": strength, "num_inference_steps": steps}
        pipe = family.build(scheduler=load_scheduler(models[name]))
        scheduler = load_scheduler(models[name])
        set_steps(scheduler, steps)
        first = first_step(build, scheduler, steps, strength)
        assert (first, steps) == Denoiser(pipe, call).span(PROMPT)


def test_a_plan_counts_from_the_picture_on(
    models: Models, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    content = config(models["sd15"], init_image=str(picture), strength=0.5, budget={"nfe": 3})
    path.write_text(json.dumps(content))
    flags = [f"--pipeline_config_path={path}", "--dry_run"]
    assert main(flags) == 0  # 3 are less than 4 steps, but enough for the 2 of a picture
    assert "2 per prompt (2 steps per image)" in capsys.readouterr().out
    assert main([*flags, "--set=budget.nfe=1"]) == 2
    assert "cannot finish one image of 2 steps" in capsys.readouterr().err
    assert main([*flags, "--set=strength=0.1"]) == 2
    assert "Of 4 steps this strength leaves none to take" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ses", "evolution", "draft"])
def test_a_search_over_pure_noise_is_refused_before_anything_loads(
    method: str, models: Models, picture: Path
) -> None:
    asked = {"init_image": str(picture), "strength": 0.5, "budget": {"seconds": 3}}
    content = config(models["sd15"], search_args={"search_method": method}, **asked)
    with pytest.raises(UserError, match="starts from a picture has none: use random, zero-order"):
        plan(parse_config(content))


def test_a_plan_of_a_checkpoint_that_is_not_here_counts_by_the_strength(picture: Path) -> None:
    def most(**changes: Any) -> Any:
        planned = plan(parse_config(config("owner/name", init_image=str(picture), **changes)))
        assert planned.most is not None
        return planned.most.nfe

    assert most(strength=0.5) == 4
    assert most(strength=0.5, budget={"nfe": 3}) == 2
    assert most() == 8
    with pytest.raises(UserError, match="no picture"):
        plan(parse_config(config("owner/name", init_image="no/such.png")))


def test_the_picture_may_stand_among_the_call_arguments(
    models: Models, picture: Path, tmp_path: Path
) -> None:
    call = {"num_inference_steps": STEPS}
    one = ran(tmp_path / "one", models["sd15"], init_image=str(picture), strength=0.5)
    image = {**call, "image": str(picture), "strength": 0.5}
    other = ran(tmp_path / "other", models["sd15"], pipeline_call_args=image)
    for left, right in zip(rows_of(one), rows_of(other), strict=True):
        assert (one / left["path"]).read_bytes() == (other / right["path"]).read_bytes()


def test_a_pipeline_that_takes_no_size_has_the_picture_brought_to_it(
    models: Models, picture: Path, tmp_path: Path
) -> None:
    call = {"num_inference_steps": STEPS, "height": 64, "width": 96}
    changes = {"init_image": str(picture), "pipeline_call_args": call}
    folder = ran(tmp_path, models["sd15"], strength=0.5, **changes)
    assert {Image.open(path).size for path in folder.glob("*.png")} == {(96, 64)}


def test_pictures_are_read_upright_in_rgb_and_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    read = load_picture(str(tmp_path / "clear.png"))
    assert read.mode == "RGB"
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((1, 0)) == (255, 0, 0)
    turned = Image.new("L", (6, 2), 128)
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_picture(str(tmp_path / "turned.jpg")).size == (2, 6)


def test_a_picture_is_looked_for_beside_the_config(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "start.png").write_bytes(picture.read_bytes())
    path = tmp_path / "mine" / "config.json"
    path.write_text(json.dumps(config(BUNDLED, init_image="start.png")))
    found = load_config(str(path), {}).init_image
    assert found is not None and Path(found).samefile(tmp_path / "mine" / "start.png")
    path.write_text(json.dumps(config(BUNDLED, init_image=str(picture))))
    assert load_config(str(path), {}).init_image == str(picture)


def test_siblings_are_diffusers_own() -> None:
    class Mine(StableDiffusionPipeline):
        pass

    assert from_image(StableDiffusionPipeline) is StableDiffusionImg2ImgPipeline
    assert from_image(Mine) is StableDiffusionImg2ImgPipeline
    assert from_image(FluxImg2ImgPipeline) is FluxImg2ImgPipeline


WRONG = [
    ({"init_image": "no/such.png"}, "no picture 'no/such.png'"),
    ({"init_image": "README.md"}, "The picture 'README.md' cannot be read"),
    ({"strength": 0.5}, "'strength' goes with a picture"),
    ({"init_image": "x.png", "strength": 1.5}, "strength"),
    ({"init_image": "x.png", "strength": 0}, "strength"),
    ({"strength": 0.5, "pipeline_call_args": {"image": "x", "strength": 1}}, "stands twice"),
    (
        {"init_image": "x.png", "pipeline_call_args": {"image": "y.png"}},
        "say the same: keep one",
    ),
]


@pytest.mark.parametrize("flags", [["--dry_run"], []])
@pytest.mark.parametrize("case", WRONG, ids=lambda case: str(case[0]))
def test_a_wrong_picture_is_refused(
    case: Any, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("experiment.runner.load_pipeline", loads)
    changes, said = case
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(BUNDLED, **changes)))
    assert main([f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/o", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["dit", "ltx", "sana"])
def test_a_pipeline_without_such_a_sibling_is_refused(
    name: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    pipe.save_config(tmp_path / "model")
    pipe.scheduler.save_pretrained(tmp_path / "model" / "scheduler")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(str(tmp_path / "model"), init_image=str(picture))))
    assert main([f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/o"]) == 2
    assert "knows no form of it that starts from an image" in capsys.readouterr().err


def test_a_pipeline_that_takes_an_image_but_no_strength_says_so(
    picture: Path, tmp_path: Path
) -> None:
    FAMILIES["klein"].build().save_config(tmp_path)
    content = config(str(tmp_path), init_image=str(picture), strength=0.5)
    FAMILIES["klein"].build().scheduler.save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match="takes an image, but no strength"):
        plan(parse_config(content))
