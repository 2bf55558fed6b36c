"""Tensor maths that several searches share: points on a shell, weights, units of reward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from search.core import best_of, finite


def on_shell(centre: Tensor, direction: Tensor, cosine: float) -> Tensor:
    """Points at this cosine to `centre`, at its norm, towards `direction` (Ma et al. 2025, §3.2).

    centre, direction: [n, ...]; the part of `direction` along `centre` is taken out, so that a
    Gaussian direction gives a uniform point of the shell. Computed in float64, returned in the
    centre's dtype.
    """
    c = centre.double().flatten(1)
    v = direction.to(centre.device).double().flatten(1)
    norm = c.norm(dim=1, keepdim=True)
    unit = c / norm
    tangent = v - (v * unit).sum(1, keepdim=True) * unit
    tangent = tangent / tangent.norm(dim=1, keepdim=True)
    moved = norm * (cosine * unit + math.sqrt(max(0.0, 1 - cosine**2)) * tangent)
    return moved.reshape(centre.shape).to(centre.dtype)


def repeat_each(n: int, times: int) -> list[int]:
    """Positions 0..n-1, each `times` times in a row."""
    return [i for i in range(n) for _ in range(times)]


def normalised(log_weights: Tensor) -> Tensor:
    """Weights that sum to 1, float64; nan and infinities weigh nothing, and all may be nothing."""
    known = finite(log_weights.double())
    highest = best_of(known)
    if highest == -math.inf:
        return torch.zeros_like(known)
    weights = (known - highest).exp()  # the largest is 1: nothing overflows
    return weights / weights.sum()


def effective_sample_size(log_weights: Tensor) -> float:
    """1 / Σ w² of the normalised weights (Kong 1992): n where all are equal, 0 without any."""
    squares = float(normalised(log_weights).square().sum())
    return 1 / squares if squares else 0.0


def systematic(log_weights: Tensor, n: int, generator: torch.Generator) -> list[int]:
    """n positions, ascending; position i comes n·w_i times on average, never a whole one off.

    Systematic resampling (Kitagawa 1996): one uniform number shifts n evenly spaced pointers, which
    is unbiased and in practice adds less variance than drawing each by itself (Douc and Cappé
    2005). Where no position has a weight, all count the same.
    """
    weights = normalised(log_weights).cpu()
    if not weights.any():
        weights = torch.ones_like(weights)
    edges = weights.cumsum(0)
    shift = torch.rand((), dtype=torch.float64, generator=generator)
    pointers = (torch.arange(n, dtype=torch.float64) + shift) / n
    pointers = pointers.clamp(max=1 - 1e-12)  # rounding may carry the last one over the edge
    return torch.searchsorted(edges / edges[-1], pointers, right=True).tolist()


def tempering_step(log_weights: Tensor, increment: Tensor, target: float) -> float:
    """The largest share in [0, 1] of `increment` that leaves the effective sample size at `target`.

    Found by bisection, as in adaptive tempering (Jasra et al. 2011); 0 where the size is below the
    target already.
    """
    if effective_sample_size(log_weights + increment) >= target:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):  # to the last bit of a double
        middle = (low + high) / 2
        if effective_sample_size(log_weights + middle * increment) >= target:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Unit:
    """What rewards are measured in: their distance to a centre, in standard deviations.

    A strength then means the same for ImageReward, whose scores differ by about 1, and for HPSv2,
    whose scores differ by about 0.02. The centre is the mean of the first scores. The spread is the
    largest seen at one look: early previews are blurred and lie close together, and so do the
    scores of a set that was selected.
    """

    centre: float = math.nan
    spread: float = 0.0

    def seen(self, scores: Tensor) -> Unit:
        """The unit after one more look; missing scores do not count."""
        known = scores[scores.isfinite()].double()
        if not len(known):
            return self
        centre = float(known.mean()) if math.isnan(self.centre) else self.centre
        spread = float(known.std()) if len(known) > 1 else 0.0
        return Unit(centre, max(self.spread, spread))

    def measure(self, scores: Tensor) -> Tensor:
        """Scores in this unit, float64; only centred as long as none differed."""
        return (scores.double() - self.centre) / (self.spread or 1.0)
