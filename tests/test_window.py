"""Any part of any pipeline's loop: cut or uncut, the bits are plain diffusers' own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from pipelines.denoiser import Denoiser, denoisers
from tests.families import FAMILIES, PROMPT, Family
from utils import UserError

SEEDS = (11, 12)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
INDEPENDENT = [name for name in FAMILIES if name != "flux_img2img"]
# flux_img2img draws the image's latents from the first generator alone, in diffusers itself


def plain(family: Family, pipe: Any, seeds: Sequence[int], **more: Any) -> list[np.ndarray]:
    """What plain diffusers makes of the seeds, as people see it."""
    result = pipe(**{**family.inputs(seeds), **more}, output_type="pil")
    return [np.asarray(media) for media in (result.frames if family.video else result.images)]


def ours(
    denoiser: Denoiser, seeds: Sequence[int], cuts: Sequence[int] = ()
) -> tuple[list[np.ndarray], torch.Tensor]:
    """Images and final latents, cut at these steps; `cuts` counts from where sampling starts."""
    drawn = denoiser.draw(PROMPT, seeds)
    steps = len(denoiser.schedule(PROMPT)) - 1
    latents = drawn.latents
    ends = [drawn.step, *(drawn.step + c for c in cuts), steps]
    for begin, end in pairwise(ends):
        latents = denoiser.denoise(PROMPT, latents, seeds, begin, end).latents
    media = denoiser.decode(PROMPT, latents, seeds, steps).media
    return [np.asarray(m) for m in media], latents


def same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def denoiser(family: Family) -> Iterator[Denoiser]:
    yield Denoiser(family.build(), family.call_args)


def test_cut_and_uncut_equal_plain_diffusers_bit_for_bit(
    family: Family, denoiser: Denoiser
) -> None:
    expected = plain(family, family.build(), SEEDS)
    whole, latents = ours(denoiser, SEEDS)
    assert same(whole, expected)
    for cuts in ((2,), (1, 2)):
        pieces, end = ours(denoiser, SEEDS, cuts)
        assert same(pieces, expected)
        assert torch.equal(end, latents)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_image_does_not_depend_on_its_batch_mates(name: str) -> None:
    denoiser = Denoiser(FAMILIES[name].build(), FAMILIES[name].call_args)
    (first, _), _ = ours(denoiser, (11, 12))
    (again, _), _ = ours(denoiser, (11, 99))
    (_, moved), _ = ours(denoiser, (5, 11))
    assert np.array_equal(first, again)
    # Another place in the batch may round differently (Wan's 3-d convolutions do).
    assert np.abs(first.astype(int) - moved.astype(int)).max() <= 1


@pytest.mark.parametrize("name", INDEPENDENT)
def test_batch_sizes_agree_within_one_of_255(name: str) -> None:
    family = FAMILIES[name]
    pair, _ = ours(Denoiser(family.build(), family.call_args), SEEDS)
    for seed, image in zip(SEEDS, pair, strict=True):
        (alone,) = plain(family, family.build(), (seed,))
        assert np.abs(alone.astype(int) - image.astype(int)).max() <= 1


def test_rows_are_counted_with_guidance_and_only_where_denoised(
    family: Family, denoiser: Denoiser
) -> None:
    counted: list[int] = []
    pipe = family.build()
    for module in denoisers(pipe):
        module.register_forward_hook(
            lambda _, args, kwargs, __: counted.append(len(args[0] if args else _first(kwargs))),
            with_kwargs=True,
        )
    plain(family, pipe, SEEDS)
    drawn = denoiser.draw(PROMPT, SEEDS)
    steps = len(denoiser.schedule(PROMPT)) - 1
    before = denoiser._rows
    done = denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, steps)
    denoiser.decode(PROMPT, done.latents, SEEDS, steps)
    assert done.rows == sum(counted) == denoiser._rows - before
    assert done.rows in (2 * (steps - drawn.step), 4 * (steps - drawn.step))


def _first(kwargs: dict[str, Any]) -> Any:
    return kwargs.get("hidden_states", kwargs.get("x"))


def test_the_pipeline_is_left_as_it_was(family: Family) -> None:
    pipe = family.build()
    denoiser = Denoiser(pipe, family.call_args)
    scheduler, names = pipe.scheduler, ("prepare_latents", "get_timesteps")
    drawing = sys.modules[type(pipe).__module__].randn_tensor
    ours(denoiser, SEEDS, (2,))

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    broken = denoisers(pipe)[0].register_forward_hook(breaks)
    drawn = denoiser.draw(PROMPT, SEEDS)
    with pytest.raises(ZeroDivisionError):
        denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, drawn.step + 1)
    broken.remove()
    assert pipe.scheduler is scheduler
    assert not any(name in vars(pipe) for name in names)
    assert sys.modules[type(pipe).__module__].randn_tensor is drawing
    expected, _ = ours(Denoiser(family.build(), family.call_args), SEEDS)
    assert same(ours(denoiser, SEEDS)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd15", "flux", "klein", "wan", "sana"])
def test_half_precision_cuts_exactly_too(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    pipe = family.build().to(dtype)
    denoiser = Denoiser(pipe, family.call_args)
    whole, latents = ours(denoiser, SEEDS)
    pieces, end = ours(denoiser, SEEDS, (2, 3))
    assert torch.equal(latents, end) and same(whole, pieces)
    assert same(whole, plain(family, family.build().to(dtype), SEEDS))


REMEMBERING = {
    "DPM++ 2M": lambda: DPMSolverMultistepScheduler(**SD),
    "UniPC": lambda: UniPCMultistepScheduler(**SD),
    "PNDM": lambda: PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_solver_with_a_history_runs_whole(name: str) -> None:
    family = FAMILIES["sd15"]
    make = REMEMBERING[name]
    denoiser = Denoiser(family.build(scheduler=make()), family.call_args)
    whole, _ = ours(denoiser, SEEDS)
    assert same(whole, plain(family, family.build(scheduler=make()), SEEDS))
    # PNDM takes one step more than it is asked for
    assert len(denoiser.schedule(PROMPT)) - 1 == family.call_args["num_inference_steps"] + (
        name == "PNDM"
    )


STOCHASTIC = {
    "DDIM eta 1": (lambda: DDIMScheduler(**SD, clip_sample=False), {"eta": 1.0}),
    "Euler ancestral": (lambda: EulerAncestralDiscreteScheduler(**SD), {}),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_of_stochastic_steps_is_keyed_by_seed_and_step(name: str) -> None:
    family = FAMILIES["sd15"]
    make, more = STOCHASTIC[name]
    denoiser = Denoiser(family.build(scheduler=make()), {**family.call_args, **more})
    whole, latents = ours(denoiser, SEEDS)
    pieces, end = ours(denoiser, SEEDS, (1, 4))
    assert same(whole, pieces) and torch.equal(latents, end)
    (alone, _), _ = ours(denoiser, (SEEDS[0], 99))
    assert np.array_equal(alone, whole[0])
    still = Denoiser(family.build(scheduler=DDIMScheduler(**SD)), family.call_args)
    assert not np.array_equal(ours(still, SEEDS)[0][0], whole[0])


def test_the_last_clean_estimate_is_the_final_latents(family: Family, denoiser: Denoiser) -> None:
    drawn = denoiser.draw(PROMPT, SEEDS)
    steps = len(denoiser.schedule(PROMPT)) - 1
    done = denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, steps)
    assert torch.equal(done.clean, done.latents)
    assert done.clean.shape == drawn.latents.shape


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "z_image"])
def test_a_step_from_its_clean_estimate_lands_where_the_scheduler_does(name: str) -> None:
    """For DDIM, Euler and flow matching x' = s' x0 + n' eps with x = s x0 + n eps."""
    denoiser = Denoiser(FAMILIES[name].build(), FAMILIES[name].call_args)
    drawn = denoiser.draw(PROMPT, SEEDS)
    levels = denoiser.schedule(PROMPT)
    first = denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, 2)
    second = denoiser.denoise(PROMPT, first.latents, SEEDS, 2, 3)
    now, then = levels[2], levels[3]
    noise = (first.latents - now.signal * second.clean) / now.noise
    expected = then.signal * second.clean + then.noise * noise
    assert torch.allclose(second.latents, expected, atol=2e-4, rtol=1e-4)


def test_prompts_are_encoded_once(family: Family) -> None:
    if not family.prompted:
        pytest.skip("takes no prompt")
    pipe = family.build()
    calls: list[int] = []
    for name, part in pipe.components.items():
        if name.startswith("text_encoder") and isinstance(part, torch.nn.Module):
            part.register_forward_hook(lambda *_: calls.append(1))
    denoiser = Denoiser(pipe, family.call_args)
    denoiser.schedule(PROMPT, rows=2)
    once = len(calls)
    assert once
    drawn = denoiser.draw(PROMPT, SEEDS)
    done = denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, drawn.step + 1)
    denoiser.decode(PROMPT, done.latents, SEEDS, len(denoiser.schedule(PROMPT, rows=2)) - 1)
    assert len(calls) == once
    denoiser.draw("a blue star", SEEDS)
    assert len(calls) > once


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "qwen_image", "klein", "wan"])
def test_a_guidance_factor_scales_the_pipelines_own(name: str) -> None:
    family = FAMILIES[name]
    key = "true_cfg_scale" if "true_cfg_scale" in family.call_args else "guidance_scale"
    denoiser = Denoiser(family.build(), family.call_args)
    drawn = denoiser.draw(PROMPT, SEEDS)
    steps = len(denoiser.schedule(PROMPT)) - 1
    done = denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, steps, guidance=1.5)
    media = denoiser.decode(PROMPT, done.latents, SEEDS, steps).media
    doubled = plain(family, family.build(), SEEDS, **{key: family.call_args[key] * 1.5})
    assert same([np.asarray(m) for m in media], doubled)
    usual = denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, steps)
    assert not torch.equal(done.latents, usual.latents)


def test_a_pipeline_without_guidance_says_so() -> None:
    family = FAMILIES["flux"]
    denoiser = Denoiser(family.build(), family.call_args)
    denoiser._accepts -= {"guidance_scale"}
    denoiser.call_args.pop("guidance_scale")
    drawn = denoiser.draw(PROMPT, SEEDS)
    with pytest.raises(UserError, match="no guidance scale"):
        denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, 1, guidance=2.0)


def test_negative_prompts_and_lists_are_passed_as_written() -> None:
    family = FAMILIES["sd15"]
    args = {**family.call_args, "negative_prompt": "blurry"}
    whole, _ = ours(Denoiser(family.build(), args), SEEDS)
    expected = plain(family, family.build(), SEEDS, negative_prompt=["blurry"] * 2)
    assert same(whole, expected)
    assert not same(whole, plain(family, family.build(), SEEDS))


def test_euler_scales_its_noise_once() -> None:
    """Latents drawn under Euler are 14 times unit noise, and must not be scaled again."""
    family = FAMILIES["sd15"]
    pipe = family.build(scheduler=EulerDiscreteScheduler(**SD))
    drawn = Denoiser(pipe, family.call_args).draw(PROMPT, SEEDS)
    assert drawn.latents.std() == pytest.approx(float(pipe.scheduler.init_noise_sigma), rel=0.1)
