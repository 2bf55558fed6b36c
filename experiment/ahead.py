"""Batches of a blind search filled with what it will ask next.

Its rounds are small at first and double, so that early batches would run half empty. What was made
for a later wish waits here until that is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiment.batches import Answered
from search.core import Candidates, Rollout, joined


@dataclass(frozen=True)
class Batch:
    """Candidates that are denoised together, and how many of them belong to each wish in turn."""

    start: Candidates
    rounds: tuple[int, ...]
    counts: tuple[int, ...]

    def split(self, answered: Answered) -> Iterator[tuple[Candidates, Answered]]:
        """The answer to each wish's share."""
        begin = 0
        for count in self.counts:
            part = range(begin, begin + count)
            yield self.start.select(part), answered.part(part)
            begin += count


class Ahead:
    """The wishes that will come, and what of them has been answered.

    coming: in the order in which they will be asked; none where nobody can know.
    """

    def __init__(self, coming: Iterator[Rollout] | None = None) -> None:
        self._coming = iter(()) if coming is None else coming
        self._known: deque[tuple[Rollout, int]] = deque()  # and how many of each are answered
        self._answered: deque[tuple[Candidates, Answered]] = deque()

    def asked(self, rollout: Rollout) -> None:
        """This wish is asked now, and to come no more."""
        foreseen = self._known.popleft()[0] if self._known else next(self._coming, rollout)
        assert foreseen.candidates.seeds == rollout.candidates.seeds, "not what was foreseen"

    def answered(self, rollout: Rollout) -> Iterator[tuple[Candidates, Answered]]:
        """What of the wish was answered with earlier ones."""
        left = len(rollout.candidates)
        while self._answered and left:
            part = self._answered.popleft()
            left -= len(part[0])
            yield part

    def filled(self, rollout: Rollout, start: Candidates, size: int) -> Batch:
        """A batch of the wish's last candidates, filled up to a size if enough is to come."""
        parts, rounds = [start], [rollout.round or 0] * len(start)
        for wish, begin in self._following(rollout, size - len(start)):
            room = size - sum(map(len, parts))
            if not room:
                break
            part = wish.candidates.select(range(begin, min(begin + room, len(wish.candidates))))
            parts.append(part)
            rounds += [wish.round or 0] * len(part)
        if len(rounds) < size:  # too few to fill it: each wish by itself
            parts, rounds = parts[:1], rounds[: len(start)]
        return Batch(joined(parts), tuple(rounds), tuple(map(len, parts)))

    def take(self, batch: Batch, answered: Answered) -> tuple[Candidates, Answered]:
        """The share of the wish that is asked; the others' are kept for them."""
        own, *others = batch.split(answered)
        for at, part in enumerate(others):
            self._answered.append(part)
            wish, done = self._known[at]
            self._known[at] = (wish, done + len(part[0]))
        return own

    def _following(self, rollout: Rollout, wanted: int) -> Sequence[tuple[Rollout, int]]:
        """Wishes to come that are denoised as this one is, until they hold so many candidates."""
        at, found = 0, []
        while wanted > 0:
            if at == len(self._known):
                if (wish := next(self._coming, None)) is None:
                    break
                self._known.append((wish, 0))
            wish, done = self._known[at]
            if not _alike(wish, rollout):
                break
            found.append((wish, done))
            wanted -= len(wish.candidates) - done
            at += 1
        return found


def _alike(one: Rollout, other: Rollout) -> bool:
    """Whether candidates of both may share a batch."""
    same = replace(one, candidates=other.candidates, rivals=other.rivals, round=other.round)
    return same == other and one.candidates.step == other.candidates.step
