"""Gradient ascent on the initial noise: ReNO (Eyring et al. 2024, §3) for samplers of any length.

ReNO climbs one-step models by SGD with Nesterov momentum on a clipped gradient. Two things differ.
The gradient is scaled to unit length instead of clipped, since its size changes by orders of
magnitude with the number of steps and with the verifier. And `learning_rate` is a share of the
noise's typical norm, since a step of fixed length is large in a small latent space and nothing in
a large one; ReNO's clipped step on SDXL-Turbo is 0.004 of it, for 50 iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from search.core import Candidates, Flow, Need, Rollout, Scored, Space, joined
from search.ledger import GRADIENT_NFE


@dataclass(frozen=True)
class Ascent:
    """Climb the verifier's gradient with respect to the noise; every iterate is a candidate.

    learning_rate: length of a step, momentum apart, as a share of the noise's typical norm sqrt(d).
    momentum: Nesterov's. iterations: steps taken before the last noise is scored; a budget sets
    them. regularization: weight of the pull towards the norm that noise has (the gradient of the
    log-density of a Gaussian's norm) against the score's unit gradient. starts: noises climbed at
    once, each by itself.

    A noise without a score, or whose gradient is not finite, gives its place to a fresh one.
    """

    learning_rate: float = 0.02
    momentum: float = 0.9
    iterations: int = 10
    regularization: float = 0.01
    starts: int = 1

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie within [0, 1), not {self.momentum}")
        if self.iterations < 0 or self.starts < 1:
            raise ValueError("iterations must be at least 0 and starts at least 1")
        if self.regularization < 0:
            raise ValueError(f"regularization must be at least 0, not {self.regularization}")

    def sized(self, steps: int, nfe: int) -> Self:
        """Fewer starts where not even one iteration of all is paid for; as many iterations as are.

        An iteration costs each start `GRADIENT_NFE` passes, and the last noises one.
        """
        passes = nfe // steps
        starts = max(1, min(self.starts, passes // (GRADIENT_NFE + 1)))
        iterations = max(0, (passes // starts - 1) // GRADIENT_NFE)
        return replace(self, starts=starts, iterations=iterations)

    def flow(self, space: Space) -> Flow:
        at = space.draw(self.starts)
        radius = _norms(at.latents)
        velocity = torch.zeros_like(at.latents, dtype=torch.float64)
        for _ in range(self.iterations):
            scored = yield Rollout(at, until=space.steps, gradient=True, round=1)
            assert scored.gradient is not None
            uphill = self._uphill(at.latents, scored.gradient, radius)
            velocity = self.momentum * velocity + uphill
            step = self.learning_rate * radius * (uphill + self.momentum * velocity)
            moved = (at.latents.double() + step).to(at.latents.dtype)
            lost = [i for i in range(self.starts) if not _sound(scored, i)]
            at, velocity = _refilled(space, moved, velocity, scored, lost)
        yield Rollout(at, until=space.steps, round=1)

    def _uphill(self, latents: Tensor, gradient: Tensor, radius: Tensor) -> Tensor:
        """The score's unit gradient and the pull towards the shell.

        The norm of d-dimensional unit noise has log-density (d - 1) log r - r^2 / 2 + c, here with
        lengths in units of its root d.
        """
        unit = gradient.double() / _norms(gradient)
        x = latents.double() / radius
        pull = math.sqrt(x[0].numel()) * (1 / _norms(x) ** 2 - 1) * x
        return unit + self.regularization * pull


def _sound(scored: Scored, i: int) -> bool:
    """Whether this candidate has a score, and a gradient to go by."""
    assert scored.gradient is not None
    norm = float(scored.gradient[i].double().norm())
    return math.isfinite(float(scored.scores[i])) and math.isfinite(norm) and norm > 0


def _refilled(
    space: Space, moved: Tensor, velocity: Tensor, scored: Scored, lost: list[int]
) -> tuple[Candidates, Tensor]:
    """The noises moved, and fresh ones at rest in the place of those that were lost."""
    kept = [i for i in range(len(moved)) if i not in lost]
    order = kept + lost
    parts = [space.place(moved[kept], [scored.start.parents[i] for i in kept])] if kept else []
    parts += [space.draw(len(lost))] if lost else []
    velocity[lost] = 0.0
    return joined(parts).select([order.index(i) for i in range(len(moved))]), velocity


def _norms(x: Tensor) -> Tensor:
    """[n, 1, ...]: the norm of each row, in float64."""
    return x.double().flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
