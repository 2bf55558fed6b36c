"""Cross-entropy search: a Gaussian without correlations, refitted to the best points so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from search.core import Scored, finite


@dataclass(frozen=True)
class Gaussian:
    """Independent coordinates.

    mean, variance: of one point's shape, float64.
    """

    mean: Tensor
    variance: Tensor

    @classmethod
    def standard(cls, shape: Sequence[int]) -> Self:
        ones = torch.ones(tuple(shape), dtype=torch.float64)
        return cls(torch.zeros_like(ones), ones)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(n, *self.mean.shape, generator=rng, dtype=torch.float64)
        return self.mean + self.variance.sqrt() * noise

    def fitted(self, points: Tensor, *, smoothing: float, floor: float) -> Gaussian:
        """Moved to the points' mean and variance, all but the share `smoothing` of the way.

        A single point has no variance and changes nothing. floor: the least variance.
        """
        if len(points) < 2:
            return self
        variance = torch.lerp(points.var(0), self.variance, smoothing)
        return Gaussian(torch.lerp(points.mean(0), self.mean, smoothing), variance.clamp_min(floor))


@dataclass(frozen=True)
class Elites:
    """The best points so far, best first; never one without a score."""

    points: Tensor
    ids: tuple[int, ...] = ()

    @classmethod
    def none(cls, shape: Sequence[int]) -> Self:
        return cls(torch.empty(0, *shape, dtype=torch.float64))

    def joined(self, points: Tensor, scored: Scored, size: int) -> Elites:
        """The best of these and of the points just scored, which had these as their rivals."""
        points = torch.cat([self.points, points])
        ids = self.ids + scored.ids
        scores = finite(torch.cat([scored.rival_scores, scored.scores]))
        order = scores.argsort(descending=True, stable=True)[:size]
        order = order[scores[order].isfinite()]
        return Elites(points[order], tuple(ids[i] for i in order.tolist()))


def rescaled(points: Tensor, norm: float) -> Tensor:
    """Points moved along their own directions to this norm."""
    each: Tensor = torch.linalg.vector_norm(points, dim=list(range(1, points.dim())), keepdim=True)
    return points * (norm / each)
