"""The types between a search and the machine that runs it.

An initial noise is a point on a sampling trajectory at step 0, so every method, whether it moves
noises or unfinished images, asks the same question: denoise these points up to step k, and tell me
how good they look. A search is a generator: it yields `Rollout`s and is sent `Scored`s.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor

Need: TypeAlias = Literal["midway", "gradient", "stochastic"]
"""What a search asks of the pipeline: to stop between steps, to differentiate, to add noise."""


@dataclass(frozen=True)
class Candidates:
    """Points on sampling trajectories, all at one step.

    latents: [n, ...], the denoising loop's own state in the pipeline's own layout and scale.
    step: counted in the full schedule; 0 is noise, `Space.steps` is clean.
    seeds: n of them; each names its candidate within a prompt and keys all its randomness.
    noise_scale: stochastic sampling only: `latents` is a step's mean, and this times unit noise is
        still to be added.
    parents: for each candidate the ids of the scored candidates it comes from.
    """

    latents: Tensor
    step: int
    seeds: tuple[int, ...]
    noise_scale: Tensor | None = None
    parents: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.parents:
            object.__setattr__(self, "parents", ((),) * len(self.seeds))
        assert len(self.latents) == len(self.seeds) == len(self.parents)

    def __len__(self) -> int:
        return len(self.seeds)

    def __add__(self, other: Candidates) -> Candidates:
        """Both sets at one step, these first."""
        assert self.step == other.step
        assert (self.noise_scale is None) == (other.noise_scale is None)
        noise_scale = None
        if self.noise_scale is not None and other.noise_scale is not None:
            noise_scale = torch.cat([self.noise_scale, other.noise_scale])
        return Candidates(
            torch.cat([self.latents, other.latents]),
            self.step,
            self.seeds + other.seeds,
            noise_scale,
            self.parents + other.parents,
        )

    def select(self, index: Tensor | Iterable[int]) -> Candidates:
        """The candidates at these positions, in this order; a position may stand more than once."""
        where = [int(i) for i in index]
        rows = torch.tensor(where, dtype=torch.long, device=self.latents.device)
        return replace(
            self,
            latents=self.latents[rows],
            seeds=tuple(self.seeds[i] for i in where),
            noise_scale=None if self.noise_scale is None else self.noise_scale[rows],
            parents=tuple(self.parents[i] for i in where),
        )


@dataclass(frozen=True)
class Rollout:
    """A search's wish: denoise these candidates up to a step, and score what comes out.

    until: a step of the full schedule, not before the candidates' own.
    score: below the last step this asks for a preview, the score of the step's clean estimate.
    gradient: also ask for d score / d latents as handed in.
    guidance: factor on the pipeline's own guidance scale, for this stretch.
    draft: steps of the shorter schedule that these candidates are on (`Space.drafted`), by which
        `until` then counts; a draft never wins. 0: none, the pipeline's own schedule.
    rivals: ids already scored that these compete with (the pivot, the nested pool, the elites).
    rejectable: a round in which none beats its rivals leaves no round record.
    round: rollouts of one round share its number; unset, each rollout is a round of its own.
    """

    candidates: Candidates
    until: int
    score: bool = True
    gradient: bool = False
    guidance: float = 1.0
    draft: int = 0
    rivals: tuple[int, ...] = ()
    rejectable: bool = False
    round: int | None = None

    def __post_init__(self) -> None:
        assert self.until >= self.candidates.step, "a rollout never goes back: use Space.renoise"


@dataclass(frozen=True)
class Scored:
    """The answer to a `Rollout`, in its order.

    start: the candidates as handed in, their ids now their parents (what neighbours are drawn of).
    candidates: the same, further on.
    scores: float64 [n]; nan where the verifier gave no answer.
    ids: n of them, unique within a prompt.
    rival_scores: float64, the rivals' scores on the same scale as `scores`.
    gradient: like `start.latents`, or None.
    """

    start: Candidates
    candidates: Candidates
    scores: Tensor
    ids: tuple[int, ...]
    rival_scores: Tensor
    gradient: Tensor | None = None

    def order(self) -> list[int]:
        """Positions from best to worst; ties keep their order and nan never wins."""
        ranked: list[int] = finite(self.scores).argsort(descending=True, stable=True).tolist()
        return ranked

    def top(self, k: int) -> Scored:
        """The k best, best first."""
        where = self.order()[:k]
        return Scored(
            start=self.start.select(where),
            candidates=self.candidates.select(where),
            scores=self.scores[where],
            ids=tuple(self.ids[i] for i in where),
            rival_scores=self.rival_scores,
            gradient=None if self.gradient is None else self.gradient[where],
        )

    @property
    def best(self) -> float:
        """The highest score; minus infinity where there is none."""
        return best_of(self.scores)


def joined(parts: Iterable[Candidates]) -> Candidates:
    """All of these candidates, in order; they stand at one step."""
    return functools.reduce(operator.add, parts)


def lead(steps: int, share: float) -> int:
    """How many of a candidate's steps come before this share of them is done: at least one, and
    not all of several."""
    return max(1, min(round(share * steps), steps - 1))


def step_at(space: Space, share: float) -> int:
    """The step after this share of sampling; between the first and the last, so never an end."""
    return space.first + lead(space.steps - space.first, share)


def draft_steps(steps: int, share: float) -> int:
    """Steps of a draft's schedule with this share of the steps."""
    return max(1, round(share * steps))


def finite(scores: Tensor) -> Tensor:
    """Scores with nan at minus infinity, so that it loses every comparison."""
    return scores.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def best_of(scores: Tensor) -> float:
    """The highest score; minus infinity where there is none."""
    return float(finite(scores).max()) if len(scores) else -math.inf


def adds_noise(search: Search) -> bool:
    """Whether its steps are to add noise: because it needs that, or because it is asked to."""
    return "stochastic" in search.needs or bool(getattr(search, "stochastic", False))


Flow: TypeAlias = Generator[Rollout, Scored, None]


class Space(Protocol):
    """Where a search moves: free of charge, and free of the model.

    steps: of the full schedule. first: the step at which sampling starts: 0, later for image to
    image.
    """

    steps: int
    first: int
    rng: torch.Generator

    def draw(self, n: int) -> Candidates:
        """n fresh candidates, where sampling starts: at step 0, later for image to image."""

    def perturb(self, around: Candidates, n: int, cosine: float) -> Candidates:
        """n neighbours of each, at this cosine: on its shell at step 0, by matched noise later."""

    def renoise(self, candidates: Candidates, to: int) -> Candidates:
        """The forward process back to an earlier step, with fresh noise."""

    def fork(self, candidates: Candidates, index: Tensor | Iterable[int]) -> Candidates:
        """Copies of the candidates at these positions with fresh seeds, so that they part."""

    def place(self, latents: Tensor, parents: Sequence[tuple[int, ...]]) -> Candidates:
        """Candidates at latents of the search's own making, where sampling starts: fresh seeds.

        parents: for each the ids of the scored candidates it was made from.
        """

    def step_below(self, share: float) -> int:
        """The first step between start and end at which noise / (signal + noise) is below this."""

    def drafted(self, share: float) -> Space:
        """The same space on a schedule with this share of the steps, for drafts."""

    def exact(self, drafts: Candidates, steps: int) -> Candidates:
        """Noises of the drafted space of so many steps, on this schedule."""

    def spatial(self, latents: Tensor) -> Tensor:
        """Latents of step 0 as [n, C, H, W] (or [n, C, F, H, W]) of unit variance."""

    def from_spatial(self, unit: Tensor) -> Tensor:
        """The inverse of `spatial`."""


class Search(Protocol):
    """A frozen dataclass of hyper-parameters, which is also its own config."""

    needs: ClassVar[frozenset[Need]]
    blind: ClassVar[bool]  # its next wish does not depend on answers: it may be asked ahead

    def sized(self, steps: int, nfe: int) -> Self:
        """The same method, fitted to finish within this many denoiser calls.

        steps: the denoiser calls that one candidate takes from start to end.
        """

    def flow(self, space: Space) -> Flow:
        """Yield wishes, receive answers."""
