"""How a pipeline packs spatial noise into its loop's latents, learned by packing positions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils import UserError

UNFOUND = "Where this pipeline draws its noise could not be found."
BASE = 64  # digits this small survive scaling and rounding in bf16


@dataclass(frozen=True)
class Layout:
    """A permutation between spatial noise and packed latents, and the latents' scale.

    shape: one candidate's spatial noise, [C, H, W] or [C, F, H, W] as the pipeline draws it.
    index: for each position of the packed latents, flattened, the spatial position it holds.
    packed_shape: one candidate's packed latents.
    scale: latents are this times unit noise.
    """

    shape: tuple[int, ...]
    index: Tensor
    packed_shape: tuple[int, ...]
    scale: float

    def spatial(self, latents: Tensor) -> Tensor:
        """[n, *packed_shape] of any scale to [n, *shape] of unit variance, float32."""
        flat = latents.flatten(1).float() / self.scale
        unit = torch.empty_like(flat)
        unit[:, self.index.to(flat.device)] = flat
        return unit.reshape(len(latents), *self.shape)

    def packed(self, unit: Tensor) -> Tensor:
        """The inverse of `spatial`, float32."""
        flat = unit.flatten(1)[:, self.index.to(unit.device)] * self.scale
        return flat.reshape(len(unit), *self.packed_shape)


class PositionDigits:
    """Stands in for a pipeline's noise source and returns digits of each element's position."""

    def __init__(self) -> None:
        self.digit = 0
        self.shape: tuple[int, ...] | None = None

    def noise(self, shape: Any, *_: Any, **options: Any) -> Tensor:
        self.shape = tuple(shape)
        positions = torch.arange(torch.Size(self.shape).numel()).reshape(self.shape)
        digits = positions // BASE**self.digit % BASE
        return digits.to(options.get("device") or "cpu", options.get("dtype") or torch.float32)

    def read(self, draw: Callable[[], Tensor]) -> Layout:
        """Draw the digits of all positions, lowest first, and put the positions together.

        The scale is what the noise was multiplied with: the digits' sum is known, and over many
        digits the rounding of a coarse format averages out.
        """
        latents = draw().cpu().double()
        if self.shape is None:
            raise UserError(UNFOUND)
        total = torch.Size(self.shape).numel()
        scale = float(latents.sum()) / float((torch.arange(total) % BASE).sum())
        index = torch.zeros(latents[0].numel(), dtype=torch.long)
        while BASE**self.digit < total:
            digits = draw().cpu().double().flatten() / scale
            index += digits.round().long() * BASE**self.digit
            self.digit += 1
        self._check(index, total)
        return Layout(self.shape[1:], index, tuple(latents.shape[1:]), scale)

    @staticmethod
    def _check(index: Tensor, total: int) -> None:
        if index.shape != (total,) or not torch.equal(index.sort().values, torch.arange(total)):
            raise UserError(
                "This pipeline's latents are no rearrangement of its noise, so searches that need"
                " a spatial view of it cannot be used."
            )


@contextmanager
def index_noise(pipe: Any) -> Iterator[PositionDigits]:
    """Within this block the pipeline's first latents hold digits of positions, not noise."""
    digits = PositionDigits()
    with _noise_from(pipe, digits.noise):
        yield digits


@contextmanager
def no_noise(pipe: Any) -> Iterator[None]:
    """Within this block the pipeline's first latents hold no noise: only a picture's part."""

    asked = []

    def nothing(shape: Any, *_: Any, **options: Any) -> Tensor:
        asked.append(tuple(shape))
        return torch.zeros(asked[-1], device=options.get("device"), dtype=options.get("dtype"))

    with _noise_from(pipe, nothing):
        yield
    if not asked:
        raise UserError(UNFOUND)


@contextmanager
def _noise_from(pipe: Any, source: Callable[..., Tensor]) -> Iterator[None]:
    """Within this block the pipeline takes its first noise from here."""
    maker = getattr(type(pipe), "prepare_latents", type(pipe).__call__)
    module: Any = sys.modules[inspect.unwrap(maker).__module__]
    if not hasattr(module, "randn_tensor"):
        raise UserError(UNFOUND)
    original = module.randn_tensor
    module.randn_tensor = source
    try:
        yield
    finally:
        module.randn_tensor = original
