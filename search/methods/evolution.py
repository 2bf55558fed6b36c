"""Evolution of a distribution over whole initial noises: separable CMA-ES, or cross-entropy.

CMA-ES (Hansen, arXiv 1604.00772) with a diagonal covariance (Ros and Hansen, PPSN 2008) comes
from the `cmaes` library. Evolution over noises, by other algorithms: arXiv 2506.00299.

A latent has thousands of dimensions and a search a few dozen scores, from which neither variances
nor a step size can be learned: CMA-ES takes about as many scores as dimensions to change either.
What such a search gains, it gains by recombination: each generation's noises lean towards the
average of good ones. On a smooth score that adds up whatever the number of dimensions, so no
subspace is offered here; on one that a small step makes jump, nothing beats random search. `ses`
moves in a subspace, which pays where the low frequencies alone are smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar, Literal, Protocol, Self

import torch
from cmaes import SepCMA  # type: ignore[import-untyped]
from torch import Tensor

from search.core import Flow, Need, Rollout, Scored, Space, finite
from search.cross_entropy import Elites, Gaussian, rescaled

GENERATIONS = 3  # the fewest in which a distribution is learned from and then drawn from twice


@dataclass(frozen=True)
class Evolution:
    """A distribution that starts as the noise's own and moves towards the noises that score well.

    algorithm: "cma-es" weighs the better half of each generation; "cross-entropy" fits mean and
    variance to the best candidates of all generations. population: candidates a generation.

    For cross-entropy alone, elite_share: the candidates it is fitted to, as a share of the
    population (never fewer than two); smoothing: share of the old mean and variance that a refit
    keeps; least_variance: the floor under every variance, noise that keeps the search from
    settling on the first good candidates.

    The first generation is what random search would draw. Later noises are brought to the norm at
    which noise of this dimension gathers. It goes on generation by generation, each of them a
    round; a small budget shrinks `population` until three generations fit.
    """

    algorithm: Literal["cma-es", "cross-entropy"] = "cma-es"
    population: int = 8
    elite_share: float = 0.5
    smoothing: float = 0.0
    least_variance: float = 0.1

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ValueError(f"population must be at least 2, not {self.population}")
        if not 0 < self.elite_share <= 1:
            raise ValueError(f"elite_share must be within (0, 1], not {self.elite_share}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is a share within [0, 1), not {self.smoothing}")
        if not 0 < self.least_variance <= 1:
            raise ValueError(
                "least_variance must be within (0, 1], where 1 is the noise's own, not"
                f" {self.least_variance}"
            )

    def sized(self, steps: int, nfe: int) -> Self:
        fits = max(2, nfe // steps // GENERATIONS)
        return replace(self, population=min(self.population, fits))

    def flow(self, space: Space) -> Flow:
        wish = first = space.draw(self.population)
        unit = space.spatial(first.latents)
        points = unit.double().cpu().flatten(1)
        dimension = points.shape[1]
        learner = LEARNERS[self.algorithm](self, dimension, space.rng)
        for round in count(1):
            scored = yield Rollout(wish, until=space.steps, rivals=learner.rivals, round=round)
            learner.tell(points, scored)
            points = learner.ask()
            on_shell = rescaled(points, math.sqrt(dimension)).reshape(unit.shape)
            latents = space.from_spatial(on_shell).to(first.latents)
            wish = space.place(latents, [learner.parents] * self.population)


class Learner(Protocol):
    """A distribution over points [n, d], first asked when it has been told of standard noise.

    Its points are directions: they are scored where they meet the shell.
    """

    @property
    def parents(self) -> tuple[int, ...]:
        """Ids of the candidates that its mean last moved to."""

    @property
    def rivals(self) -> tuple[int, ...]:
        """Ids of the candidates with which the next ones compete."""

    def ask(self) -> Tensor:
        """The next generation, before it is brought to the shell."""

    def tell(self, points: Tensor, scored: Scored) -> None:
        """Learn from the points as asked for, and how they scored."""


class CmaEs:
    """Separable CMA-ES on a score that depends on a point's direction alone.

    It is told the points it asked for, not their places on the shell: so its mean may grow, and
    its generations draw together.
    """

    rivals: tuple[int, ...] = ()  # generations are ranked by themselves

    def __init__(self, options: Evolution, dimension: int, rng: torch.Generator) -> None:
        seed = int(torch.randint(2**31, (), generator=rng))
        self._model = SepCMA(
            torch.zeros(dimension, dtype=torch.float64).numpy(),
            sigma=1.0,
            seed=seed,
            population_size=options.population,
        )
        self.parents: tuple[int, ...] = ()

    def ask(self) -> Tensor:
        asked = [torch.from_numpy(self._model.ask()) for _ in range(self._model.population_size)]
        return torch.stack(asked)

    def tell(self, points: Tensor, scored: Scored) -> None:
        scores = finite(scored.scores)
        answered = scores.isfinite()
        if not answered.any():
            return
        # One without a score comes last, and at the mean it pulls nowhere should it count at all.
        centre = torch.from_numpy(self._model.mean)
        points = torch.where(answered[:, None], points, centre)
        self._model.tell(list(zip(points.numpy(), (-scores).tolist(), strict=True)))
        better = scored.top(self._model.population_size // 2)
        told = zip(better.ids, better.scores.tolist(), strict=True)
        self.parents = tuple(i for i, score in told if math.isfinite(score))


class CrossEntropy:
    """A Gaussian at the elites of all generations, with a floor under its variances."""

    def __init__(self, options: Evolution, dimension: int, rng: torch.Generator) -> None:
        self._options = options
        self._rng = rng
        self._gaussian = Gaussian.standard([dimension])
        self._elites = Elites.none([dimension])

    @property
    def parents(self) -> tuple[int, ...]:
        return self._elites.ids

    @property
    def rivals(self) -> tuple[int, ...]:
        return self._elites.ids

    def ask(self) -> Tensor:
        return self._gaussian.sample(self._options.population, self._rng)

    def tell(self, points: Tensor, scored: Scored) -> None:
        options = self._options
        size = max(2, round(options.elite_share * options.population))
        self._elites = self._elites.joined(points, scored, size)
        self._gaussian = self._gaussian.fitted(
            self._elites.points, smoothing=options.smoothing, floor=options.least_variance
        )


LEARNERS: Mapping[str, Callable[[Evolution, int, torch.Generator], Learner]] = {
    "cma-es": CmaEs,
    "cross-entropy": CrossEntropy,
}
