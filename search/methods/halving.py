"""Early rejection on previews, by successive halving (TTSnap, arXiv 2511.22242).

All candidates of a pool are denoised up to a checkpoint and scored on their previews; the better
share goes on to the next checkpoint or the end, so that a budget pays for more noises than best of
N could finish.

Where ours differs: the paper cuts three times, first after a tenth of the steps, with a reward
trained on noisy previews. With a reward off the shelf previews of the first quarter of the steps
rank candidates no better than chance and early cuts lose to best of N, so one cut at half is the
default.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from search.branching import check_counts
from search.core import Flow, Need, Rollout, Scored, Space, lead


@dataclass(frozen=True)
class Halving:
    """A pool of noises that shrinks at each checkpoint; the survivors are finished, best of them.

    pool: noises drawn. checkpoints: shares of the steps after which previews are compared; without
    any, and where a single step leaves no room for one, this is best of N. keep: share of the
    candidates that survives each checkpoint, rounded up.

    A candidate whose preview has no score is dropped while others have one. A cut that would keep
    everyone is not made, and its previews not asked for.

    A budget decides over `pool`: the largest whose whole funnel it pays for.
    """

    pool: int = 16
    checkpoints: tuple[float, ...] = (0.5,)
    keep: float = 0.5

    needs: ClassVar[frozenset[Need]] = frozenset({"midway"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(pool=self.pool)
        if not all(0 < share < 1 for share in self.checkpoints):
            raise ValueError(
                "checkpoints are shares of the steps between 0 and 1, both excluded, not"
                f" {list(self.checkpoints)}"
            )
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share of the candidates within (0, 1], not {self.keep}")

    def sized(self, steps: int, nfe: int) -> Self:
        pool = bisect_right(range(1, nfe + 1), nfe, key=lambda n: self._nfe(steps, n))
        return replace(self, pool=max(1, pool))

    def flow(self, space: Space) -> Flow:
        alive = space.draw(self.pool)
        for cut in self._cuts(space.steps - space.first):
            kept = self._kept(len(alive))
            if kept < len(alive):
                scored = yield Rollout(alive, until=space.first + cut, round=1)
                alive = survivors(scored, kept).candidates
        yield Rollout(alive, until=space.steps, round=1)

    def _nfe(self, steps: int, pool: int) -> int:
        """Denoiser calls of the whole funnel; strictly more for a larger pool."""
        nfe, alive, at = 0, pool, 0
        for cut in self._cuts(steps):
            nfe += alive * (cut - at)
            alive, at = self._kept(alive), cut
        return nfe + alive * (steps - at)

    def _cuts(self, steps: int) -> list[int]:
        """Steps taken before each cut, ascending; shares that fall on one step make one cut."""
        cuts = {lead(steps, share) for share in self.checkpoints}
        return sorted(cut for cut in cuts if cut < steps)

    def _kept(self, alive: int) -> int:
        return max(1, math.ceil(self.keep * alive - 1e-9))  # 0.1 * 30 is a little above 3


def survivors(scored: Scored, k: int) -> Scored:
    """The k best, best first; fewer where fewer have a score, unless none has."""
    known = int(scored.scores.isfinite().sum())
    return scored.top(min(k, known or k))
