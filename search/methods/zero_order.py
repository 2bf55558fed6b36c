"""Zero-order search around a pivot noise (Ma et al. 2025, §3.2).

Where ours differs, as tt-scale-flux does: in the paper the best neighbour always becomes the pivot,
here it has to beat the pivot. Then tt-scale-flux's "restart" is the default, so that its configs
mean what they meant; what it forgets by that, "resample" keeps. And the pivot is denoised once, not
again in each round.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal, Self

from search.core import Flow, Need, Rollout, Space


@dataclass(frozen=True)
class ZeroOrder:
    """Hill-climb over noises: the best neighbour of the pivot becomes the next pivot.

    threshold: cosine between the pivot and its neighbours, all on the pivot's shell: 1 is the
    pivot itself, 0 a random noise. num_neighbors: neighbours a round. on_reject: a round in which
    no neighbour beats the pivot is rejected; then "restart" draws a fresh pivot (tt-scale-flux),
    "resample" keeps the pivot and draws fresh neighbours, which climbs higher on smooth landscapes.

    The pivot is denoised and scored once: after that it competes by the score it has.
    """

    threshold: float = 0.95
    num_neighbors: int = 4
    on_reject: Literal["restart", "resample"] = "restart"

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine within [-1, 1], not {self.threshold}")
        if self.num_neighbors < 1:
            raise ValueError(f"num_neighbors must be at least 1, not {self.num_neighbors}")

    def sized(self, steps: int, nfe: int) -> Self:
        return self  # stops well anywhere: the best so far is always a finished image

    def flow(self, space: Space) -> Flow:
        pivot = None
        for round in count(1):
            if pivot is None:
                pivot = yield Rollout(
                    space.draw(1), until=space.steps, rejectable=True, round=round
                )
            near = space.perturb(pivot.start, self.num_neighbors, self.threshold)
            scored = yield Rollout(
                near, until=space.steps, rivals=pivot.ids, rejectable=True, round=round
            )
            if scored.best > float(scored.rival_scores.max().nan_to_num(nan=float("-inf"))):
                pivot = scored.top(1)
            elif self.on_reject == "restart":
                pivot = None
