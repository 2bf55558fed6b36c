"""Small searches for tests, named in configs by their dotted path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from search.core import Flow, Need, Rollout, Space


@dataclass(frozen=True)
class Halving:
    """Four noises, the better two by their previews halfway, each forked and stirred a little."""

    needs: ClassVar[frozenset[Need]] = frozenset({"midway"})
    blind: ClassVar[bool] = False

    def sized(self, steps: int, nfe: int) -> Self:
        return self

    def flow(self, space: Space) -> Flow:
        half = space.steps // 2
        scored = yield Rollout(space.draw(4), until=half, round=1)
        best = scored.top(2).candidates
        noisier = space.renoise(best, to=half - 1)
        forks = space.perturb(space.fork(noisier, [0, 1]), 1, 0.99)
        yield Rollout(forks, until=space.steps, rivals=(), round=1)


@dataclass(frozen=True)
class Noisy(Halving):
    """Asks for noise in its steps."""

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})


@dataclass(frozen=True)
class Louder:
    """From the middle on with three times the guidance."""

    needs: ClassVar[frozenset[Need]] = frozenset({"midway"})
    blind: ClassVar[bool] = True
    guides: ClassVar[bool] = True

    def sized(self, steps: int, nfe: int) -> Self:
        return self

    def flow(self, space: Space) -> Flow:
        half = (space.first + space.steps) // 2
        scored = yield Rollout(space.draw(2), until=half, score=False, round=1)
        yield Rollout(scored.candidates, until=space.steps, guidance=3.0, round=1)


@dataclass(frozen=True)
class Perhaps(Louder):
    """Declares by its options whether it changes guidance."""

    scale: float = 1.0

    @property
    def guides(self) -> bool:  # type: ignore[override]
        return self.scale != 1.0

    def flow(self, space: Space) -> Flow:
        yield Rollout(space.draw(2), until=space.steps, guidance=self.scale, round=1)
