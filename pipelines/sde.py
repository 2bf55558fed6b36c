"""Steps with noise, whose points keep the marginals of the deterministic steps.

Every step has the form x' = signal' x0 + sqrt(noise'^2 - s^2) n + s xi, with the step's own
estimates of the clean latents x0 and of the noise n, and fresh noise xi (DDIM's eta, Song et al.
2021, §4.1, written for any signal and noise level). A point is kept *before* its noise: the mean
and s, while xi is added when the next step is taken. So copies of one point part at once, and the
preview after a step already judges the noise that it began with.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pipelines.devices import sent
from pipelines.schedule import Level, levels
from utils import seed_of

Path: TypeAlias = Literal["variance-preserving", "linear"]
LINEAR_DIFFUSION = 3.0  # g(t) = 3 t^2 on the straight path (Kim et al. 2025, RBF, released configs)


@dataclass(frozen=True)
class Sde:
    """How much of a point's noise each step renews.

    path: "variance-preserving": the noise that the forward process leaves open between two levels,
    which is DDPM's posterior, DDIM's eta and Euler's ancestral step in one. Being the same on
    every path of equal signal-to-noise ratio, it is what a flow model's straight path becomes when
    it is converted to the variance-preserving one (Kim et al. 2025, RBF, §4.2). "linear": the
    straight path's own diffusion g(t) = 3 t^2, which stirs less near the end. eta: factor on the
    added noise's standard deviation; 0 adds none.
    """

    path: Path = "variance-preserving"
    eta: float = 1.0
    _levels: dict[Any, tuple[Level, ...]] = field(default_factory=dict, repr=False, compare=False)

    def levels(self, scheduler: Any, schedule: tuple[float, ...]) -> tuple[Level, ...]:
        """The scheduler's levels, worked out once for each schedule.

        schedule: its timesteps as numbers: on a GPU reading them waits for all that is under way.
        """
        if schedule not in self._levels:
            self._levels[schedule] = levels(scheduler)
        return self._levels[schedule]

    def scale(self, now: Level, then: Level) -> float:
        """The standard deviation s of the noise that a step between these levels adds."""
        if then.noise == 0:
            return 0.0
        if self.path == "linear":
            return min(self.eta * _straight(now, then), then.noise)
        kept = now.signal * then.noise / (then.signal * now.noise)
        return min(self.eta * then.noise * math.sqrt(max(0.0, 1 - kept**2)), then.noise)

    def mean(self, sample: Tensor, clean: Tensor, now: Level, then: Level) -> tuple[Tensor, float]:
        """The step's mean and the scale of the noise to be added; in the sample's dtype."""
        scale = self.scale(now, then)
        x, x0 = sample.double(), clean.double()
        noise = (x - now.signal * x0) / now.noise
        mean = then.signal * x0 + math.sqrt(max(0.0, then.noise**2 - scale**2)) * noise
        return mean.to(sample.dtype), scale


def _straight(now: Level, then: Level) -> float:
    """g(t) sqrt(dt) on the straight path, in the coordinates of the level stepped to.

    Levels (a, b) lie on the straight path at t = b / (a + b), seen at the scale a + b.
    """
    t, after = (level.noise / (level.signal + level.noise) for level in (now, then))
    return LINEAR_DIFFUSION * t**2 * math.sqrt(max(0.0, t - after)) * (then.signal + then.noise)


def step_noise(seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
    """The unit noise with which candidates set out from a step, keyed by seed and step.

    Drawn on the CPU in float32: [n, ...] shaped like `like`'s rows, on its device.
    """
    return unit_noise([seed_of("step", seed, step) for seed in seeds], like)


def unit_noise(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise shaped like `like`, row i drawn on the CPU in float32 from seed i.

    Nothing waits for a GPU: it is drawn, and on its way, while the step before is being computed.
    """
    keyed = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    rows = [torch.randn(like.shape[1:], generator=generator) for generator in keyed]
    return sent(torch.stack(rows), like.device)


def with_noise(mean: Tensor, scale: Tensor | float, seeds: Sequence[int], step: int) -> Tensor:
    """Points kept before their noise, with it; `scale` is one for all, [n], or shaped like them."""
    each = scale
    if isinstance(each, Tensor):
        each = sent(each, mean.device).double()
        each = each.reshape(-1, *[1] * (mean.dim() - 1)) if each.dim() == 1 else each
    noise = step_noise(seeds, step, mean).double()
    return (mean.double() + each * noise).to(mean.dtype)


def a_row(scale: Tensor | float, rows: int) -> Tensor:
    """The scale of each point's noise, where it is one for all."""
    if isinstance(scale, Tensor):
        return scale
    return torch.full((rows,), scale, dtype=torch.float64)


@dataclass
class NoiseSource:
    """Stands in for a scheduler's noise and counts how often it is asked for."""

    value: float
    asked: int = 0

    def __call__(self, shape: Any, *_: Any, **options: Any) -> Tensor:
        self.asked += 1
        wanted = {name: options.get(name) for name in ("device", "dtype")}
        return torch.full(tuple(shape), self.value, **wanted)


@contextmanager
def steady_noise(scheduler: Any, value: float) -> Iterator[NoiseSource]:
    """Within this block all of the noise that a scheduler's step draws is `value`."""
    step: Any = type(scheduler).step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    source, names = NoiseSource(value), step.__globals__
    original: Callable[..., Tensor] | None = names.get("randn_tensor")
    if original is None:
        yield source
        return
    names["randn_tensor"] = source
    try:
        yield source
    finally:
        names["randn_tensor"] = original


def step_without_noise(scheduler: Any, call: inspect.BoundArguments) -> tuple[Any, Tensor | None]:
    """A scheduler's step with its own noise left out, and the scale of that noise.

    call: the bound arguments of `step`. The scale is [rows], or shaped like the sample where it
    differs within a row (learned variances); None where the scheduler adds no noise.
    """
    before = copy.copy(scheduler)
    with steady_noise(scheduler, 0.0) as source:
        stepped = scheduler.step(*call.args, **call.kwargs)
    if not source.asked:
        return stepped, None
    scale = _stepped_with(1.0, before, call) - _stepped_with(0.0, before, call)
    per_row = scale.flatten(1)[:, 0]
    same = torch.allclose(scale.flatten(1), per_row[:, None], rtol=1e-6, atol=0)
    return stepped, per_row if same else scale


def _stepped_with(noise: float, scheduler: Any, call: inspect.BoundArguments) -> Tensor:
    """What a copy of the scheduler steps to in float64 when all its noise has this value."""
    probe = copy.copy(scheduler)
    inputs = {name: call.arguments[name].double() for name in ("model_output", "sample")}
    arguments = {**call.arguments, **inputs}
    with steady_noise(probe, noise):
        result = probe.step(**arguments)
    stepped: Tensor = values_of(result)[0]
    return stepped.double()


def values_of(stepped: Any) -> tuple[Any, ...]:
    """What a scheduler's step returned, whether it was asked for a tuple or an output object."""
    values: tuple[Any, ...] = stepped if isinstance(stepped, tuple) else stepped.to_tuple()
    return values
