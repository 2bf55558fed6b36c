"""EvoSearch, evolution along the sampling path (He et al. 2025, arXiv 2505.17618, §4).

Each generation starts where a point of the schedule lies: its children are mutated states that the
best paths so far went through, and finishing one costs only the steps that are left. Fitness is the
score of the finished image, never of a preview.

Where ours differs. Children start at the very step their parent's state stands at; the released
code takes that step a second time. One strength serves for all mutations: at the start it turns the
noise by the paper's x sqrt(1 - b^2) + b n, kept on its shell, and midway it adds noise of as much
of the step's own noise level. The paper adds the noise of one solver step there, which is 0.4 of
the level with DDIM's 50 steps but 0.7 to 0.8 of it with 10. The schedule is the one for FLUX, which
begins a tenth of the way in, for all models; the paper's for Stable Diffusion begins with the pure
noise. A flow model's first variance-preserving step forgets that noise, for its level holds no
signal: whatever was bred there, the paths would be as fresh as random ones.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from search.branching import check_counts
from search.core import Candidates, Flow, Need, Rollout, Scored, Space, finite, joined, lead


@dataclass(frozen=True)
class Archive:
    """All finished candidates, and the states their paths went through.

    states: for each step of the schedule still to come, one state for each candidate, whose id is
    its parent there. scores: float64, today's.
    """

    ids: tuple[int, ...] = ()
    scores: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    states: Mapping[int, Candidates] = field(default_factory=dict)

    def ranked(self) -> list[int]:
        """Positions from best to worst of those with a score; all of them where none has one."""
        order: list[int] = finite(self.scores).argsort(descending=True, stable=True).tolist()
        known = int(self.scores.isfinite().sum())
        return order[: known or None]

    def grown(
        self, candidates: Candidates, points: Sequence[int], end: int
    ) -> Generator[Rollout, Scored, Archive]:
        """With these candidates too, denoised to the end by way of the points."""
        states = {}
        for point in points:
            if point > candidates.step:
                moved = yield Rollout(candidates, until=point, score=False, round=1)
                candidates = moved.candidates
            states[point] = candidates
        scored = yield Rollout(candidates, until=end, rivals=self.ids, round=1)
        own = tuple((i,) for i in scored.ids)
        states = {point: replace(state, parents=own) for point, state in states.items()}
        return Archive(
            self.ids + scored.ids,
            torch.cat([scored.rival_scores, scored.scores]),
            {p: self.states[p] + s if self.ids else s for p, s in states.items()},
        )


@dataclass(frozen=True)
class EvoSearch:
    """Generations of children bred from the states that the best paths went through.

    schedule: shares of the steps at which a generation starts, one after another; 0 breeds noises
    (of a model of one step every share does), and without any this is best of N. start: noises of
    the first population (the paper: about twice the later ones, and of all sizes the one that
    matters most). population: children of each later generation. elites: so many of the children
    go on unmutated from the states of the best, by new paths; none where the last step alone is
    left, which adds no noise. tournament: share of all candidates so far that compete, drawn anew
    for each other child, to be its parent. mutation: b above, 0 to 1; the paper's 0.3 turns a noise
    to a cosine of 0.95, and midway leaves a state with 5 % more noise than its step expects.

    The first candidates compete as parents in every later generation, by the scores they have
    today. One without a score is no parent while others have one.

    A budget decides over `population` and with it over `elites`; `start` grows in proportion and
    takes what the whole schedule leaves. Too small a budget for one child a generation goes to
    noises alone.
    """

    schedule: tuple[float, ...] = (0.1, 0.4, 0.6, 0.8)
    start: int = 14
    population: int = 7
    elites: int = 3
    tournament: float = 0.9
    mutation: float = 0.3

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(start=self.start, population=self.population)
        if not all(0 <= share < 1 for share in self.schedule):
            raise ValueError(
                f"schedule holds shares of the steps within [0, 1), not {list(self.schedule)}"
            )
        if not 0 <= self.elites <= self.population:
            raise ValueError(
                f"elites must be between 0 and the population of {self.population}, not"
                f" {self.elites}"
            )
        if not 0 < self.tournament <= 1:
            raise ValueError(
                f"tournament is a share of the candidates within (0, 1], not {self.tournament}"
            )
        if not 0 <= self.mutation <= 1:
            raise ValueError(f"mutation must lie within [0, 1], not {self.mutation}")

    def sized(self, steps: int, nfe: int) -> Self:
        child = sum(steps - after for after in self._points(steps))  # one in each generation
        scale = nfe / (self.start * steps + self.population * child)
        population = int(scale * self.population + 1e-9)  # an exact fit may round to just below
        if not population:
            return replace(self, schedule=(), start=max(1, nfe // steps))
        return replace(
            self,
            start=max(1, (nfe - population * child) // steps),
            population=population,
            elites=int(scale * self.elites + 1e-9),
        )

    def flow(self, space: Space) -> Flow:
        points = [space.first + after for after in self._points(space.steps - space.first)]
        archive = yield from Archive().grown(space.draw(self.start), points, space.steps)
        for number, point in enumerate(points, 1):
            elites = self.elites if point + 1 < space.steps else 0
            children = self._children(space, archive, archive.states[point], elites)
            archive = yield from archive.grown(children, points[number:], space.steps)

    def _points(self, steps: int) -> list[int]:
        """Steps taken before each generation starts, ascending; shares on one step make one."""
        points = {lead(steps, share) if share and steps > 1 else 0 for share in self.schedule}
        return sorted(point for point in points if point < steps)

    def _children(
        self, space: Space, archive: Archive, states: Candidates, count: int
    ) -> Candidates:
        """So many elites as they are and mutated winners of tournaments, all by new paths."""
        ranked = archive.ranked()
        elites = ranked[:count]
        entrants = max(1, int(self.tournament * len(ranked)))
        winners = []
        for _ in range(self.population - len(elites)):
            drawn = torch.randperm(len(ranked), generator=space.rng)[:entrants]
            winners.append(ranked[int(drawn.min())])
        turned = math.sqrt(1 - self.mutation**2)
        bred = [(elites, 1.0), (winners, turned)]
        return joined(
            space.perturb(states.select(parents), 1, cosine) for parents, cosine in bred if parents
        )
