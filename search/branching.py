"""What searches that branch on the way share: copies that part, and the loop of branch and keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

from torch import Tensor

from search.core import Candidates, Flow, Rollout, Space, finite, lead, step_at
from search.resampling import Unit, repeat_each

Keep: TypeAlias = Callable[[Tensor, Unit], list[int]]
"""Which branch each chain keeps, given the scores [chains, branches] and the unit to measure in."""


def branched(
    space: Space, candidates: Candidates, index: Sequence[int], used: Collection[int] = ()
) -> Candidates:
    """The candidates at these positions; no two of them share a future.

    The first time that a position stands in the index the candidate itself goes on, with its own
    seed; every further time it is a fork, with a fresh one. So a path that never branches is the
    plain stochastic sample of its seed. used: positions whose own future is spent already.
    """
    taken = set(used)
    itself: list[int] = []  # where in the index
    forked: list[int] = []
    for where, i in enumerate(index):
        (forked if i in taken else itself).append(where)
        taken.add(i)
    if not forked:
        return candidates.select(index)
    copies = space.fork(candidates, [index[where] for where in forked])
    if not itself:
        return copies
    both = candidates.select(index[where] for where in itself) + copies
    place = {where: row for row, where in enumerate(itself + forked)}
    return both.select(place[where] for where in range(len(index)))


@dataclass(frozen=True)
class Branching:
    """Chains of stochastic steps; in every block each state branches, and one branch is kept.

    All branches of the last block become finished candidates.
    """

    chains: int
    branches: int
    every: int
    check_from: float

    def sized(self, steps: int, nfe: int) -> Self:
        """As many chains as fit; where not even one does, one with fewer branches."""
        before = lead(steps, self.check_from)
        chains = nfe // (before + self.branches * (steps - before))
        if chains:
            return replace(self, chains=chains)
        branches = (nfe - before) // max(1, steps - before)
        return replace(self, chains=1, branches=max(1, min(branches, self.branches)))

    def flow(self, space: Space, keep: Keep) -> Flow:
        start = step_at(space, self.check_from)
        finished = start == space.steps  # a single step has no way to branch on
        scored = yield Rollout(space.draw(self.chains), until=start, score=finished, round=1)
        kept, unit = scored.candidates, Unit()
        while kept.step < space.steps:
            children = branched(space, kept, repeat_each(len(kept), self.branches))
            until = min(kept.step + self.every, space.steps)
            scored = yield Rollout(children, until=until, round=1)
            unit = unit.seen(scored.scores)
            chosen = keep(scored.scores.reshape(self.chains, self.branches), unit)
            kept = scored.candidates.select(
                chain * self.branches + branch for chain, branch in enumerate(chosen)
            )


def keep_best(scores: Tensor, unit: Unit) -> list[int]:
    """The best branch of each chain; ties go to the first and nan never wins."""
    return finite(scores).argmax(1).tolist()


def check_counts(**counts: int) -> None:
    """Refuse hyper-parameters that count something and are not positive."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def check_share(check_from: float) -> None:
    if not 0 <= check_from <= 1:
        raise ValueError(f"check_from is a share of the steps within [0, 1], not {check_from}")
