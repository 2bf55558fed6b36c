"""Where a search moves: noises and trajectory points of one prompt, every one keyed by a seed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.batching import spans
from pipelines.denoiser import Denoiser
from pipelines.layout import Layout
from pipelines.made import Drawn
from pipelines.schedule import Level, renoised
from pipelines.sde import unit_noise, with_noise
from search.core import Candidates, draft_steps
from search.resampling import on_shell, repeat_each
from utils import UserError, digest, seed_of


class LatentSpace:
    """`search.core.Space` over a pipeline's latents.

    All randomness is keyed: the seed of candidate i is 31 bits of SHA-256 over the run's seed, the
    prompt's digest, its occurrence in the prompt list and i; its noise is what plain diffusers
    draws from `torch.Generator("cpu").manual_seed(seed)`.

    recipes: for each seed, how its candidate was made.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompt: str,
        run_seed: int = 0,
        occurrence: int = 0,
        batch_size: int = 8,
    ) -> None:
        self._denoiser = denoiser
        self._prompt = prompt
        self._key = (run_seed, digest(prompt), occurrence)
        self._batch_size = batch_size
        self._next = [0]  # shared with the drafted space
        self._twins: dict[Any, Drawn] | None = None  # what one of two twins has drawn
        self._drafted: dict[int, LatentSpace] = {}  # by their steps
        self._pictures: dict[int, Tensor] = {}  # by the seeds of fresh candidates
        self._inference_steps: int | None = None  # of a draft's schedule
        self.drafts: dict[int, int] = {0: 0}  # steps of drafted schedules: their inference steps
        self.first, self.steps = denoiser.span(prompt, batch_size)
        self.rng = torch.Generator().manual_seed(seed_of(*self._key, "rng"))
        self.recipes: dict[int, dict[str, Any]] = {}

    @functools.cached_property
    def _levels(self) -> tuple[Level, ...]:
        with self._denoiser.drafting(self._inference_steps):
            return self._denoiser.schedule(self._prompt, self._batch_size)

    def draw(self, n: int) -> Candidates:
        seeds = self._seeds([{"op": "draw"}] * n)
        with self._denoiser.drafting(self._inference_steps):
            drawn = [self._drawn(seeds[a:b]) for a, b in spans(n, self._batch_size)]
        return Candidates(torch.cat([d.latents for d in drawn]), drawn[0].step, seeds)

    def _drawn(self, seeds: tuple[int, ...]) -> Drawn:
        """The pipeline's noise; drawn once where a twin draws the same sooner or later."""
        if self._twins is None:
            return self._denoiser.draw(self._prompt, seeds)
        key = self._inference_steps, seeds
        if (known := self._twins.pop(key, None)) is not None:
            return known
        self._twins[key] = self._denoiser.draw(self._prompt, seeds)
        return self._twins[key]

    def perturb(self, around: Candidates, n: int, cosine: float) -> Candidates:
        """On the noise's shell where sampling starts; later its share of a point's variance is
        renewed, which adds to it."""
        centres = noised(around).select(repeat_each(len(around), n))
        recipes = [
            {"op": "perturb", "of": s, "at": around.step, "cosine": cosine} for s in centres.seeds
        ]
        still = self._pictures_of(centres.seeds, recipes) if around.step == self.first > 0 else None
        seeds = self._seeds(recipes)
        noise = unit_noise(seeds, centres.latents)
        moved = neighbours(centres, noise, cosine, lambda: self._levels, still)
        return Candidates(moved, around.step, seeds, parents=centres.parents)

    def _pictures_of(self, seeds: Sequence[int], recipes: list[dict[str, Any]]) -> Tensor | None:
        """What is no noise in these candidates, [n, ...], written down in their recipes; None where
        one of them is no neighbour, however far, of a fresh candidate."""
        drawn = [self._drawn_as(seed) for seed in seeds]
        known = [root for root in drawn if root is not None]
        if len(known) < len(drawn):
            return None
        for recipe, root in zip(recipes, known, strict=True):
            recipe["drawn"] = root
        return torch.cat([self.picture(root) for root in known])

    def picture(self, drawn: int) -> Tensor:
        """What is no noise in the latents drawn with this seed, [1, ...]."""
        if drawn not in self._pictures:
            self._pictures[drawn] = self._denoiser.picture(self._prompt, drawn)
        return self._pictures[drawn]

    def _drawn_as(self, seed: int) -> int | None:
        """The seed of the fresh candidate that this one is a neighbour of, however far."""
        while (recipe := self.recipes[seed])["op"] == "perturb":
            seed = recipe["of"]
        return seed if recipe["op"] == "draw" else None

    def renoise(self, candidates: Candidates, to: int) -> Candidates:
        candidates = noised(candidates)
        seeds = self._seeds(
            [{"op": "renoise", "of": s, "at": candidates.step, "to": to} for s in candidates.seeds]
        )
        now, then = self._levels[candidates.step], self._levels[to]
        latents = renoised(candidates.latents, unit_noise(seeds, candidates.latents), now, then)
        return Candidates(latents, to, seeds, parents=candidates.parents)

    def fork(self, candidates: Candidates, index: Tensor | Iterable[int]) -> Candidates:
        copies = candidates.select(index)
        seeds = self._seeds([{"op": "fork", "of": s, "at": copies.step} for s in copies.seeds])
        return Candidates(
            copies.latents, copies.step, seeds, copies.noise_scale, parents=copies.parents
        )

    def place(self, latents: Tensor, parents: Sequence[tuple[int, ...]]) -> Candidates:
        """Recipes say no more than that: such latents follow from the scores before them."""
        seeds = self._seeds([{"op": "place"}] * len(latents))
        return Candidates(latents, self.first, seeds, parents=tuple(parents))

    def step_below(self, share: float) -> int:
        """The first step between start and end at which noise / (signal + noise) is below this."""
        inner = range(1, self.steps)
        shares = {k: self._levels[k].noise / sum(astuple(self._levels[k])) for k in inner}
        return next((k for k in inner if shares[k] < share), self.steps - 1)

    def spatial(self, latents: Tensor) -> Tensor:
        return self._layout.spatial(latents)

    def from_spatial(self, unit: Tensor) -> Tensor:
        return self._layout.packed(unit)

    @property
    def _layout(self) -> Layout:
        with self._denoiser.drafting(self._inference_steps):
            return self._denoiser.layout(self._prompt)

    def drafted(self, share: float) -> LatentSpace:
        steps = draft_steps(self._denoiser.inference_steps, share)
        space = copy.copy(self)
        space.__dict__.pop("_levels", None)
        space._drafted, space._inference_steps = {}, steps
        with self._denoiser.drafting(steps):
            space.first, space.steps = self._denoiser.span(self._prompt, self._batch_size)
        if space.first:
            raise UserError(
                "Sampling that starts from a picture cannot be drafted: a shorter schedule begins"
                " at another level of noise."
            )
        self.drafts[space.steps] = steps
        self._drafted[space.steps] = space
        return space

    def exact(self, drafts: Candidates, steps: int) -> Candidates:
        """The same unit noise at this schedule's scale; the very bits where the scales agree."""
        assert drafts.step == 0
        ratio = self._layout.scale / self._drafted[steps]._layout.scale
        return drafts if ratio == 1 else replace(drafts, latents=drafts.latents * ratio)

    def twin(self) -> LatentSpace:
        """A space that from here on goes its own way, as this one would."""
        self._twins = {}
        space = copy.copy(self)
        space._next, space.recipes = list(self._next), dict(self.recipes)
        space.drafts, space._drafted = dict(self.drafts), {}
        space.rng = torch.Generator().set_state(self.rng.get_state())
        return space

    def _seeds(self, recipes: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """The next seeds, no two alike within a prompt (31 bits can meet by chance)."""
        seeds = []
        for recipe in recipes:
            while (seed := seed_of(*self._key, self._next[0])) in self.recipes:
                self._next[0] += 1
            self.recipes[seed] = {**recipe, "index": self._next[0]}
            self._next[0] += 1
            seeds.append(seed)
        return tuple(seeds)


def neighbours(
    centres: Candidates,
    noise: Tensor,
    cosine: float,
    levels: Callable[[], Sequence[Level]],
    still: Tensor | None = None,
) -> Tensor:
    """A point near each centre, towards its unit noise.

    At step 0, and where `still` tells what in the latents is a picture's part and no noise, it is a
    point of the noise's shell. Elsewhere x' = x + noise level * sqrt(2 - 2 cosine) * n, as far from
    x in the noise's own units as a point of the shell at this cosine lies from its centre; only
    then are the levels asked for.
    """
    latents = centres.latents
    if centres.step == 0:
        return on_shell(latents, noise, cosine)
    if still is not None:
        part = still.double()
        moved = part + on_shell(latents.double() - part, noise, cosine)
        return moved.to(latents.dtype)
    reach = levels()[centres.step].noise * (2 - 2 * cosine) ** 0.5
    return (latents.double() + reach * noise.double()).to(latents.dtype)


def noised(candidates: Candidates) -> Candidates:
    """Candidates kept before their noise, with it."""
    if candidates.noise_scale is None:
        return candidates
    latents = with_noise(
        candidates.latents, candidates.noise_scale, candidates.seeds, candidates.step
    )
    return replace(candidates, latents=latents, noise_scale=None)
