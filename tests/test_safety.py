"""Pictures that are none: overflowed latents, overflowed decoders, a safety checker's black."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from experiment.config import parse_config
from experiment.runner import run
from pipelines.denoiser import Denoiser
from pipelines.precise import coarse, in_float32
from tests.families import FAMILIES, PROMPT

CALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 5.0}
SEEDS = (1, 2, 3)


def ran(root: Path, checkpoint: str, dtype: str = "fp32", **changes: Any) -> Path:
    content = {
        "pretrained_model_name_or_path": checkpoint,
        "torch_dtype": dtype,
        "pipeline_call_args": CALL,
        "verifier_args": {"name": "tests.graders:Brightness"},
        "search_args": {"search_rounds": 2},
        "prompt": PROMPT,
        **changes,
    }
    return run(parse_config(content), str(root)).folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def best_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]


def overflowing(factor: float = 1e5) -> StableDiffusionPipeline:
    """Stable Diffusion whose decoder goes beyond fp16's 65504 within, and comes back in fp32:
    its first layer's output is so much larger, which the norms behind it take out again."""
    pipe = FAMILIES["sd15"].build()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight *= factor
        pipe.vae.decoder.conv_in.bias *= factor
    return pipe


def decoded(pipe: Any, latents: torch.Tensor) -> Any:
    denoiser = Denoiser(pipe, CALL)
    return denoiser.decode(PROMPT, latents, SEEDS, denoiser.steps(PROMPT))


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_an_overflowing_decoder_has_a_second_try_in_float32(latents: torch.Tensor) -> None:
    half = overflowing().to(torch.float16)
    plain = half.vae.decode(latents.half() / half.vae.config.scaling_factor).sample
    assert not plain.isfinite().any()  # what plain diffusers would make black
    seen = decoded(half, latents.half())
    assert seen.again == [True] * 3 and seen.sound == [True] * 3
    assert half.vae.dtype == torch.float16 and "decode" not in vars(half.vae)
    expected = overflowing()
    expected.vae.to(torch.float16).to(torch.float32)  # the weights' fp16 values
    for image, other in zip(
        seen.media, decoded(expected, latents.half().float()).media, strict=True
    ):
        apart = np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int))
        assert apart.max() <= 1
        assert np.asarray(image).std() > 1


def test_only_the_pictures_that_overflowed_are_decoded_again(latents: torch.Tensor) -> None:
    pipe = overflowing(30.0).to(torch.float16)
    large = latents.half() * torch.tensor([1.0, 1.0, 2e3]).half()[:, None, None, None]
    assert large.isfinite().all()
    seen = decoded(pipe, large)
    assert seen.again == [False, False, True] and all(seen.sound)
    usual = decoded(overflowing(30.0).to(torch.float16), latents.half())
    for image, other in zip(seen.media[:2], usual.media[:2], strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(other))


def test_a_decoder_that_holds_is_asked_once(latents: torch.Tensor) -> None:
    pipe = FAMILIES["sd15"].build().to(torch.float16)
    calls: list[int] = []
    pipe.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    seen = decoded(pipe, latents.half())
    assert seen.again == [False] * 3 and len(calls) == 1
    assert coarse(pipe) and not coarse(FAMILIES["sd15"].build())


def test_the_decoder_is_given_back_as_it_was_even_if_it_breaks() -> None:
    pipe = FAMILIES["sd15"].build().to(torch.float16)
    before = {name: value.clone() for name, value in pipe.vae.state_dict().items()}
    with pytest.raises(ZeroDivisionError), in_float32(pipe.vae):
        assert pipe.vae.dtype == torch.float32
        raise ZeroDivisionError
    assert pipe.vae.dtype == torch.float16
    assert all(torch.equal(value, before[name]) for name, value in pipe.vae.state_dict().items())


@pytest.mark.parametrize("name", ["sdxl", "flux", "sana", "wan", "sd15_img2img"])
def test_every_kind_of_decoder_can_be_asked_in_float32(name: str) -> None:
    """A weight that is no number in any format: the second try is made, and fails."""
    family = FAMILIES[name]
    pipe = family.build().to(torch.float16)
    with torch.no_grad():
        next(pipe.vae.decoder.parameters()).fill_(torch.inf)
    pipe.vae.register_to_config(force_upcast=False)  # or SDXL's pipeline would see to it itself
    denoiser = Denoiser(pipe, {**family.call_args, "num_inference_steps": 2})
    drawn = denoiser.draw(PROMPT, (1, 2))
    seen = denoiser.decode(PROMPT, drawn.latents, (1, 2), denoiser.steps(PROMPT))
    assert seen.again == [True] * 2 and seen.sound == [False] * 2
    assert len(seen.media) == 2 and pipe.vae.dtype == torch.float16


def test_a_run_notes_what_was_decoded_in_float32(tmp_path: Path) -> None:
    overflowing().save_pretrained(tmp_path / "model")
    folder = ran(tmp_path / "out", str(tmp_path / "model"), "fp16")
    rows = rows_of(folder)
    assert len(rows) == 6 and {row["status"] for row in rows} == {"ok"}
    assert all(row["details"]["decoded_in"] == "fp32" for row in rows)
    for row in rows:
        assert np.asarray(Image.open(folder / row["path"])).std() > 1
    quiet = ran(tmp_path / "quiet", str(tmp_path / "model"), "fp32")
    assert all("decoded_in" not in row["details"] for row in rows_of(quiet))


def test_a_decoder_that_fails_in_float32_too_leaves_no_winner(tmp_path: Path) -> None:
    overflowing(1e30).save_pretrained(tmp_path / "model")  # the weights themselves are no numbers
    folder = ran(tmp_path / "out", str(tmp_path / "model"), "fp16")
    assert {row["status"] for row in rows_of(folder)} == {"invalid_image"}
    assert best_of(folder) is None


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_latents_that_overflow_are_no_image_and_never_win(dtype: str, tmp_path: Path) -> None:
    """The denoiser's own numbers go beyond the format: bf16 has the range of float32."""
    pipe = FAMILIES["sd15"].build()
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 1e6 if dtype == "fp16" else 1e38
        pipe.unet.conv_out.bias *= 1e38 if dtype == "bf16" else 1.0
    pipe.save_pretrained(tmp_path / "model")
    folder = ran(tmp_path / "out", str(tmp_path / "model"), dtype)
    rows = rows_of(folder)
    assert {row["status"] for row in rows} == {"invalid_image"}
    assert {row["explanation"] for row in rows} == {"the latents are not finite"}
    assert best_of(folder) is None and all(row["score"] is None for row in rows)


# A safety checker: the real one, tiny.


def checked(threshold: float) -> StableDiffusionPipeline:
    """Stable Diffusion with its safety checker: flagged where a cosine is above the threshold."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(projection_dim=16, text_config=sizes, vision_config=vision)
        )
        checker.concept_embeds.data.normal_()
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(1.1)
    parts = FAMILIES["sd15"].build().components
    extractor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return StableDiffusionPipeline(
        **{**parts, "safety_checker": checker.eval(), "feature_extractor": extractor}
    )


def closeness(pipe: Any, image: Image.Image) -> float:
    """The highest cosine that the checker finds between a picture and what it looks for."""
    clip = pipe.feature_extractor(image, return_tensors="pt").pixel_values
    pooled = pipe.safety_checker.vision_model(clip)[1]
    embedded = pipe.safety_checker.visual_projection(pooled)
    concepts = pipe.safety_checker.concept_embeds
    return float(torch.cosine_similarity(embedded[:, None], concepts[None], dim=-1).max())


def test_what_the_safety_checker_blackens_is_filtered_and_never_wins(tmp_path: Path) -> None:
    """Dark pictures are wanted, so that black would win; the threshold parts the pictures."""
    dark = {"name": "tests.graders:Brightness", "sign": -1.0}
    checked(2.0).save_pretrained(tmp_path / "lenient")
    open_run = ran(tmp_path / "open", str(tmp_path / "lenient"), verifier_args=dark)
    rows = rows_of(open_run)
    assert {row["status"] for row in rows} == {"ok"}
    pipe = checked(2.0)
    found = [closeness(pipe, Image.open(open_run / row["path"])) for row in rows]
    threshold = float(np.median(found))
    checked(threshold).save_pretrained(tmp_path / "strict")
    folder = ran(tmp_path / "strictly", str(tmp_path / "strict"), verifier_args=dark)
    flagged = ["nsfw_filtered" if value > threshold else "ok" for value in found]
    assert [row["status"] for row in rows_of(folder)] == flagged
    assert set(flagged) == {"ok", "nsfw_filtered"}
    for row, before in zip(rows_of(folder), rows, strict=True):
        assert row["seed"] == before["seed"]
        if row["status"] == "nsfw_filtered":
            assert row["score"] is None and not np.asarray(Image.open(folder / row["path"])).any()
        else:
            assert row["score"] == pytest.approx(before["score"])
    best = best_of(folder)
    assert best["score"] == max(r["score"] for r in rows_of(folder) if r["status"] == "ok")


def test_where_everything_is_filtered_nothing_wins(tmp_path: Path) -> None:
    checked(-2.0).save_pretrained(tmp_path / "model")
    folder = ran(tmp_path / "out", str(tmp_path / "model"))
    assert {row["status"] for row in rows_of(folder)} == {"nsfw_filtered"}
    assert best_of(folder) is None and not list(folder.glob("prompt@*.json"))
