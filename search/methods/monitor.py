"""Quality monitoring: candidates are watched on their way by their previews.

A method of practice, as in nodes of image-generation front ends, not of a paper. A candidate that
looks bad gets more guidance, or is given up and its steps are spent on new ones; one that keeps
looking good is finished without further checks.

Where ours differs from a fixed threshold: scores of different verifiers, prompts and steps do not
compare, so the default threshold is what is usual for this prompt at this step. Previews of the
first quarter of the steps say nothing of the finished image and are not asked for. What looks good
all along saves its further checks alone: its steps are what make the image.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from search.branching import check_counts, check_share
from search.core import Candidates, Flow, Need, Rollout, Scored, Space, finite, joined


@dataclass(frozen=True)
class Monitor:
    """Pools of noises, each candidate checked by its preview every few steps; a pool is a round.

    pool: noises watched at a time. check_interval: steps between checks, so a schedule with no more
    steps than this is best of N. check_from: share of the steps before which no check is made.

    quality_threshold: a preview below it is bad, others are good; null is the median of all
    previews of this prompt at the same step so far. A preview without a score is neither.

    action: what a bad preview leads to. "guidance": the candidate's guidance is scaled by
    scale_factor from there on, again at each bad check, but never by more than max_scale, nor less
    than 1 / max_scale. "reject": it is given up after `patience` bad checks in a row, unless its
    pool would be left with none that has a score: then the best goes on. "both": both.

    settled_after: good checks in a row after which a candidate is finished without more of them.

    nfe: what one pass may spend, which a budget sets: the last pools are then no larger than the
    budget can finish, and what was saved on candidates given up pays for new ones.
    """

    pool: int = 4
    check_interval: int = 5
    check_from: float = 0.25
    quality_threshold: float | None = None
    action: Literal["guidance", "reject", "both"] = "both"
    scale_factor: float = 1.2
    max_scale: float = 2.0
    patience: int = 2
    settled_after: int = 2
    nfe: int | None = None

    needs: ClassVar[frozenset[Need]] = frozenset({"midway"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(
            pool=self.pool,
            check_interval=self.check_interval,
            patience=self.patience,
            settled_after=self.settled_after,
        )
        if self.nfe is not None:
            check_counts(nfe=self.nfe)
        check_share(self.check_from)
        if self.quality_threshold is not None and math.isnan(self.quality_threshold):
            raise ValueError("quality_threshold must be a number, or null for the running median")
        if not 0 < self.scale_factor < math.inf:
            raise ValueError(f"scale_factor must be more than 0, not {self.scale_factor}")
        if not 1 <= self.max_scale < math.inf:
            raise ValueError(f"max_scale must be at least 1, not {self.max_scale}")
        if self.action not in ("guidance", "reject", "both"):
            raise ValueError(f'action is "guidance", "reject" or "both", not "{self.action}"')

    @property
    def guides(self) -> bool:
        """Whether it may change a pipeline's guidance."""
        return self.action != "reject"

    def sized(self, steps: int, nfe: int) -> Self:
        return replace(self, nfe=max(1, min(nfe, self.nfe or nfe)))

    def flow(self, space: Space) -> Flow:
        seen: dict[int, tuple[int, ...]] = {}  # by step, the ids of all its previews
        left = math.inf if self.nfe is None else self.nfe
        for round in count(1):
            n = int(min(self.pool, left // (space.steps - space.first)))
            if not n:
                return
            left -= yield from self._pool(space, n, round, seen)

    def _pool(
        self, space: Space, n: int, round: int, seen: dict[int, tuple[int, ...]]
    ) -> Generator[Rollout, Scored, int]:
        """Watch n candidates to their end; returns the denoiser calls they took."""
        drawn = space.draw(n)
        alive = [Watched(drawn.select([i])) for i in range(n)]
        nfe = finished = 0
        for step in self._checks(space):
            moved = yield from _moved(alive, step, round, seen.get(step, ()))
            nfe += moved.nfe
            seen[step] = moved.ids
            alive = self._judged(moved, spare_best=not finished)
            settled = [watched for watched in alive if watched.good >= self.settled_after]
            alive = [watched for watched in alive if watched.good < self.settled_after]
            nfe += (yield from _moved(settled, space.steps, round)).nfe
            finished += len(settled)
        return nfe + (yield from _moved(alive, space.steps, round)).nfe

    def _checks(self, space: Space) -> list[int]:
        """The steps to check at, counted from where sampling starts."""
        steps = space.steps - space.first
        after = range(self.check_interval, steps, self.check_interval)
        return [space.first + k for k in after if k >= self.check_from * steps - 1e-9]

    def _judged(self, moved: Moved, spare_best: bool) -> list[Watched]:
        """The candidates that go on, with what this check says of them."""
        threshold = self._threshold(moved.scores)
        own = moved.own_scores.tolist()
        judged = [
            self._marked(watched, score, threshold)
            for watched, score in zip(moved.watched, own, strict=True)
        ]
        if self.action == "guidance":
            return judged
        goes_on = [watched.bad < self.patience for watched in judged]
        if spare_best and not any(goes_on[i] and math.isfinite(own[i]) for i in range(len(own))):
            goes_on[int(finite(moved.own_scores).argmax())] = True
        return [watched for watched, on in zip(judged, goes_on, strict=True) if on]

    def _threshold(self, scores: Tensor) -> float:
        if self.quality_threshold is not None:
            return self.quality_threshold
        known = scores[scores.isfinite()].tolist()
        return median(known) if known else math.nan

    def _marked(self, watched: Watched, score: float, threshold: float) -> Watched:
        if not math.isfinite(score):  # the verifier's failure says nothing of the candidate
            return watched
        if score >= threshold:
            return replace(watched, good=watched.good + 1, bad=0)
        guidance = watched.guidance * (self.scale_factor if self.guides else 1)
        guidance = max(1 / self.max_scale, min(guidance, self.max_scale))
        return replace(watched, good=0, bad=watched.bad + 1, guidance=guidance)


@dataclass(frozen=True)
class Watched:
    """One candidate on its way.

    guidance: the factor for its coming steps. good, bad: how many checks in a row were.
    """

    point: Candidates
    guidance: float = 1.0
    good: int = 0
    bad: int = 0


@dataclass(frozen=True)
class Moved:
    """Candidates further on, and what their previews compete with.

    ids, scores: of the rivals and then of the candidates, on one scale. nfe: what it took.
    """

    watched: Sequence[Watched]
    ids: tuple[int, ...]
    scores: Tensor
    nfe: int

    @property
    def own_scores(self) -> Tensor:
        return self.scores[len(self.scores) - len(self.watched) :]


def _moved(
    watched: Sequence[Watched], until: int, round: int, rivals: tuple[int, ...] = ()
) -> Generator[Rollout, Scored, Moved]:
    """Denoise candidates up to a step, those of one guidance together.

    Each group is the next one's rival, so that the last answer has all scores on today's scale.
    """
    groups: dict[float, list[Watched]] = {}
    for each in watched:
        groups.setdefault(each.guidance, []).append(each)
    ids, scores = rivals, torch.zeros(0, dtype=torch.float64)
    further: list[Watched] = []
    for guidance, group in groups.items():
        scored = yield Rollout(
            joined(each.point for each in group), until, guidance=guidance, rivals=ids, round=round
        )
        ids += scored.ids
        scores = torch.cat([scored.rival_scores, scored.scores])
        further += [
            replace(each, point=scored.candidates.select([i])) for i, each in enumerate(group)
        ]
    nfe = sum(until - each.point.step for each in watched)
    return Moved(further, ids, scores, nfe)
