"""Feynman-Kac steering, sequential Monte Carlo over sampling paths (Singhal et al. 2025).

arXiv 2501.06848. Particles are stochastic samples; at checkpoints their previews give potentials,
and where the weights have become uneven the heavy particles are copied in place of the light ones.
With the correction of the last step the weighted particles are draws of p(x) exp(strength r(x)).

Where ours differs: weights are kept as logarithms; rewards are measured in their own spread, so
that one strength fits any verifier; resampling is systematic, which adds less noise than
multinomial draws; the target may be tempered along the way (DAS, Kim et al. 2025, 2501.05803);
and previews are asked for from a quarter of the steps on, since earlier ones say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from search.branching import branched, check_counts, check_share
from search.core import Candidates, Flow, Need, Rollout, Scored, Space, step_at
from search.resampling import Unit, effective_sample_size, systematic, tempering_step


@dataclass(frozen=True)
class Particles:
    """Weighted particles at one step; tensors are float64 [n].

    log_weights: since the last resampling. reward: what the potential is made of, less the unit's
    centre: the latest, the highest, or the sum of the scores so far; nan before the first.
    potential: the logarithms of all potentials along each particle's path, summed.
    """

    candidates: Candidates
    log_weights: Tensor
    reward: Tensor
    potential: Tensor

    @classmethod
    def fresh(cls, candidates: Candidates) -> Particles:
        zeros = torch.zeros(len(candidates), dtype=torch.float64)
        return cls(candidates, zeros, torch.full_like(zeros, torch.nan), zeros)

    def weighed(self, increment: Tensor) -> Particles:
        """With these log-potentials, where they are not nan."""
        gained = increment.nan_to_num(nan=0.0)
        return replace(
            self,
            log_weights=self.log_weights + gained,
            potential=self.potential + gained,
        )

    def resampled(self, space: Space, index: list[int]) -> Particles:
        """Copies of these particles, all of one weight again."""
        return Particles(
            branched(space, self.candidates, index),
            torch.zeros_like(self.log_weights),
            self.reward[index],
            self.potential[index],
        )


@dataclass(frozen=True)
class Steering:
    """Particles pulled towards what the verifier likes, without losing the sampler's law.

    particles: how many. strength: lambda, what a score is multiplied with in exp(lambda r). With
    normalise it counts in standard deviations of the particles' scores (the largest at one
    checkpoint so far): the paper's 10 for ImageReward, whose scores of one prompt spread by 0.4,
    is 4 here. Without, it counts in the verifier's own unit.

    potential: exp(lambda r) of "diff", the reward gained since the last checkpoint; "max", the
    highest so far; "sum", all so far. tempering: "none" aims at the full strength from the first
    checkpoint on; "linear" at a share that grows from checkpoint to checkpoint; "adaptive" at the
    largest share that keeps the effective sample size at the threshold, and resamples whenever
    that is not the whole.

    check_from: share of the steps before the first checkpoint. check_every: steps between two.
    ess_threshold: resample when the effective sample size is below this share of the particles
    that have a score.

    A particle without a score at a checkpoint keeps its weight; it is not copied, and if the
    others resample it is lost. A verifier that fails by chance thus does not shift the law.

    A budget decides over `particles`: as many as it can finish.
    """

    particles: int = 8
    strength: float = 4.0
    normalise: bool = True
    potential: Literal["diff", "max", "sum"] = "diff"
    tempering: Literal["none", "linear", "adaptive"] = "none"
    check_from: float = 0.25
    check_every: int = 5
    ess_threshold: float = 0.5

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})
    blind: ClassVar[bool] = False
    fixed_scale: ClassVar[bool] = True  # weights add up scores of several checkpoints

    def __post_init__(self) -> None:
        check_counts(particles=self.particles, check_every=self.check_every)
        check_share(self.check_from)
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(
                f"ess_threshold is a share of the particles within [0, 1], not {self.ess_threshold}"
            )
        if not 0 <= self.strength < math.inf:
            raise ValueError(
                f"strength must be a number from 0, not {self.strength}: negate the metric's weight"
                " to steer away from it"
            )

    def sized(self, steps: int, nfe: int) -> Self:
        return replace(self, particles=max(1, nfe // steps))

    def flow(self, space: Space) -> Flow:
        yield from self.weighted(space)

    def weighted(self, space: Space) -> Generator[Rollout, Scored, Particles]:
        """The flow; it returns the finished particles with their final weights."""
        particles, unit, share = Particles.fresh(space.draw(self.particles)), Unit(), 0.0
        checkpoints = range(step_at(space, self.check_from), space.steps, self.check_every)
        for number, step in enumerate(checkpoints, 1):
            scored = yield Rollout(particles.candidates, until=step, round=1)
            unit = unit.seen(scored.scores)
            particles = self._rewarded(particles, scored, unit)
            goal = self._goal(particles.reward, unit).where(scored.scores.isfinite(), torch.nan)
            share = self._share(particles, goal, share, number / (len(checkpoints) + 1))
            particles = particles.weighed(self._increment(particles, goal, share))
            weights = particles.log_weights.where(goal.isfinite(), -torch.inf)
            if self._uneven(weights, share):
                index = systematic(weights, self.particles, space.rng)
                particles = particles.resampled(space, index)
        scored = yield Rollout(particles.candidates, until=space.steps, round=1)
        unit = unit.seen(scored.scores)
        # The last step's correction: all potentials of a path multiply to exp(strength r(x)).
        correction = self._goal(scored.scores - unit.centre, unit) - particles.potential
        particles = replace(particles, candidates=scored.candidates).weighed(correction)
        known = scored.scores.isfinite()  # nan never wins
        return replace(particles, log_weights=particles.log_weights.where(known, -torch.inf))

    def _rewarded(self, particles: Particles, scored: Scored, unit: Unit) -> Particles:
        """The particles further on, with what their potential is made of now."""
        now, before = scored.scores - unit.centre, particles.reward
        reward = {
            "diff": now,
            "max": torch.fmax(before, now),
            "sum": before.nan_to_num(nan=0.0) + now,
        }[self.potential]
        reward = reward.where(now.isfinite(), before)
        return replace(particles, candidates=scored.candidates, reward=reward)

    def _goal(self, reward: Tensor, unit: Unit) -> Tensor:
        """lambda r: where the logarithm of a particle's potential is headed, untempered."""
        spread = unit.spread if self.normalise else 1.0
        return self.strength * reward / (spread or 1.0)  # no spread yet: all rewards are equal

    def _increment(self, particles: Particles, goal: Tensor, share: float) -> Tensor:
        """The log-potential of this checkpoint; differences telescope to the latest goal."""
        past = particles.potential if self.potential == "diff" else 0.0
        return share * goal - past

    def _share(self, particles: Particles, goal: Tensor, before: float, planned: float) -> float:
        """The share of the full strength to aim at now."""
        if self.tempering == "none":
            return 1.0
        if self.tempering == "linear":
            return planned
        least = particles.log_weights + self._increment(particles, goal, before)
        target = self.ess_threshold * int(goal.isfinite().sum())
        return before + (1 - before) * tempering_step(least, (1 - before) * goal, target)

    def _uneven(self, log_weights: Tensor, share: float) -> bool:
        """Whether the weights ask for resampling; minus infinity stands for no score."""
        scored = int(log_weights.isfinite().sum())
        if self.tempering == "adaptive" and share < 1:
            return scored > 0
        return effective_sample_size(log_weights) < self.ess_threshold * scored
