"""A batch on its way: moved, decoded, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pipelines.made import Decoded
from search.core import Candidates
from search.ledger import Cost
from verifiers.base import Score


@dataclass(frozen=True)
class Preview:
    """Pictures of clean estimates late in sampling, and the rows denoised to get there."""

    media: Sequence[Any] = ()
    rows: int = 0

    def part(self, where: slice, rows: int) -> Preview:
        return Preview(self.media[where], rows)


@dataclass(frozen=True)
class Moved:
    """Candidates further on, the clean estimate there, rows denoised on the way."""

    candidates: Candidates
    clean: Tensor
    rows: int = 0
    gradient: Tensor | None = None

    def part(self, where: slice, rows: int) -> Moved:
        """Some of the candidates, which took so many of the rows."""
        gradient = None if self.gradient is None else self.gradient[where]
        candidates = self.candidates.select(range(len(self.candidates))[where])
        return Moved(candidates, self.clean[where], rows, gradient)


@dataclass(frozen=True)
class Made:
    """A batch moved, and decoded where it is to be scored; not judged yet.

    singly: whether pictures are decoded one by one from here on. batch_size: candidates that were
    made in one batch, those of other prompts included. apart: whether its prompt shares batches no
    more.
    """

    start: Candidates
    moved: Moved
    before: Preview
    decoded: tuple[Decoded, list[bool]] | None
    seconds: float
    singly: bool
    batch_size: int
    apart: bool = False

    def part(self, start: Candidates, begin: int) -> Made:
        """The candidates from a position on that began as these."""
        n, where = len(start), slice(begin, begin + len(start))
        moved_rows = self.moved.rows * n // self.batch_size
        early_rows = self.before.rows * n // self.batch_size
        return replace(
            self,
            start=start,
            moved=self.moved.part(where, moved_rows),
            before=self.before.part(where, early_rows),
            decoded=self.decoded and (self.decoded[0].part(where), self.decoded[1][where]),
            seconds=self.seconds * n / self.batch_size,
        )


@dataclass(frozen=True)
class Answered:
    """A batch as it came out: all that its rows, its pictures and the search are made of.

    media: pictures of finished candidates, None for others. batch_size: candidates that were
    denoised together, those of other prompts included. paths: where in the run folder those are
    that are there already. singly: whether pictures are decoded one by one from here on. apart:
    whether the prompt shares batches no more.
    """

    moved: Candidates
    gradient: Tensor | None
    scores: Sequence[Score]
    media: Sequence[Any]
    cost: Cost
    batch_size: int
    paths: Sequence[str | None] = ()
    singly: bool = False
    apart: bool = False

    def part(self, where: range) -> Answered:
        """What concerns some of the candidates, with their share of the cost."""
        return replace(
            self,
            moved=self.moved.select(where),
            gradient=None if self.gradient is None else self.gradient[where.start : where.stop],
            scores=[self.scores[i] for i in where],
            media=[self.media[i] for i in where],
            cost=self.cost.share(len(where), len(self.scores)),
            paths=[self.paths[i] for i in where],
        )
