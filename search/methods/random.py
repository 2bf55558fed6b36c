"""Random search, best of N (Ma et al. 2025, §3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal, Self

from search.core import Flow, Need, Rollout, Space


@dataclass(frozen=True)
class Random:
    """Best of N independent noises, the pool doubling each round.

    pool: "fresh": round r draws 2**r new noises (tt-scale-flux's rule: 2 + 4 + 8 + 16 images in
    four rounds); "nested": round r extends the pool of the last round to 2**r, so that four rounds
    take 16 images and each round's best-of-2**r has the same distribution.
    stochastic: sample with the noise of `stochastic_args` in every step, as methods that branch on
    the way do: what they gain is told apart from what their sampler gains.
    """

    pool: Literal["fresh", "nested"] = "fresh"
    stochastic: bool = False

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = True

    def sized(self, steps: int, nfe: int) -> Self:
        return self  # every noise counts by itself, so any budget fits

    def flow(self, space: Space) -> Flow:
        pool: tuple[int, ...] = ()
        for round, n in self._sizes():
            scored = yield Rollout(space.draw(n), until=space.steps, rivals=pool, round=round)
            if self.pool == "nested":
                pool = pool + scored.ids

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """Round numbers and how many fresh noises each draws."""
        for round in count(1):
            nested = self.pool == "nested" and round > 1
            yield round, 2 ** (round - 1) if nested else 2**round
