"""SVDD, soft value-based decoding in diffusion (Li et al. 2024, arXiv 2408.08252, Algorithm 1).

A child's value is the score of its clean estimate, as in the paper's posterior-mean variant. Two
things differ. The paper asks the denoiser once more for each child's estimate; here candidates are
kept before their noise, so that the call that judges a child is also its step: M children cost M
calls a step. And branching starts where previews begin to say something, not at the first step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from search.branching import Branching, check_counts, check_share, keep_best
from search.core import Flow, Need, Space, finite
from search.resampling import Unit


@dataclass(frozen=True)
class Svdd:
    """At every step each of `chains` states has `branches` children, of which one is kept.

    branches: M, children a state; the paper takes 20. chains: independent states, so that several
    local choices run to the end. every: steps between two choices; above 1 this is CoDe.
    temperature: alpha; 0 keeps the best child, more draws one by softmax(score / alpha), which is
    a biased draw of the soft-optimal step at finite M. normalise: alpha counts in standard
    deviations of the children's scores (the largest at one step so far), else in the verifier's
    own unit. check_from: share of the steps to take plainly first; earlier previews are noise.

    A budget decides over `chains`: as many as fit, and where one does not, it has fewer branches.
    """

    branches: int = 5
    chains: int = 2
    every: int = 1
    temperature: float = 0.0
    normalise: bool = True
    check_from: float = 0.25

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(branches=self.branches, chains=self.chains, every=self.every)
        check_share(self.check_from)
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}")

    def sized(self, steps: int, nfe: int) -> Self:
        fitted = self._branching.sized(steps, nfe)
        return replace(self, chains=fitted.chains, branches=fitted.branches)

    def flow(self, space: Space) -> Flow:
        def draw(scores: Tensor, unit: Unit) -> list[int]:
            return self._drawn(unit.measure(scores) if self.normalise else scores, space.rng)

        yield from self._branching.flow(space, draw if self.temperature else keep_best)

    def _drawn(self, scores: Tensor, rng: torch.Generator) -> list[int]:
        """A branch for each chain, drawn by softmax; the first where none has a score."""
        logits = finite(scores / self.temperature)
        known = logits.isfinite().any(1, keepdim=True)
        first = torch.eye(1, scores.shape[1], dtype=scores.dtype)
        weights = torch.where(known, (logits - logits.amax(1, keepdim=True)).exp(), first)
        return torch.multinomial(weights, 1, generator=rng)[:, 0].tolist()

    @property
    def _branching(self) -> Branching:
        return Branching(self.chains, self.branches, self.every, self.check_from)
