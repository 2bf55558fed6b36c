"""A diffusion whose denoiser is known in closed form: a mixture of narrow Gaussians."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from search.core import Candidates, Rollout, Scored, draft_steps
from search.ledger import Cost, nfe_each
from search.resampling import on_shell, repeat_each
from utils import seed_of


class ToySpace:
    """`search.core.Space` in two dimensions, rectified flow, all randomness keyed."""

    def __init__(self, steps: int = 10, seed: int = 0, dim: int = 2) -> None:
        self.steps = steps
        self.first = 0
        self.dim = dim
        self.seed = seed
        self.rng = torch.Generator().manual_seed(seed)
        self.sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        self.count = 0
        self.origin: ToySpace | None = None  # the space that this one drafts

    def draw(self, n: int) -> Candidates:
        seeds = self._seeds(n)
        return Candidates(self._noise(seeds), 0, seeds)

    def perturb(self, around: Candidates, n: int, cosine: float) -> Candidates:
        centres = noised(around).select(repeat_each(len(around), n))
        seeds = self._seeds(len(centres))
        if around.step == 0:
            moved = on_shell(centres.latents, self._noise(seeds), cosine)
        else:
            reach = self.sigmas[around.step] * (2 - 2 * cosine) ** 0.5
            moved = centres.latents + reach * self._noise(seeds)
        return Candidates(moved, around.step, seeds, parents=centres.parents)

    def renoise(self, candidates: Candidates, to: int) -> Candidates:
        candidates = noised(candidates)
        now, then = self.sigmas[candidates.step], self.sigmas[to]
        keep = (1 - then) / (1 - now)
        fill = (then**2 - (keep * now) ** 2).clamp_min(0).sqrt()
        seeds = self._seeds(len(candidates))
        latents = keep * candidates.latents + fill * self._noise(seeds)
        return Candidates(latents, to, seeds, parents=candidates.parents)

    def fork(self, candidates: Candidates, index: Tensor | Iterable[int]) -> Candidates:
        copies = candidates.select(index)
        return replace(copies, seeds=self._seeds(len(copies)))

    def place(self, latents: Tensor, parents: Sequence[tuple[int, ...]]) -> Candidates:
        return Candidates(latents, self.first, self._seeds(len(latents)), parents=tuple(parents))

    def step_below(self, share: float) -> int:
        inner = range(1, self.steps)
        return next((k for k in inner if self.sigmas[k] < share), self.steps - 1)

    def drafted(self, share: float) -> ToySpace:
        space = copy.copy(self)
        space.steps = draft_steps(self.steps, share)
        space.sigmas = torch.linspace(1, 0, space.steps + 1, dtype=torch.float64)
        space.origin = self.origin or self
        return space

    def exact(self, drafts: Candidates, steps: int) -> Candidates:
        assert drafts.step == 0 and 0 < steps <= self.steps
        return drafts

    def spatial(self, latents: Tensor) -> Tensor:
        return latents.reshape(len(latents), 1, 1, self.dim)

    def from_spatial(self, unit: Tensor) -> Tensor:
        return unit.reshape(len(unit), self.dim)

    def _seeds(self, n: int) -> tuple[int, ...]:
        counted = self.origin or self
        counted.count += n
        return tuple(seed_of("toy", self.seed, i) for i in range(counted.count - n, counted.count))

    def _noise(self, seeds: Iterable[int]) -> Tensor:
        return unit(seeds, self.dim)


def unit(seeds: Iterable[int], dim: int) -> Tensor:
    """Standard normal noise [n, dim], row i drawn from seed i."""
    keyed = [torch.Generator().manual_seed(s) for s in seeds]
    return torch.stack([torch.randn(dim, dtype=torch.float64, generator=g) for g in keyed])


def noised(candidates: Candidates) -> Candidates:
    """Candidates kept before their noise, with it."""
    if candidates.noise_scale is None:
        return candidates
    at, x = candidates.step, candidates.latents
    noise = unit([seed_of("step", s, at) for s in candidates.seeds], x.shape[1])
    return replace(
        candidates, latents=x + candidates.noise_scale[:, None] * noise, noise_scale=None
    )


@dataclass
class ToyEngine:
    """Answers rollouts: a score is minus the distance of the clean estimate to a target.

    nan_every: every so many-th candidate gets no score. stochastic: each step adds the noise of
    its own posterior, and candidates are kept before it. rows: denoiser rows really run.
    """

    space: ToySpace
    nan_every: int = 0
    stochastic: bool = False
    rows: int = 0
    log: list[tuple[int, float]] = field(default_factory=list)
    sigmas: Tensor = field(init=False)

    centres = torch.tensor([[1.2, -0.4], [-1.0, 1.0], [0.3, 1.4], [-0.9, -1.1]]).double()
    target = torch.tensor([1.2, -0.4], dtype=torch.float64)
    spread = 0.1

    def velocity(self, x: Tensor, s: Tensor) -> Tensor:
        """(x - E[x0 | x]) / s for the mixture, in closed form."""
        var = (1 - s) ** 2 * self.spread**2 + s**2
        delta = x[:, None] - (1 - s) * self.centres
        weight = torch.softmax(-(delta**2).sum(-1) / (2 * var), 1)[..., None]
        mean = self.centres + (1 - s) * self.spread**2 / var * delta
        return (x - (weight * mean).sum(1)) / s

    def stepped(self, at: Candidates) -> tuple[Tensor, Candidates]:
        """The clean estimate, and the candidates one step on."""
        s, t = self.sigmas[at.step], self.sigmas[at.step + 1]
        v = self.velocity(at.latents, s)
        clean, noise = at.latents - s * v, at.latents + (1 - s) * v
        self.rows += len(at)
        scale = torch.zeros((), dtype=torch.float64)
        if self.stochastic:
            scale = t * (1 - ((1 - s) * t / ((1 - t) * s)) ** 2).clamp_min(0).sqrt()
        mean = (1 - t) * clean + (t**2 - scale**2).sqrt() * noise
        kept = scale.expand(len(at)).clone() if self.stochastic else None
        return clean, replace(at, latents=mean, step=at.step + 1, noise_scale=kept)

    def judged(self, clean: Tensor) -> Tensor:
        """The verifier: scores [n] of clean estimates [n, dim]."""
        return -(clean - self.target).norm(dim=1)

    def __call__(self, wish: Rollout) -> tuple[Scored, Cost]:
        start = wish.candidates
        self.sigmas = self.space.sigmas
        if wish.draft:
            self.sigmas = torch.linspace(1, 0, wish.draft + 1, dtype=torch.float64)
        origin = start.latents.clone().requires_grad_(wish.gradient)
        at = replace(start, latents=origin)
        clean = noised(at).latents
        for _ in range(start.step, wish.until):
            clean, at = self.stepped(noised(at))
        ids = tuple(range(len(self.log), len(self.log) + len(start)))
        scores = self.judged(clean) if wish.score else torch.full((len(clean),), torch.nan)
        if self.nan_every:
            missing = torch.tensor([i % self.nan_every == 0 for i in ids])
            scores = scores.masked_fill(missing, torch.nan)
        gradient = torch.autograd.grad(scores.sum(), origin)[0] if wish.gradient else None
        at, scores = replace(at, latents=at.latents.detach()), scores.detach()
        self.rows += (nfe_each(wish) - (wish.until - start.step)) * len(start)
        self.log += zip(start.seeds, scores.tolist(), strict=True)
        scored = Scored(
            start=start,
            candidates=at,
            scores=scores,
            ids=ids,
            rival_scores=torch.tensor([self.log[i][1] for i in wish.rivals]).double(),
            gradient=gradient,
        )
        n = len(start)
        calls = nfe_each(wish) * n
        return scored, Cost(nfe=calls, rows=calls, verifications=n if wish.score else 0)
