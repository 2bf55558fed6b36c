"""Steps with noise: equal to the field's samplers, with the marginals of steps without it."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from diffusers.schedulers import scheduling_ddim
from torch import Tensor

import pipelines.sde
from pipelines.denoiser import Denoiser
from pipelines.devices import sent
from pipelines.schedule import CLEAN, Level, levels
from pipelines.sde import Sde, step_noise, step_without_noise, with_noise
from pipelines.space import LatentSpace, noised
from search.core import Candidates
from tests.families import FAMILIES

PROMPT = "a photo"
PATHS = ("variance-preserving", "linear")


class Mixture:
    """Scalars from two Gaussians, for which the best estimate at any level is known."""

    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    centres = torch.tensor([-1.0, 1.5], dtype=torch.float64)
    spread = 0.4

    def clean(self, x: Tensor, level: Level) -> Tensor:
        """E[x0 | x] for x = signal x0 + noise n; x is [n]."""
        variance = (level.signal * self.spread) ** 2 + level.noise**2
        delta = x[:, None] - level.signal * self.centres
        logits = self.weights.log() - delta**2 / (2 * variance)
        means = self.centres + level.signal * self.spread**2 / variance * delta
        return (torch.softmax(logits, 1) * means).sum(1)

    def below(self, cut: float, level: Level) -> float:
        """P(x < cut) at this level."""
        sd = math.sqrt((level.signal * self.spread) ** 2 + level.noise**2)
        at = (cut - level.signal * self.centres) / sd
        return float((self.weights * torch.special.ndtr(at)).sum())

    def moments(self, level: Level) -> tuple[float, float]:
        """Mean and variance of x at this level."""
        mean = float((self.weights * self.centres).sum())
        second = float((self.weights * (self.centres**2 + self.spread**2)).sum())
        return level.signal * mean, level.signal**2 * (second - mean**2) + level.noise**2


def vp_levels(steps: int) -> list[Level]:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return list(levels(scheduler))


def straight_levels(steps: int) -> list[Level]:
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    return [Level(1 - t, t) for t in times[:-1]] + [CLEAN]


SCHEDULES = {"straight": straight_levels(250), "diffusion": vp_levels(250)}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_marginals_at_each_step_are_those_of_the_ode(
    schedule: str, path: Any, eta: float
) -> None:
    """20,000 scalars of a mixture: the share below two cuts, mean and variance, at every step.

    The Monte-Carlo error of a share is at most 0.0035; the steps' own error fills the rest.
    """
    law, found = Mixture(), SCHEDULES[schedule]
    sde, n = Sde(path, eta), 20_000
    draw = torch.Generator().manual_seed(0)

    def unit() -> Tensor:
        return torch.randn(n, dtype=torch.float64, generator=draw)

    where = torch.multinomial(law.weights, n, replacement=True, generator=draw)
    x = ode = found[0].signal * (law.centres[where] + law.spread * unit()) + found[0].noise * unit()
    apart = 0.0
    for now, then in pairwise(found):
        mean, scale = sde.mean(x, law.clean(x, now), now, then)
        x = mean + scale * unit()
        ode = Sde(eta=0).mean(ode, law.clean(ode, now), now, then)[0]
        for cut in (-0.5, 0.5):
            share = float((x < cut).double().mean())
            assert abs(share - law.below(cut, then)) < 0.02
            assert abs(share - float((ode < cut).double().mean())) < 0.025
        mean_there, variance = law.moments(then)
        assert abs(float(x.mean()) - mean_there) < 0.03
        assert abs(float(x.var()) / variance - 1) < 0.04
        apart = max(apart, float((x - ode).abs().mean()))
    assert apart > 0.2  # it did stir


def test_variance_preserving_noise_is_what_the_forward_process_leaves_open() -> None:
    """The posterior of a Markov chain that runs through both levels, by Bayes' rule."""
    for now, then in [(Level(0.3, 0.7), Level(0.5, 0.5)), (Level(0.6, 0.8), Level(0.8, 0.6))]:
        keep = now.signal / then.signal
        step = now.noise**2 - (keep * then.noise) ** 2
        posterior = 1 / (1 / then.noise**2 + keep**2 / step)
        assert math.isclose(Sde().scale(now, then), math.sqrt(posterior))
    assert Sde().scale(Level(0.0, 1.0), Level(0.1, 0.9)) == 0.9  # of pure noise nothing is kept
    assert Sde().scale(Level(0.1, 0.9), CLEAN) == 0.0


def test_the_linear_path_adds_its_own_diffusion_at_any_scale() -> None:
    now, then = Level(0.6, 0.4), Level(0.65, 0.35)
    expected = 3 * 0.4**2 * math.sqrt(0.05)
    assert math.isclose(Sde("linear").scale(now, then), expected)
    larger = [Level(2 * level.signal, 2 * level.noise) for level in (now, then)]
    assert math.isclose(Sde("linear").scale(*larger), 2 * expected)
    assert Sde("linear").scale(Level(0.0, 1.0), Level(0.5, 0.5)) == 0.5  # never all and more


def test_it_is_ddims_eta() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(10)
    x, output, noise = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    for at in (0, 4, 8):
        stepped, clean = scheduler.step(
            output, scheduler.timesteps[at], x, eta=0.7, variance_noise=noise, return_dict=False
        )
        now, then = levels(scheduler)[at : at + 2]
        mean, scale = Sde(eta=0.7).mean(x, clean, now, then)
        assert torch.allclose(mean + scale * noise, stepped, atol=1e-6)


def test_it_is_eulers_ancestral_step() -> None:
    ancestral, plain = EulerAncestralDiscreteScheduler(), EulerDiscreteScheduler()
    x, output = torch.randn(2, 1, 1, 4, 4)
    for scheduler in (ancestral, plain):
        scheduler.set_timesteps(10)
        scheduler.scale_model_input(10 * x, scheduler.timesteps[0])
    arguments = (output, ancestral.timesteps[0], 10 * x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    stepped = ancestral.step(*arguments, torch.Generator().manual_seed(1)).prev_sample
    clean = plain.step(output, plain.timesteps[0], 10 * x).pred_original_sample
    mean, scale = Sde().mean(10 * x, clean, *levels(plain)[:2])
    assert torch.allclose(mean + scale * noise, stepped, atol=1e-4)


def test_a_schedulers_own_noise_is_found_and_left_out() -> None:
    scheduler = LCMScheduler()
    scheduler.set_timesteps(4)
    x, output = torch.randn(2, 2, 4, 8, 8)
    call = inspect.signature(scheduler.step).bind(
        model_output=output, timestep=scheduler.timesteps[0], sample=x, return_dict=False
    )
    stepped, scale = step_without_noise(scheduler, call)
    _, then = levels(scheduler)[:2]
    assert scale is not None and torch.allclose(scale, torch.full((2,), then.noise).double())
    assert torch.allclose(stepped[0], then.signal * stepped[1], atol=1e-6)
    assert scheduler.step_index == 1  # one step was taken, not three


def test_a_scheduler_without_noise_says_so_and_its_own_noise_source_is_put_back() -> None:
    before = scheduling_ddim.randn_tensor
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    x = torch.randn(2, 1, 4, 8, 8)
    call = inspect.signature(scheduler.step).bind(x[0], scheduler.timesteps[0], x[1])
    stepped, scale = step_without_noise(scheduler, call)
    assert scale is None
    assert torch.equal(stepped.prev_sample, scheduler.step(x[0], scheduler.timesteps[0], x[1])[0])
    assert scheduling_ddim.randn_tensor is before


def noisy(family_name: str, **extra: Any) -> tuple[Denoiser, LatentSpace]:
    family = FAMILIES[family_name]
    denoiser = Denoiser(family.build(), {**family.call_args, **extra})
    return denoiser, LatentSpace(denoiser, PROMPT, batch_size=2)


def moved(denoiser: Denoiser, at: Candidates, until: int, sde: Sde) -> tuple[Candidates, Tensor]:
    done = denoiser.denoise(PROMPT, noised(at).latents, at.seeds, at.step, until, sde=sde)
    on = replace(at, latents=done.latents, step=until, noise_scale=done.noise_scale)
    return on, done.clean


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", PATHS)
def test_cutting_a_stochastic_run_anywhere_changes_nothing(family: str, path: Any) -> None:
    denoiser, space = noisy(family)
    sde, start = Sde(path), space.draw(2)
    whole, _ = moved(denoiser, start, space.steps, sde)
    at = start
    for k in range(start.step + 1, space.steps + 1):
        at, _ = moved(denoiser, at, k, sde)
        assert (at.noise_scale is None) == (k == space.steps)
    assert torch.equal(at.latents, whole.latents)
    plain = denoiser.denoise(PROMPT, start.latents, start.seeds, start.step, space.steps)
    assert not torch.equal(plain.latents, whole.latents)
    single, _ = moved(denoiser, start.select([1]), space.steps, sde)
    assert torch.allclose(single.latents, whole.latents[1:], atol=1e-3, rtol=1e-3)


def test_steps_with_noise_wait_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule is read once a stretch, and beside the noise, from pinned memory, nothing goes
    to the device: counted on the CPU."""
    denoiser, space = noisy("flux", num_inference_steps=6)
    start, read = space.draw(2), [0]
    copies: list[Any] = []
    tolist, send = Tensor.tolist, pipelines.sde.sent

    def reading(tensor: Tensor) -> Any:
        read[0] += 1
        return tolist(tensor)

    def sending(tensor: Tensor, device: torch.device) -> Tensor:
        copies.append(tensor.shape)
        return send(tensor, device)

    monkeypatch.setattr(Tensor, "tolist", reading)
    monkeypatch.setattr(pipelines.sde, "sent", sending)
    denoiser.denoise(PROMPT, start.latents, start.seeds, 0, 6)
    assert not copies
    without, read[0] = read[0], 0
    moved(denoiser, start, 6, Sde())
    assert read[0] == without + 1 and copies == [start.latents.shape] * 5


def test_a_copy_to_a_gpu_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    at_home = torch.zeros(2)

    def to(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        asked.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: asked.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", to)
    for device in ("cuda:1", "cpu"):
        sent(at_home, torch.device(device))
    assert asked == ["pinned", ("cuda", True), ("cpu", False)]


@pytest.mark.parametrize("family", ["sd15", "flux", "dit"])
def test_forks_share_the_estimate_before_their_noise_and_part_after(family: str) -> None:
    denoiser, space = noisy(family)
    half, _ = moved(denoiser, space.draw(1), 2, Sde())
    forks = space.fork(half, [0, 0])
    assert torch.equal(forks.latents[0], forks.latents[1])
    _, clean = moved(denoiser, forks, 3, Sde())
    assert not torch.equal(clean[0], clean[1])  # each preview judges its own noise


def test_a_schedulers_own_noise_is_kept_apart_in_a_pipeline() -> None:
    """LCM's full re-noising: cut anywhere the same, and the state kept holds no noise."""
    family = FAMILIES["sd15"]
    pipe = family.build()
    pipe.register_modules(scheduler=LCMScheduler.from_config(pipe.scheduler.config))
    denoiser = Denoiser(pipe, {**family.call_args, "num_inference_steps": 4})
    space = LatentSpace(denoiser, PROMPT, batch_size=2)
    start = space.draw(2)
    whole, _ = moved(denoiser, start, 4, Sde())
    half, clean = moved(denoiser, start, 2, Sde())
    there = denoiser.schedule(PROMPT)[2]
    assert torch.allclose(half.latents, there.signal * clean, atol=1e-4)
    assert half.noise_scale is not None
    assert torch.allclose(half.noise_scale, torch.full((2,), there.noise).double())
    assert torch.equal(moved(denoiser, half, 4, Sde())[0].latents, whole.latents)


def test_renoising_and_stirring_start_from_the_point_with_its_noise() -> None:
    denoiser, space = noisy("flux")
    half, _ = moved(denoiser, space.draw(1), 2, Sde())
    assert half.noise_scale is not None
    full = noised(half)
    expected = half.latents + half.noise_scale[:, None, None] * step_noise(
        half.seeds, 2, half.latents
    )
    assert torch.allclose(full.latents.double(), expected, atol=1e-6)
    again = with_noise(half.latents, half.noise_scale, half.seeds, 2)
    assert torch.equal(again, full.latents)
    assert space.perturb(half, 1, 0.9).noise_scale is None
    assert space.renoise(half, 1).noise_scale is None


def test_flow_schedulers_with_noise_of_their_own_keep_it() -> None:
    """FlowMatchEuler's full re-noising x' = (1 - t') x0 + t' xi, found by asking."""
    family = FAMILIES["flux"]
    pipe = family.build()
    options = {**pipe.scheduler.config, "stochastic_sampling": True}
    pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler.from_config(options))
    denoiser = Denoiser(pipe, family.call_args)
    space = LatentSpace(denoiser, PROMPT)
    half, clean = moved(denoiser, space.draw(1), 2, Sde("linear"))
    there = denoiser.schedule(PROMPT)[2]
    assert torch.allclose(half.latents, there.signal * clean, atol=1e-4)
