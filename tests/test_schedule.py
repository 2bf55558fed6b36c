"""Levels against closed forms, the forward process back, and who keeps a history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)

from pipelines.schedule import (
    CLEAN,
    Level,
    clean_estimate,
    is_one_step,
    levels,
    renoised,
    set_steps,
)
from utils import UserError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def leveled(scheduler: Any, steps: int = 10) -> tuple[Any, tuple[Level, ...]]:
    set_steps(scheduler, steps)
    return scheduler, levels(scheduler)


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_flow_levels_are_one_minus_sigma_and_sigma(options: dict[str, Any]) -> None:
    scheduler, found = leveled(FlowMatchEulerDiscreteScheduler(**options))
    assert len(found) == 11 and found[-1] == CLEAN
    for level, sigma in zip(found, scheduler.sigmas.tolist(), strict=True):
        assert level.noise == pytest.approx(sigma)
        assert level.signal == pytest.approx(1 - sigma)


@pytest.mark.parametrize("make", [DDIMScheduler, DDPMScheduler, PNDMScheduler])
def test_variance_preserving_levels_are_roots_of_alpha_bar(make: Any) -> None:
    scheduler, found = leveled(make(**SD))
    for level, t in zip(found, scheduler.timesteps, strict=False):
        bar = float(scheduler.alphas_cumprod[int(t)])
        assert level.signal == pytest.approx(bar**0.5, rel=1e-5)
        assert level.noise == pytest.approx((1 - bar) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("make", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_variance_exploding_levels_are_one_and_sigma(make: Any) -> None:
    scheduler, found = leveled(make(**SD))
    for level, sigma in zip(found[:-1], scheduler.sigmas.tolist(), strict=False):
        assert level == Level(1.0, pytest.approx(sigma))


def test_levels_do_not_disturb_a_running_scheduler() -> None:
    scheduler, before = leveled(FlowMatchEulerDiscreteScheduler())
    scheduler.set_begin_index(4)
    assert levels(scheduler) == before
    assert scheduler.begin_index == 4


def test_coarse_tables_give_the_same_levels() -> None:
    """Pipelines move a scheduler's tables to their device and, at times, their dtype."""
    scheduler, exact = leveled(DDIMScheduler(**SD))
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.half()
    for coarse, level in zip(levels(scheduler), exact, strict=True):
        # half precision rounds a number below 1 by up to 2.5e-4
        assert coarse.signal**2 == pytest.approx(level.signal**2, abs=3e-4)
        assert coarse.noise**2 == pytest.approx(level.noise**2, abs=3e-4)


def test_a_scheduler_with_no_way_back_to_noise_says_so() -> None:
    with pytest.raises(UserError, match="IPNDMScheduler has no forward process"):
        leveled(IPNDMScheduler())
    with pytest.raises(UserError, match="does not run from clean to noise"):
        leveled(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def stepped(scheduler: Any, at: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of random latents: what comes back, the prediction and the latents."""
    draw = torch.Generator().manual_seed(0)
    sample, output = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(2))
    set_steps(scheduler, 10)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(at)
    values = scheduler.step(output, scheduler.timesteps[at], sample, return_dict=False)
    return values, output, sample, scheduler.timesteps[at]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("at", [0, 5, 8])
def test_the_clean_estimate_is_the_schedulers_own(kind: str, at: int) -> None:
    scheduler = DDIMScheduler(**SD, prediction_type=kind, clip_sample=False)
    values, output, sample, _ = stepped(scheduler, at)
    assert clean_estimate(values, scheduler, at, output, sample) is values[1]
    worked_out = clean_estimate(values[:1], scheduler, at, output, sample)
    # at the noisiest step signal is 0.07, which magnifies float32's rounding
    assert torch.allclose(worked_out, values[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("at", [0, 5, 8])
def test_a_velocity_leads_straight_to_the_clean_estimate(at: int, invert: bool) -> None:
    """x0 = x - sigma v; where sigma counts up to 1 (Mochi), x0 = x + (1 - sigma) v."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=invert)
    values, output, sample, _ = stepped(scheduler, at)
    sigma = float(scheduler.sigmas[at])
    expected = sample + (1 - sigma if invert else -sigma) * output
    found = clean_estimate(values, scheduler, at, output, sample)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_last_velocity_leads_to_the_final_latents() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    values, output, sample, _ = stepped(scheduler, 9)
    assert torch.allclose(clean_estimate(values, scheduler, 9, output, sample), values[0])


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(shift=3.0), DDIMScheduler(**SD), EulerDiscreteScheduler(**SD)],
    ids=lambda s: type(s).__name__,
)
def test_renoised_points_have_the_earlier_steps_law(scheduler: Any) -> None:
    """x = s x0 + n eps with x0 ~ N(2, 0.5^2): mean and variance at the earlier level."""
    _, found = leveled(scheduler)
    now, then = found[7], found[3]
    draw = torch.Generator().manual_seed(0)
    n = 400_000
    x0 = 2 + 0.5 * torch.randn(n, generator=draw)
    x = now.signal * x0 + now.noise * torch.randn(n, generator=draw)
    back = renoised(x, torch.randn(n, generator=draw), now, then)
    spread = (then.signal**2 * 0.25 + then.noise**2) ** 0.5
    assert float(back.mean()) == pytest.approx(then.signal * 2, abs=5 * spread / n**0.5)
    assert float(back.std()) == pytest.approx(spread, rel=0.01)


def test_a_clean_point_renoised_is_the_forward_process() -> None:
    x, noise = torch.tensor([3.0]), torch.tensor([-1.0])
    assert renoised(x, noise, CLEAN, Level(0.6, 0.8)).item() == pytest.approx(0.6 * 3 - 0.8)


def test_pure_noise_is_only_scaled() -> None:
    """A flow's step 0 holds no signal, so there is none to keep, and enough noise already."""
    noise = torch.tensor([3.0])
    there = renoised(noise, torch.tensor([-1.0]), Level(0.0, 1.0), Level(0.0, 2.0))
    assert there.item() == pytest.approx(6.0)


def test_back_to_pure_noise_nothing_is_kept() -> None:
    x, noise = torch.tensor([3.0]), torch.tensor([-1.0])
    assert renoised(x, noise, Level(0.4, 0.6), Level(0.0, 1.0)).item() == pytest.approx(-1.0)


def test_renoising_keeps_the_dtype_and_rounds_once() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    found = renoised(x, noise, Level(0.8, 0.6), Level(0.6, 0.8))
    exact = renoised(x.double(), noise, Level(0.8, 0.6), Level(0.6, 0.8))
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


def test_renoising_to_the_same_level_changes_nothing() -> None:
    level = Level(0.6, 0.8)
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(renoised(x, torch.ones(5), level, level), x)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(**SD),
        DDPMScheduler(**SD),
        EulerDiscreteScheduler(**SD),
        EulerAncestralDiscreteScheduler(**SD),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        LCMScheduler(**SD),
        DPMSolverMultistepScheduler(**SD, solver_order=1),
    ],
    ids=lambda s: type(s).__name__,
)
def test_one_step_schedulers_may_be_cut(scheduler: Any) -> None:
    assert is_one_step(scheduler)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(**SD),
        UniPCMultistepScheduler(**SD),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        PNDMScheduler(**SD),
        PNDMScheduler(**SD, skip_prk_steps=True),
        HeunDiscreteScheduler(**SD),
        IPNDMScheduler(),
        CogVideoXDPMScheduler(),  # asks for the last step's estimate as well
        SCMScheduler(),  # takes two steps or arguments of its own, so that it cannot be tried
    ],
    ids=lambda s: type(s).__name__,
)
def test_schedulers_with_a_history_may_not(scheduler: Any) -> None:
    assert not is_one_step(scheduler)
