"""Search over paths (Ma et al. 2025, arXiv 2501.09732, §3.2).

Paths are denoised until little noise is left, then again and again taken back by fresh noise and
denoised a little further than before: each path tries several such detours, and the best
candidates by their previews go on. No step adds noise, so any sampler will do.

Where ours differs: levels become steps of the schedule, and every turn gains at least one. The
paper's levels ask for four turns below a level of 0.11, where the usual 20 to 50 steps have one or
two: there the turns start earlier, so many steps before the end as there are turns, but not before
halfway. A preview is the clean estimate of the last step taken, which costs no further denoiser
call. As in the paper only the new candidates of a turn compete, not the states that they were
re-noised from, and the last turn ends at finished images: the best of these is the result.

The paper's text does not print its levels; the defaults are those of the baseline in RBF's code
(Kim et al. 2025, arXiv 2503.19385: 0.12, 0.78, 0.81), which makes four turns as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from search.branching import check_counts
from search.core import Flow, Need, Rollout, Space
from search.methods.halving import survivors
from search.resampling import repeat_each


@dataclass(frozen=True)
class Paths:
    """Paths that are re-noised and denoised in turns, the best going on each time.

    num_paths: N, noises drawn and candidates kept each turn. width: M, how often each is re-noised
    in a turn. sigma: the noise level at which the turns start. delta_f: levels that a turn goes
    forward to noise, delta_b: levels that it comes back, so that it gains delta_b - delta_f, and
    at least one step. Levels are noise / (signal + noise): 1 is noise, 0 is clean, and for flow
    models this is sigma itself. With sigma 0 there are no turns, and this is best of N.

    A candidate whose preview has no score is dropped while others have one.

    nfe: what one pass may spend, which a budget sets. It decides over num_paths: as many as it pays
    for; where that is none, over width: one path with as many detours as it pays for; and where
    that leaves nothing to choose from, it is spent on best of N.
    """

    num_paths: int = 2
    width: int = 5
    sigma: float = 0.11
    delta_f: float = 0.78
    delta_b: float = 0.81
    nfe: int | None = None

    needs: ClassVar[frozenset[Need]] = frozenset({"midway"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(num_paths=self.num_paths, width=self.width)
        if self.nfe is not None:
            check_counts(nfe=self.nfe)
        if not 0 <= self.sigma < 1:
            raise ValueError(f"sigma is a noise level within [0, 1), not {self.sigma}")
        if not 0 < self.delta_f <= 1:
            raise ValueError(f"delta_f is a difference of levels in (0, 1], not {self.delta_f}")
        if not self.delta_b > self.delta_f:
            raise ValueError(
                f"delta_b must be more than delta_f ({self.delta_f}), not {self.delta_b}:"
                " a turn has to end with less noise than it began"
            )

    def sized(self, steps: int, nfe: int) -> Self:
        # How long a turn is depends on the schedule, which only the flow can see.
        return replace(self, nfe=max(1, min(nfe, self.nfe or nfe)))

    def flow(self, space: Space) -> Flow:
        journey = self._journey(space)
        scored = yield Rollout(
            space.draw(journey.num_paths),
            until=journey.start,
            score=journey.start == space.steps,
            round=1,
        )
        for turn in journey.turns:
            states = scored.candidates
            copies = states.select(repeat_each(len(states), journey.width))
            detours = space.renoise(copies, turn.back)
            scored = yield Rollout(detours, until=turn.until, round=1)
            scored = survivors(scored, journey.num_paths)

    def _journey(self, space: Space) -> Journey:
        """The way from noise to image, fitted to what it may cost."""
        turns = self._turns(space)
        start = self._start(space)
        journey = Journey(self.num_paths, self.width, start, turns)
        if self.nfe is None:
            return journey
        before, length = start - space.first, sum(turn.until - turn.back for turn in turns)
        num_paths = self.nfe // (before + self.width * length)
        if num_paths:
            return replace(journey, num_paths=num_paths)
        width = (self.nfe - before) // length if length else 0
        if width > 1:
            return replace(journey, num_paths=1, width=width)
        images = max(1, self.nfe // (space.steps - space.first))
        return Journey(images, 1, space.steps, ())

    def _start(self, space: Space) -> int:
        """The step at which the turns start; the last where there are none."""
        below = space.step_below(self.sigma) if self.sigma else space.steps
        room = min(len(self._levels()), (space.steps - space.first) // 2)
        return max(space.first + 1, min(below, space.steps - room))

    def _levels(self) -> list[float]:
        """The noise level before each turn, had the schedule a step at every level."""
        gain = self.delta_b - self.delta_f
        return [self.sigma - i * gain for i in range(math.ceil(round(self.sigma / gain, 6)))]

    def _turns(self, space: Space) -> tuple[Turn, ...]:
        at = self._start(space)
        levels = self._levels()[: space.steps - at]
        turns = []
        for left, level in zip(reversed(range(len(levels))), levels, strict=True):
            back = space.step_below(level + self.delta_f)
            after = level + self.delta_f - self.delta_b
            until = min(space.step_below(after), space.steps - left) if left else space.steps
            turns.append(Turn(max(space.first, min(back, at - 1)), max(until, at + 1)))
            at = turns[-1].until
        return tuple(turns)


@dataclass(frozen=True)
class Turn:
    """Back by the forward process to one step, and denoised until another."""

    back: int
    until: int


@dataclass(frozen=True)
class Journey:
    """num_paths states at step `start`, and turns of `width` detours each that end at the last."""

    num_paths: int
    width: int
    start: int
    turns: tuple[Turn, ...]
