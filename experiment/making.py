"""Makes batches: denoised as far as a rollout wants, and decoded where they are to be judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from experiment.batches import Made, Moved, Preview
from pipelines.denoiser import Denoiser
from pipelines.gradient import climbed
from pipelines.made import Decoded, Denoised
from pipelines.sde import Sde
from pipelines.space import noised
from search.core import Candidates, Rollout, joined


@dataclass(frozen=True)
class Order:
    """One prompt's batch, as a rollout wants it.

    steps: of the full schedule. inference_steps: as the pipeline is called where these are drafts.
    preview: the step whose clean estimate is to be shown too, where one is.
    """

    text: str
    rollout: Rollout
    start: Candidates
    steps: int
    inference_steps: int | None = None
    preview: int | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def last(self) -> int:
        """The last step of the schedule that the rollout is on."""
        return self.rollout.draft or self.steps

    @property
    def kind(self) -> tuple[object, ...]:
        """What is the same of orders that one batch can hold."""
        wish, scale = self.rollout, self.start.noise_scale
        how = wish.until, wish.guidance, wish.draft, wish.score, wish.gradient
        noise = None if scale is None else scale.ndim
        return (*how, self.start.step, noise, self.steps, self.inference_steps, self.preview)


class Maker:
    """Makes orders on a pipeline; pixels' values, where gradients of them are asked for, are
    `value`'s, which takes pixels [n, 3, H, W] and a prompt."""

    def __init__(
        self, denoiser: Denoiser, value: Callable[[Tensor, str], Tensor], sde: Sde | None
    ) -> None:
        self._denoiser = denoiser
        self._value = value
        self._sde = sde

    def make(self, orders: Sequence[Order]) -> list[Made]:
        """Orders of one kind in one batch, one after another; what came of each."""
        batch = orders[0]
        if len(orders) > 1:
            batch = replace(batch, start=joined(order.start for order in orders))
        texts = [order.text for order in orders for _ in range(len(order))]
        with self._denoiser.drafting(batch.inference_steps):
            made = self._made(batch, texts)
        return _shares(made, orders)

    def _made(self, order: Order, texts: Sequence[str]) -> Made:
        started = time.monotonic()
        early, before = self._previewed(order, texts)
        move = self._climb if order.rollout.gradient else self._denoise
        moved = move(order, texts, early, order.rollout.until)
        decoded = None
        if order.rollout.score:
            decoded = self._decode(moved.clean, texts, order.start.seeds, order.last)
        seconds = time.monotonic() - started
        singly, n = self._denoiser.singly, len(order)
        return Made(order.start, moved, before, decoded, seconds, singly, n)

    def _previewed(self, order: Order, texts: Sequence[str]) -> tuple[Candidates, Preview]:
        """Candidates that will be finished, at the step whose clean estimate the verifier wants
        to see beside the finished picture; others as they are."""
        at, start = order.preview, order.start
        if at is None or start.step >= at:
            return start, Preview()
        moved = self._denoise(order, texts, start, at)
        decoded, _ = self._decode(moved.clean, texts, start.seeds, order.steps)
        return moved.candidates, Preview(decoded.media, moved.rows)

    def _denoise(self, order: Order, texts: Sequence[str], start: Candidates, until: int) -> Moved:
        """The candidates at `until`, and the clean estimate there."""
        if start.step == until:
            return Moved(start, start.latents)
        done = self._denoiser.denoise(
            texts,
            noised(start).latents,
            start.seeds,
            start.step,
            until,
            order.rollout.guidance,
            self._sde,
        )
        return Moved(_on(start, until, done), done.clean, done.rows)

    def _climb(self, order: Order, texts: Sequence[str], start: Candidates, until: int) -> Moved:
        """As `_denoise`, with the gradient of the verifier's value."""
        done = climbed(
            self._denoiser,
            lambda pixels: self._value(pixels, order.text),
            order.text,
            noised(start).latents,
            start.seeds,
            start.step,
            until,
            order.last,
            order.rollout.guidance,
            self._sde,
        )
        there = done.denoised
        return Moved(_on(start, until, there), there.clean, there.rows, done.gradient)

    def _decode(
        self, latents: Tensor, texts: Sequence[str], seeds: Sequence[int], steps: int
    ) -> tuple[Decoded, list[bool]]:
        """Pictures, and which of them come from finite latents (a decoder makes nan black).

        A decoder that overflowed has had a second try in float32 by now.
        """
        finite = [bool(row.isfinite().all()) for row in latents]
        decoded = self._denoiser.decode(texts, latents.nan_to_num(0.0, 0.0, 0.0), seeds, steps)
        return decoded, finite


def _on(start: Candidates, until: int, done: Denoised) -> Candidates:
    return replace(start, latents=done.latents, step=until, noise_scale=done.noise_scale)


def _shares(made: Made, orders: Sequence[Order]) -> list[Made]:
    """Each order's part of a batch."""
    if len(orders) == 1:
        return [made]
    shares, begin = [], 0
    for order in orders:
        shares.append(made.part(order.start, begin))
        begin += len(order)
    return shares
