"""The landscape probe: which noises to score so that a model's landscape can be read off them.

Which search pays depends on how the score changes with the noise (smooth or rugged) and on how
early a preview tells the final score. Both can be measured beforehand with a few images. This is
no method to search with, so it is in no table; `main.py --probe` plays it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from search.core import Flow, Need, Rollout, Space, step_at

FEWEST = 4  # below, a prompt's correlation has no interval


@dataclass(frozen=True)
class Probing:
    """Noises and their neighbours, all finished and scored.

    noises: how many get neighbours; as many again are drawn beside them, so that the pairs of the
    two halves are independent, which is cosine 0. cosines: each noise gets one neighbour at each.
    """

    noises: int = 8
    cosines: tuple[float, ...] = (0.99, 0.95, 0.9, 0.7, 0.5)

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.noises < FEWEST:
            raise ValueError(f"noises must be at least {FEWEST}, not {self.noises}")
        for cosine in self.cosines:
            if not -1 <= cosine < 1:
                raise ValueError(f"cosines lie within [-1, 1), so {cosine} is none")

    @property
    def images(self) -> int:
        """Finished images a prompt."""
        return self.noises * (2 + len(self.cosines))

    def stops(self, space: Space) -> tuple[int, ...]:
        """The steps at which the drawn noises are previewed."""
        return ()

    def sized(self, steps: int, nfe: int) -> Self:
        """As many noises as can be paid with all of their neighbours."""
        return replace(self, noises=max(FEWEST, nfe // (steps * (2 + len(self.cosines)))))

    def flow(self, space: Space) -> Flow:
        moved = space.draw(2 * self.noises)
        centres = None
        for stop in (*self.stops(space), space.steps):
            scored = yield Rollout(moved, until=stop, round=1)
            centres = scored.start if centres is None else centres
            moved = scored.candidates
        assert centres is not None
        for cosine in self.cosines:
            near = space.perturb(centres.select(range(self.noises)), 1, cosine)
            yield Rollout(near, until=space.steps, round=1)


@dataclass(frozen=True)
class PreviewProbing(Probing):
    """The same, with previews of the drawn noises after these shares of sampling."""

    shares: tuple[float, ...] = (0.1, 0.25, 0.4, 0.5, 0.75)

    needs: ClassVar[frozenset[Need]] = frozenset({"midway"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in self.shares:
            if not 0 < share < 1:
                raise ValueError(f"shares lie between 0 and 1, so {share} is none")

    def stops(self, space: Space) -> tuple[int, ...]:
        steps = {step_at(space, share) for share in self.shares}
        return tuple(sorted(step for step in steps if step < space.steps))
