"""Answers a search's rollouts: batches them, denoises, decodes, verifies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiment.prompts import Prompt
from pipelines.batching import spans
from pipelines.denoiser import Decoded, Denoiser
from pipelines.sde import Sde
from pipelines.space import LatentSpace, noised
from search.core import Candidates, Rollout, Scored, joined
from search.ledger import Cost, nfe_each
from verifiers.base import Chosen, Item, Score


@dataclass(frozen=True)
class Evaluated:
    """One candidate, moved or scored once: what a row of the records says of it, and its picture.

    media: PIL image or list of PIL frames; None where there is nothing worth keeping.
    guidance: the factor on the pipeline's guidance scale on the way to `step`.
    nfe, rows, seconds: this candidate's share of what its batch cost.
    """

    id: int
    seed: int
    step: int
    steps: int
    parents: tuple[int, ...]
    recipe: Mapping[str, Any]
    score: Score
    media: Any
    guidance: float
    nfe: int
    rows: int
    batch_size: int
    seconds: float

    @property
    def finished(self) -> bool:
        return self.step == self.steps


@dataclass(frozen=True)
class Preview:
    """Pictures of clean estimates late in sampling, and the rows denoised to get there."""

    media: Sequence[Any] = ()
    rows: int = 0


UNASKED = Score(math.nan, status="unasked")  # the search wanted the candidates moved, no more

Keep = Callable[[Rollout, Sequence[Evaluated]], None]


class Evaluator:
    """Evaluates one prompt's rollouts; `keep` is handed each batch as soon as it is scored.

    values: every candidate's value as it stands now, by id; under a verifier that judges by the
    pool, it moves as more candidates arrive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        verifier: Chosen,
        prompt: Prompt,
        space: LatentSpace,
        batch_size: int,
        keep: Keep,
        values: dict[int, float],
        *,
        sde: Sde | None = None,
        low_memory: bool = False,
    ) -> None:
        self._denoiser = denoiser
        self._verifier = verifier
        self._prompt = prompt
        self._space = space
        self._batch_size = batch_size
        self._keep = keep
        self.values = values
        self._sde = sde
        self._low_memory = low_memory
        self._named: set[int] = set()  # seeds that rows tell the making of
        self._pools: dict[int, dict[int, Score]] = {}  # by step: ids and their scores

    def __call__(self, rollout: Rollout) -> tuple[Scored, Cost]:
        """The scored candidates in the rollout's order, and the cost as measured."""
        if rollout.score:
            self._keep(rollout, ())  # the last round closes on the values that its search was sent
        batches = [
            self._batch(rollout, rollout.candidates.select(range(a, b)))
            for a, b in spans(len(rollout.candidates), self._batch_size)
        ]
        moved, entries, costs = zip(*batches, strict=True)
        rows = [entry for batch in entries for entry in batch]
        scored = Scored(
            start=rollout.candidates,
            candidates=joined(moved),
            scores=_tensor([self.values[entry.id] for entry in rows]),
            ids=tuple(entry.id for entry in rows),
            rival_scores=_tensor([self.values[i] for i in rollout.rivals]),
        )
        return scored, sum(costs, Cost())

    def _batch(
        self, rollout: Rollout, start: Candidates
    ) -> tuple[Candidates, list[Evaluated], Cost]:
        started = time.monotonic()
        n = len(start)
        final = rollout.until == self._space.steps
        early, before = self._previewed(rollout, start)
        moved, clean, rows = self._denoise(rollout, early)
        rows += before.rows
        scores = [UNASKED] * n
        media: list[Any] = [None] * n
        if rollout.score:
            decoded, finite = self._decode(moved.latents if final else clean, start.seeds)
            scores = self._judge(decoded, finite, before.media or [None] * n)
            media = decoded.media
        seconds = time.monotonic() - started
        cost = Cost(
            nfe=nfe_each(rollout) * n,
            rows=rows,
            decodes=(n if rollout.score else 0) + len(before.media),
            verifications=n if rollout.score else 0,
            seconds=seconds,
        )
        entries = [
            self._entry(start, rollout, i, scores[i], media[i] if final else None, cost)
            for i in range(n)
        ]
        if rollout.score:
            self._place(rollout.until, entries)
        self._keep(rollout, entries)
        return moved, entries, cost

    def _place(self, step: int, entries: Sequence[Evaluated]) -> None:
        """Let new candidates find their place among all that were scored at their step."""
        if not self._verifier.pooled:
            return
        pool = self._pools.setdefault(step, {})
        pool |= {entry.id: entry.score for entry in entries}
        places = self._verifier.pool_values(list(pool.values()))
        self.values |= dict(zip(pool, places, strict=True))

    def _previewed(self, rollout: Rollout, start: Candidates) -> tuple[Candidates, Preview]:
        """Candidates that will be finished, at the step whose clean estimate the verifier wants
        to see beside the finished picture; others as they are."""
        at = self._preview_step
        wanted = rollout.score and rollout.until == self._space.steps
        if at is None or not wanted or start.step >= at:
            return start, Preview()
        moved, clean, rows = self._denoise(replace(rollout, until=at), start)
        decoded, _ = self._decode(clean, start.seeds)
        return moved, Preview(decoded.media, rows)

    @property
    def _preview_step(self) -> int | None:
        """The step after which the share of noise first falls below what the verifier names."""
        share = self._verifier.preview_noise
        return None if share is None else self._space.step_below(share)

    def _denoise(self, rollout: Rollout, start: Candidates) -> tuple[Candidates, Tensor, int]:
        """The candidates at `until`, the clean estimate there, and rows denoised on the way."""
        if start.step == rollout.until:
            return start, start.latents, 0
        done = self._denoiser.denoise(
            self._prompt.text,
            noised(start).latents,
            start.seeds,
            start.step,
            rollout.until,
            rollout.guidance,
            self._sde,
        )
        moved = replace(
            start, latents=done.latents, step=rollout.until, noise_scale=done.noise_scale
        )
        return moved, done.clean, done.rows

    def _decode(self, latents: Tensor, seeds: Sequence[int]) -> tuple[Decoded, list[bool]]:
        """Pictures, and which of them come from finite latents (a decoder makes nan black)."""
        finite = [bool(row.isfinite().all()) for row in latents]
        decoded = self._denoiser.decode(
            self._prompt.text, latents.nan_to_num(0.0, 0.0, 0.0), seeds, self._space.steps
        )
        return decoded, finite

    def _judge(
        self, decoded: Decoded, finite: Sequence[bool], previews: Sequence[Any]
    ) -> list[Score]:
        """A score for each picture; those that are none are not shown to the verifier."""
        faults = [
            _fault(m, ok, filtered)
            for m, ok, filtered in zip(decoded.media, finite, decoded.filtered, strict=True)
        ]
        sound = [i for i, fault in enumerate(faults) if fault is None]
        text, label = self._prompt.text, self._denoiser.label
        items = [Item(decoded.media[i], text, previews[i], label) for i in sound]
        scored = iter(self._verifier.score(items) if items else [])
        if self._low_memory:
            self._verifier.offload()
        return [fault if fault is not None else next(scored) for fault in faults]

    def _recipe(self, seed: int) -> Mapping[str, Any]:
        """How a candidate was made; what it was made of stands within, unless a row names it."""
        own = self._space.recipes[seed]
        of = own.get("of")
        if of is None or of in self._named:
            return own
        return {**own, "of": {"seed": of, **self._recipe(of)}}

    def _entry(
        self, start: Candidates, rollout: Rollout, i: int, score: Score, media: Any, cost: Cost
    ) -> Evaluated:
        n = len(start)
        number = len(self.values)
        self.values[number] = score.value
        self._named.add(start.seeds[i])
        return Evaluated(
            id=number,
            seed=start.seeds[i],
            step=rollout.until,
            steps=self._space.steps,
            parents=start.parents[i],
            recipe=self._recipe(start.seeds[i]),
            score=score,
            media=media,
            guidance=rollout.guidance,
            nfe=cost.nfe // n,
            rows=cost.rows // n,
            batch_size=n,
            seconds=cost.seconds / n,
        )


def _fault(media: Any, finite: bool, filtered: bool) -> Score | None:
    """Why a picture cannot be judged, or None."""
    if not finite:
        return Score.missing("the latents are not finite", "invalid_image")
    if filtered:
        return Score.missing("blackened by the pipeline's safety checker", "nsfw_filtered")
    # A sound video may fade in from black.
    if all(map(_flat, media if isinstance(media, list) else [media])):
        return Score.missing("the image has a single color", "invalid_image")
    return None


def _flat(image: Any) -> bool:
    return all(low == high for low, high in _bands(image.convert("RGB").getextrema()))


def _bands(extrema: Any) -> Sequence[tuple[int, int]]:
    bands: Sequence[tuple[int, int]] = extrema
    return bands


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
