"""What the denoiser gives: noise drawn, latents denoised, pictures decoded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.developing import Undeveloped


@dataclass(frozen=True)
class Drawn:
    """Fresh noise as the pipeline draws it, and where on the schedule it stands."""

    latents: Tensor
    step: int


@dataclass(frozen=True)
class Denoised:
    """Latents further on, the last step's estimate of the clean ones, rows denoised on the way.

    noise_scale: of the noise that the latents are still without, [n] or shaped like them; None
    after steps that add none.
    """

    latents: Tensor
    clean: Tensor
    rows: int
    noise_scale: Tensor | None = None


@dataclass(frozen=True)
class Decoded:
    """What people see of each candidate.

    pictures: PIL images, or videos' lists of PIL frames, or what either is still to be made of.
    """

    pictures: list[Any]
    filtered: list[bool]  # blackened by the pipeline's own safety checker
    sound: list[bool]  # decoded to finite numbers
    again: list[bool]  # decoded a second time, in float32, for the decoder had overflowed

    @functools.cached_property
    def media(self) -> list[Any]:
        """PIL images, or videos' lists of PIL frames: made when first asked for, out of turn."""
        return [p.developed() if isinstance(p, Undeveloped) else p for p in self.pictures]

    def part(self, where: slice) -> Decoded:
        """Of some of the candidates."""
        return Decoded(
            self.pictures[where], self.filtered[where], self.sound[where], self.again[where]
        )


def together(parts: Sequence[Denoised]) -> Denoised:
    """Batches as one."""
    scales = [part.noise_scale for part in parts if part.noise_scale is not None]
    return Denoised(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.clean for part in parts]),
        sum(part.rows for part in parts),
        torch.cat(scales) if scales else None,
    )
