"""Spectral Evolution Search (arXiv 2602.03208): cross-entropy over the noise's low band.

Its premise: the noise's coarse structure decides what an image shows, and it has few dimensions
(level 4 leaves 4 x 4 values a channel of 64 x 64 latents). The search fits a Gaussian to the low
bands of the best candidates so far; the high band is the base noise's throughout.

Differences from the original: a generation is one batch. The base noise is scored too, within the
first generation. Each sampled low band is brought to the norm of the base noise's, for the
refitted Gaussian otherwise grows with every generation and its noises leave the distribution the
model was trained on; as the bands are orthogonal, the whole noise keeps its norm too. Blocks of
unequal size replace padding where 2**dwt_level does not divide the latents' sides.

The original scores previews of fewer steps: the `draft` wrapper does that for any search. Its five
elites of ten, refitted without smoothing, are kept as the default: they gain most within the first
50 images and stall after some 200, for their variance is spent. Larger generations and smoothing
(30, 10 and 0.5) go on to the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar, Self

import torch
from torch import Tensor

from search.core import Candidates, Flow, Need, Rollout, Space
from search.cross_entropy import Elites, Gaussian, rescaled
from search.haar import block_grid, low_band, with_low_band

GENERATIONS = 3  # the fewest in which a distribution is learned from and then drawn from twice
LEAST_VARIANCE = 1e-7  # the original's


@dataclass(frozen=True)
class Ses:
    """Cross-entropy search of the coarse structure of one noise, its details fixed.

    popsize: candidates a generation. k_elites: the best candidates so far, to whose low bands the
    Gaussian is fitted. dwt_level: the low band averages blocks of side 2**dwt_level; lowered where
    the shorter side would hold fewer than 4 of them. smoothing: share of the old mean and variance
    that a refit keeps; 0 is the original.

    It goes on generation by generation, each of them a round; a small budget shrinks `popsize` and
    with it `k_elites` until three generations fit.
    """

    popsize: int = 10
    k_elites: int = 5
    dwt_level: int = 4
    smoothing: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 <= self.k_elites <= self.popsize:
            raise ValueError(
                f"k_elites must be from 2 (one has no variance) to popsize ({self.popsize}),"
                f" not {self.k_elites}"
            )
        if self.dwt_level < 0:
            raise ValueError(f"dwt_level must be at least 0, not {self.dwt_level}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is a share within [0, 1), not {self.smoothing}")

    def sized(self, steps: int, nfe: int) -> Self:
        popsize = min(self.popsize, max(2, nfe // steps // GENERATIONS))
        k_elites = max(2, self.k_elites * popsize // self.popsize)
        return replace(self, popsize=popsize, k_elites=k_elites)

    def flow(self, space: Space) -> Flow:
        base = space.draw(1)
        unit = space.spatial(base.latents).double().cpu()
        own = low_band(unit, block_grid(unit.shape, self.dwt_level))
        norm = float(torch.linalg.vector_norm(own))
        elites, gaussian = Elites.none(own.shape[1:]), Gaussian.standard(own.shape[1:])

        def placed(low: Tensor) -> Candidates:
            latents = space.from_spatial(with_low_band(unit, low)).to(base.latents)
            return space.place(latents, [elites.ids] * len(low))

        fresh = rescaled(gaussian.sample(self.popsize - 1, space.rng), norm)
        low, wish = torch.cat([own, fresh]), base + placed(fresh)
        for round in count(1):
            scored = yield Rollout(wish, until=space.steps, rivals=elites.ids, round=round)
            elites = elites.joined(low, scored, self.k_elites)
            gaussian = gaussian.fitted(
                elites.points, smoothing=self.smoothing, floor=LEAST_VARIANCE
            )
            low = rescaled(gaussian.sample(self.popsize, space.rng), norm)
            wish = placed(low)
