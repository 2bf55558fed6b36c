"""Contrast: how much an image varies and how sharp its edges are; no prompt, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from verifiers.base import Item, Score
from verifiers.batches import score_batches
from verifiers.pixels import of_image
from verifiers.turns import TurnTaking

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's grey


@dataclass
class Contrast(TurnTaking):
    """contrast = 0.6 min(10 variance, 1) + 0.4 min(5 gradient, 1), of the grey image g in [0, 1].

    variance: the mean of (g - mean g)^2. gradient: the mean of |g[y, x+1] - g[y, x]| and that of
    |g[y+1, x] - g[y, x]|, halved and added; 0 along a side of one pixel.
    A check for plumbing, no judge of quality: noise scores high.
    """

    metrics: ClassVar[tuple[str, ...]] = ("contrast",)

    def score(self, items: Sequence[Item]) -> list[Score]:
        # One at a time: their sizes may differ, and there is no model to keep busy.
        return score_batches(
            items, batch_size=1, metric="contrast", prepare=of_image, judge=self.score_pixels
        )

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1]."""
        grey = (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(dim=1)
        variance = grey.var(dim=(1, 2), correction=0)
        gradient = (_steps(grey, dim=2) + _steps(grey, dim=1)) / 2
        return 0.6 * (10 * variance).clamp(max=1) + 0.4 * (5 * gradient).clamp(max=1)


def _steps(grey: Tensor, dim: int) -> Tensor:  # [n]
    """The mean absolute difference of neighbours along a dimension."""
    steps = torch.diff(grey, dim=dim).abs()
    return steps.mean(dim=(1, 2)) if steps.numel() else grey.new_zeros(len(grey))
