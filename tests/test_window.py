"""Any part of any pipeline's loop: cut or uncut, the bits are plain diffusers' own."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LTXImageToVideoPipeline,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from PIL import Image

from pipelines.arguments import Classes, batched
from pipelines.denoiser import Denoiser
from pipelines.parts import denoisers
from pipelines.window import StepWindow, Stretch, _substituted
from tests.families import FAMILIES, PROMPT, Family
from utils import UserError

SEEDS = (11, 12)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def plain(family: Family, pipe: Any, seeds: Sequence[int], **more: Any) -> list[np.ndarray]:
    """What plain diffusers makes of the seeds, as people see it."""
    result = pipe(**{**family.inputs(seeds), **more}, output_type="pil")
    return [np.asarray(media) for media in (result.frames if family.video else result.images)]


def ours(
    denoiser: Denoiser, seeds: Sequence[int], cuts: Sequence[int] = ()
) -> tuple[list[np.ndarray], torch.Tensor]:
    """Images and final latents, cut at these steps; `cuts` counts from where sampling starts."""
    drawn = denoiser.draw(PROMPT, seeds)
    steps = denoiser.steps(PROMPT)
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


def trace(pipe: Any) -> list[torch.Tensor]:
    """The latents after each step of the pipeline's next call, filled in as it runs."""
    seen: list[torch.Tensor] = []
    take = pipe.scheduler.step

    @functools.wraps(take)
    def step(*args: Any, **kwargs: Any) -> Any:
        stepped = take(*args, **kwargs)
        seen.append(stepped[0].clone())
        return stepped

    pipe.scheduler.step = step
    return seen


def test_cut_and_uncut_equal_plain_diffusers_bit_for_bit(
    family: Family, denoiser: Denoiser
) -> None:
    untouched = family.build()
    after = trace(untouched)
    expected = plain(family, untouched, SEEDS)
    drawn = denoiser.draw(PROMPT, SEEDS)
    singles = drawn.latents
    for k, latents in enumerate(after, drawn.step):
        singles = denoiser.denoise(PROMPT, singles, SEEDS, k, k + 1).latents
        assert torch.equal(singles, latents[: len(SEEDS)])  # DiT steps guidance's copies as well
    for cuts in ((), (2, 3)):
        images, end = ours(denoiser, SEEDS, cuts)
        assert same(images, expected)
        assert torch.equal(end, singles)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_does_not_depend_on_its_batch_mates(name: str) -> None:
    denoiser = Denoiser(FAMILIES[name].build(), FAMILIES[name].call_args)
    (first, _), _ = ours(denoiser, (11, 12))
    (again, _), _ = ours(denoiser, (11, 99))
    (_, moved), _ = ours(denoiser, (5, 11))
    assert np.array_equal(first, again)
    # Another place in the batch may round differently (Wan's 3-d convolutions do).
    assert np.abs(first.astype(int) - moved.astype(int)).max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
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


def test_the_pipeline_is_left_as_it_was(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = family.build()
    denoiser = Denoiser(pipe, family.call_args)
    untouched = family.build()
    plain(family, untouched, SEEDS)  # a call leaves attributes of diffusers' own behind
    kept = set(vars(untouched)) | {"encode_prompt"} & {*dir(untouched)}
    scheduler = pipe.scheduler
    expected, latents = ours(denoiser, SEEDS, (2,))
    drawing = sys.modules[type(pipe).__module__].randn_tensor
    steps, drawn = denoiser.steps(PROMPT), denoiser.draw(PROMPT, SEEDS)

    def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), monkeypatch.context() as broken:
        broken.setattr(denoisers(pipe)[0], "forward", breaks)
        denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, drawn.step + 1)
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as broken:
        broken.setattr(pipe.vae, "decode", breaks)
        denoiser.decode(PROMPT, latents, SEEDS, steps)
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as broken:
        broken.setattr(torch, "randn", breaks)
        denoiser.draw(PROMPT, SEEDS)
    assert pipe.scheduler is scheduler
    assert set(vars(pipe)) == kept
    assert sys.modules[type(pipe).__module__].randn_tensor is drawing
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
    "DPM++ 2M": (lambda: DPMSolverMultistepScheduler(**SD), 6),
    "UniPC": (lambda: UniPCMultistepScheduler(**SD), 6),
    "PNDM": (lambda: PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1), 7),  # warms up
    "Heun": (lambda: HeunDiscreteScheduler(**SD), 11),  # two a step, but one for the last
    "iPNDM, no way back to noise": (lambda: IPNDMScheduler(), 6),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_solver_with_a_history_runs_whole(name: str) -> None:
    family = FAMILIES["sd15"]
    make, steps = REMEMBERING[name]
    denoiser = Denoiser(family.build(scheduler=make()), family.call_args)
    assert denoiser.steps(PROMPT) == steps
    whole, _ = ours(denoiser, SEEDS)
    assert same(whole, plain(family, family.build(scheduler=make()), SEEDS))


STOCHASTIC: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "DDIM eta 1": ("sd15", lambda: DDIMScheduler(**SD, clip_sample=False), {"eta": 1.0}),
    "Euler ancestral": ("sd15", lambda: EulerAncestralDiscreteScheduler(**SD), {}),
    # The next two call their schedulers without a generator; DiT also steps guidance's copies.
    "flow": ("flux", lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}),
    "DDPM": ("dit", lambda: DDPMScheduler(), {}),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_of_stochastic_steps_is_keyed_by_seed_and_step(name: str) -> None:
    which, make, more = STOCHASTIC[name]
    family = FAMILIES[which]
    denoiser = Denoiser(family.build(scheduler=make()), {**family.call_args, **more})
    whole, latents = ours(denoiser, SEEDS)
    again, _ = ours(denoiser, SEEDS)
    pieces, end = ours(denoiser, SEEDS, (1, 4))
    assert same(whole, again) and same(whole, pieces) and torch.equal(latents, end)
    (alone, _), _ = ours(denoiser, (SEEDS[0], 99))
    assert np.array_equal(alone, whole[0])
    drawn = denoiser.draw(PROMPT, SEEDS).latents
    other = denoiser.denoise(PROMPT, drawn, (SEEDS[0], 99), 0, denoiser.steps(PROMPT)).latents
    assert torch.equal(other[0], latents[0]) and not torch.equal(other[1], latents[1])


def test_no_two_steps_and_no_two_seeds_share_their_noise() -> None:
    stand_in = StepWindow(DDPMScheduler(), Stretch(0, None, None, SEEDS))
    drawn = {float(torch.rand(1, generator=g)) for k in (1, 2) for g in stand_in._generators(k, 2)}
    assert len(drawn) == 4
    copied = [float(torch.rand(1, generator=g)) for g in stand_in._generators(1, 4)]
    assert copied[:2] == copied[2:]  # guidance's copies of a candidate move with it


def test_only_the_first_noise_drawn_is_the_loops_state() -> None:
    noises = iter((torch.zeros(1, 3), torch.ones(1, 3)))
    stand_in = StepWindow(DDIMScheduler(), Stretch(0, None, None, (0,)))
    draw = _substituted(lambda: next(noises), stand_in)
    first, second = draw(), draw()
    assert stand_in.state is first
    assert second.sum() == 3


def test_the_last_clean_estimate_is_the_final_latents(family: Family, denoiser: Denoiser) -> None:
    drawn = denoiser.draw(PROMPT, SEEDS)
    steps = len(denoiser.schedule(PROMPT)) - 1
    done = denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, steps)
    assert torch.equal(done.clean, done.latents)
    assert done.clean.shape == drawn.latents.shape


@pytest.mark.parametrize("at", [2, 4])  # of 6: the middle, and the last but one
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "z_image"])
def test_a_step_from_its_clean_estimate_lands_where_the_scheduler_does(name: str, at: int) -> None:
    """For DDIM, Euler and flow matching x' = s' x0 + n' eps with x = s x0 + n eps."""
    denoiser = Denoiser(FAMILIES[name].build(), FAMILIES[name].call_args)
    drawn = denoiser.draw(PROMPT, SEEDS)
    levels = denoiser.schedule(PROMPT)
    first = denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, at)
    second = denoiser.denoise(PROMPT, first.latents, SEEDS, at, at + 1)
    now, then = levels[at], levels[at + 1]
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


def test_guidance_is_changed_where_it_takes_effect() -> None:
    """A true scale beside a distilled one counts above 1 with a negative prompt."""
    flux, qwen, wan = (FAMILIES[name] for name in ("flux", "qwen_image", "wan"))
    both = {"true_cfg_scale": 3.0, "guidance_scale": 3.5}
    for family, args, changed in (
        (flux, both, {"guidance_scale": 7.0}),
        (flux, {**both, "negative_prompt": "blurry"}, {"true_cfg_scale": 6.0}),
        (flux, {"true_cfg_scale": 1.0, "negative_prompt": "blurry"}, {"guidance_scale": 7.0}),
        (qwen, {"negative_prompt": " "}, {"true_cfg_scale": 8.0}),
        (wan, {"guidance_scale_2": 2.0}, {"guidance_scale": 10.0, "guidance_scale_2": 4.0}),
    ):
        assert Denoiser(family.build(), args)._guided(2.0) == changed
        assert Denoiser(family.build(), args)._guided(1.0) == {}


def test_a_pipeline_without_guidance_says_so() -> None:
    flux = FAMILIES["flux"].build()
    flux.transformer.register_to_config(guidance_embeds=False)  # as FLUX.1-schnell
    qwen = FAMILIES["qwen_image"].build()
    for pipe, args in ((flux, {"guidance_scale": 3.5}), (qwen, {"true_cfg_scale": 4.0})):
        args = {**args, "num_inference_steps": 2, "height": 32, "width": 32}
        denoiser = Denoiser(pipe, args)
        drawn = denoiser.draw(PROMPT, SEEDS)
        with pytest.raises(UserError, match="no guidance scale"):
            denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, 1, guidance=2.0)


@pytest.mark.parametrize("written", ["blurry", ["blurry"]])
def test_a_negative_prompt_is_every_candidates(written: Any) -> None:
    family = FAMILIES["sd15"]
    whole, _ = ours(
        Denoiser(family.build(), {**family.call_args, "negative_prompt": written}), SEEDS
    )
    expected = plain(family, family.build(), SEEDS, negative_prompt=["blurry"] * 2)
    assert same(whole, expected)
    assert not same(whole, plain(family, family.build(), SEEDS))


def test_several_negative_prompts_for_one_prompt_are_refused() -> None:
    family = FAMILIES["sd15"]
    denoiser = Denoiser(family.build(), {**family.call_args, "negative_prompt": ["a", "b"]})
    with pytest.raises(UserError, match=r"'negative_prompt' .* holds 2 values for one prompt"):
        denoiser.draw(PROMPT, SEEDS)


class Texts:
    """A pipeline that takes texts of several kinds, and does nothing."""

    scheduler = None
    components: dict[str, Any] = {}  # noqa: RUF012

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(
        self,
        prompt: str | list[str],
        prompt_2: str | list[str] | None = None,
        negative_prompt: str = "",
        system_prompt: str | None = None,
        chi_prompt: list[str] | None = None,
        prompt_template: dict[str, Any] | None = None,
        generator: Any = None,
    ) -> None: ...


def test_only_texts_that_the_call_takes_lists_of_are_put_in_lists() -> None:
    given = {
        "prompt_2": "tall",
        "negative_prompt": "blurry",
        "system_prompt": "You draw.",
        "chi_prompt": ["Enhance.", "Prompt:"],
        "prompt_template": {"template": "{}"},
    }
    pipe = Texts()
    parameters = inspect.signature(type(pipe).__call__).parameters
    arguments = batched(parameters, Classes(pipe, parameters, ()), given, PROMPT, SEEDS)
    del arguments["generator"]
    assert arguments == {**given, "prompt": [PROMPT] * 2, "prompt_2": ["tall"] * 2}


def test_euler_scales_its_noise_once() -> None:
    """Latents drawn under Euler are 14 times unit noise, and must not be scaled again."""
    family = FAMILIES["sd15"]
    pipe = family.build(scheduler=EulerDiscreteScheduler(**SD))
    drawn = Denoiser(pipe, family.call_args).draw(PROMPT, SEEDS)
    assert drawn.latents.std() == pytest.approx(float(pipe.scheduler.init_noise_sigma), rel=0.1)


def test_media_are_pictures_or_lists_of_frames(family: Family, denoiser: Denoiser) -> None:
    drawn = denoiser.draw(PROMPT, SEEDS)
    decoded = denoiser.decode(PROMPT, drawn.latents, SEEDS, denoiser.steps(PROMPT))
    assert len(decoded.media) == len(SEEDS) and decoded.filtered == [False] * len(SEEDS)
    assert denoiser.video == family.video
    for media in decoded.media:
        frames = media if family.video else [media]
        assert len(frames) == family.call_args.get("num_frames", 1)
        assert all(isinstance(frame, Image.Image) for frame in frames)


def test_a_decoder_draws_the_noise_it_draws_in_plain_diffusers() -> None:
    """LTX's later decoders take noise from the generators that have drawn the latents."""
    family = FAMILIES["ltx"]
    args = {**family.call_args, "decode_timestep": 0.05, "decode_noise_scale": 0.5}

    def build() -> Any:
        pipe = family.build()
        config = {**pipe.vae.config, "timestep_conditioning": True}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe.vae = AutoencoderKLLTXVideo.from_config(config).eval()
        return pipe

    denoiser = Denoiser(build(), args)
    whole, latents = ours(denoiser, SEEDS, (2,))
    assert same(whole, plain(Family("", build, args, video=True), build(), SEEDS))
    others = denoiser.decode(PROMPT, latents, (SEEDS[0], 99), denoiser.steps(PROMPT)).media
    assert np.array_equal(np.asarray(others[0]), whole[0])
    assert not np.array_equal(np.asarray(others[1]), whole[1])


def test_a_pipeline_without_prompts_cuts_exactly_too() -> None:
    def build() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = UNet2DModel(
                sample_size=8,
                block_out_channels=(4, 8),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            )
        pipe = DDIMPipeline(unet.eval(), DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    result = build()(batch_size=2, generator=generators, num_inference_steps=6)
    whole, _ = ours(Denoiser(build(), {"num_inference_steps": 6}), SEEDS, (2, 3))
    assert same(whole, [np.asarray(image) for image in result.images])


def test_a_first_order_dpm_solver_may_be_cut() -> None:
    family = FAMILIES["sd15"]

    def build() -> Any:
        return family.build(scheduler=DPMSolverMultistepScheduler(**SD, solver_order=1))

    pieces, _ = ours(Denoiser(build(), family.call_args), SEEDS, (1, 4))
    assert same(pieces, plain(family, build(), SEEDS))


def recast(pipeline_class: Any, family: Family) -> Any:
    """Another pipeline made of a family's parts."""
    parts = dict(family.build().components)
    unchecked = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    pipe = pipeline_class(**parts, **unchecked)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("name", "pipeline_class"),
    [("sd15", StableDiffusionInpaintPipeline), ("ltx", LTXImageToVideoPipeline)],
)
def test_a_pipeline_that_changes_its_latents_between_steps_is_refused(
    name: str, pipeline_class: Any, steps: int
) -> None:
    """Inpainting blends its mask in, image to video holds the first frame."""
    family = FAMILIES[name]
    size = family.call_args["width"], family.call_args["height"]
    args = {**family.call_args, "image": Image.new("RGB", size, "teal")}
    if name == "sd15":
        args["mask_image"] = Image.linear_gradient("L").resize(size)
    denoiser = Denoiser(recast(pipeline_class, family), args)
    drawn = denoiser.draw(PROMPT, SEEDS[:1])
    with pytest.raises(UserError, match="changes its latents between two steps"):
        denoiser.denoise(PROMPT, drawn.latents, SEEDS[:1], drawn.step, drawn.step + steps)


def test_looking_between_steps_is_not_counted_and_done_once() -> None:
    family = FAMILIES["sd15"]
    denoiser = Denoiser(family.build(), family.call_args)
    forwards: list[int] = []
    denoiser.pipe.unet.register_forward_hook(lambda *_: forwards.append(1))
    latents = denoiser.draw(PROMPT, SEEDS).latents
    for k in range(3):
        done = denoiser.denoise(PROMPT, latents, SEEDS, k, k + 1)
        latents = done.latents
        assert done.rows == 4  # two candidates, with guidance
    assert denoiser._rows == 12
    assert len(forwards) == 3 + 2


def test_a_pipeline_that_copies_its_scheduler_is_refused() -> None:
    """As those do that denoise sound beside their video."""
    stand_in = StepWindow(FlowMatchEulerDiscreteScheduler(), Stretch(0, None, None, (0,)))
    with pytest.raises(UserError, match="second set of latents"):
        copy.deepcopy(stand_in)


class Connected(StableDiffusionPipeline):
    """Runs a model before its loop, as pipelines with a text connector do."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        encoded = super().encode_prompt(*args, **kwargs)
        self.unet(torch.zeros(1, 4, 8, 8), 0, encoded[0][:1])
        return encoded


def test_a_model_that_runs_before_the_loop_neither_counts_nor_ends_the_draw() -> None:
    family = FAMILIES["sd15"]
    denoiser = Denoiser(recast(Connected, family), family.call_args)
    images, _ = ours(denoiser, SEEDS)
    assert same(images, plain(family, family.build(), SEEDS))
    assert denoiser._rows == 2 * len(SEEDS) * denoiser.steps(PROMPT)


class NeverAsked(StableDiffusionPipeline):
    """Has a way to drop its first steps, but its call does not take it."""

    def get_timesteps(self) -> None:
        raise AssertionError


class SometimesAsked(NeverAsked):
    """Drops its first steps only where an argument asks for it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("strength"):
            self.get_timesteps()
        return super().__call__(*args, **kwargs)

    __call__.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        StableDiffusionPipeline.__call__
    )


def test_steps_are_cut_where_the_call_itself_would_drop_them() -> None:
    family = FAMILIES["sd15"]
    expected = plain(family, family.build(), SEEDS)
    pieces, _ = ours(Denoiser(recast(NeverAsked, family), family.call_args), SEEDS, (2, 3))
    assert same(pieces, expected)
    with pytest.raises(UserError, match="another step than step 2"):
        ours(Denoiser(recast(SometimesAsked, family), family.call_args), SEEDS, (2, 3))


def test_a_schedule_cut_short_by_an_argument_is_refused() -> None:
    family = FAMILIES["sdxl"]
    with pytest.raises(UserError, match=r"took 3 steps instead of 6.*shorten its schedule"):
        ours(Denoiser(family.build(), {**family.call_args, "denoising_end": 0.6}), SEEDS)
