"""Rollover budget forcing (Kim et al. 2025, arXiv 2503.19385), and its verifier-threshold rule.

A chain starts from the best of several noises. At each step it tries children, one
after another: the first that scores above the best the path has seen is taken at once, and what is
left of the step's quota rolls over to the next. Where none does, the best child is taken.
The threshold rule (arXiv 2512.08985) takes the first child that passes a fixed bar instead.

Where ours differs: chains take their steps together, so that their children share batches; a
child is judged in the call that is also its step, so a chain's last child costs nothing more; what
the last step leaves of the quota is the driver's to spend on another pass; and noises are compared
after a quarter of the steps, the paper's after one. A flow model's first variance-preserving step
forgets the noise that it began with, for its level holds no signal, and a preview of it tells
nothing of the image (on the bundled FLUX their rank correlation is zero). The schedule stays the
pipeline's own, where the authors' conversion to a variance-preserving path also moves the times
(t' = sqrt(1 - (1 - t)^2)): a path that can be cut anywhere has to keep one grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar, Literal, Self

from search.branching import branched, check_counts, check_share
from search.core import (
    Candidates,
    Flow,
    Need,
    Rollout,
    Scored,
    Space,
    finite,
    joined,
    lead,
    step_at,
)


@dataclass(frozen=True)
class Chain:
    """One path.

    at: the state whose children are tried, a single candidate. bar: the best score of the path so
    far. quota: children it may still try, this step's and what rolled over. tried: children tried
    at this step; `best` is the best of them, and `score` its score.
    """

    at: Candidates
    bar: float
    quota: int
    tried: int = 0
    best: Candidates | None = None
    score: float = -math.inf

    def with_children(self, n: int, best: Candidates, score: float) -> Chain:
        """After n children were tried, this one the best of them."""
        chain = replace(self, quota=self.quota - n, tried=self.tried + n)
        if self.best is not None and score <= self.score:
            return chain
        return replace(chain, best=best, score=score)

    def advanced(self, quota: int) -> Chain:
        """One step on, from the best child, with the next step's quota."""
        assert self.best is not None
        return Chain(self.best, max(self.bar, self.score), self.quota + quota)


@dataclass(frozen=True)
class Rbf:
    """Try children of a state until one is good enough; spend the saved tries later.

    chains: paths. init_particles: noises a chain starts from the best of. quota: children a step
    may try, in the mean. accept: "rollover", a child that beats the best score its path was taken
    on with; "threshold", one that reaches `threshold`, a score in the verifier's own unit, or unset
    the median of the scores at this step and the one before, which rises as previews sharpen and
    which a typical child reaches in two tries. at_once: children tried together; the best of a
    group is what counts, and the whole group is paid for. check_from: share of the steps to take
    plainly before noises are compared; the paper's 0 compares them after one.

    A budget decides over `quota`, which takes what there is. Where it is small, first chains and
    then noises are fewer.
    """

    chains: int = 2
    init_particles: int = 8
    quota: int = 4
    accept: Literal["rollover", "threshold"] = "rollover"
    threshold: float | None = None
    at_once: int = 1
    check_from: float = 0.25

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})
    blind: ClassVar[bool] = False
    fixed_scale: ClassVar[bool] = True  # a child is compared with scores of earlier steps

    def __post_init__(self) -> None:
        check_counts(
            chains=self.chains,
            init_particles=self.init_particles,
            quota=self.quota,
            at_once=self.at_once,
        )
        check_share(self.check_from)
        if self.threshold is not None and self.accept != "threshold":
            raise ValueError('threshold is only used with accept: set it to "threshold"')

    def sized(self, steps: int, nfe: int) -> Self:
        chains = max(1, min(self.chains, nfe // steps))
        each = nfe // chains
        noises = max(1, min(self.init_particles, each // steps))
        before = lead(steps, self.check_from)
        quota = (each - noises * before) // max(1, steps - before)
        return replace(self, chains=chains, init_particles=noises, quota=max(1, quota))

    def flow(self, space: Space) -> Flow:
        noises = space.draw(self.chains * self.init_particles)
        start = step_at(space, self.check_from)
        scored = yield Rollout(noises, until=start, round=1)
        before = _known(scored)
        seen: list[float] = []
        firsts = _winners(scored, [self.init_particles] * self.chains)
        chains = [Chain(candidate, score, self.quota) for candidate, score in firsts]
        for step in range(start, space.steps):
            trying = list(range(self.chains))
            while trying:
                numbers = [min(self.at_once, chains[c].quota) for c in trying]
                families = zip(trying, numbers, strict=True)
                children = joined(self._children(space, chains[c], n) for c, n in families)
                bars = {c: self._bar(chains[c], before + seen) for c in trying}
                scored = yield Rollout(children, until=step + 1, round=1)
                seen += _known(scored)
                for c, n, won in zip(trying, numbers, _winners(scored, numbers), strict=True):
                    chains[c] = chains[c].with_children(n, *won)
                trying = [
                    c for c in trying if chains[c].quota and not self._passes(chains[c], bars[c])
                ]
            before, seen = seen, []
            chains = [chain.advanced(self.quota) for chain in chains]

    def _children(self, space: Space, chain: Chain, n: int) -> Candidates:
        """Its next n children; the very first is the state itself, going on."""
        return branched(space, chain.at, [0] * n, used=[0] if chain.tried else [])

    def _bar(self, chain: Chain, seen: Sequence[float]) -> float:
        """What a child has to reach."""
        if self.accept == "rollover":
            return chain.bar
        if self.threshold is not None:
            return self.threshold
        return median(seen) if seen else -math.inf

    def _passes(self, chain: Chain, bar: float) -> bool:
        """Whether the best child of this step is taken at once."""
        if self.accept == "rollover":
            return chain.score > bar
        return math.isfinite(chain.score) and chain.score >= bar


def _known(scored: Scored) -> list[float]:
    return scored.scores[scored.scores.isfinite()].tolist()


def _winners(scored: Scored, numbers: Sequence[int]) -> list[tuple[Candidates, float]]:
    """The best candidate of each group, and its score; the groups are of these sizes."""
    winners = []
    scores = finite(scored.scores)
    begin = 0
    for n in numbers:
        best = begin + int(scores[begin : begin + n].argmax())
        winners.append((scored.candidates.select([best]), float(scores[best])))
        begin += n
    return winners
