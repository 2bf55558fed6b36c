"""Levels against closed forms, the forward process back, and who keeps a history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from pipelines.schedule import CLEAN, Level, is_one_step, levels, renoised, set_steps

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
    ],
    ids=lambda s: type(s).__name__,
)
def test_schedulers_with_a_history_may_not(scheduler: Any) -> None:
    assert not is_one_step(scheduler)
