"""The self-supervised verifier of Ma et al. 2025: how early an image was settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from utils import UserError
from verifiers.base import Item, Score
from verifiers.features import Seen, VisionVerifier

UNSEEN = "there is no preview to compare with, as it was not denoised to the end in one go"


@dataclass
class SelfSimilarity(VisionVerifier):
    """Cosine of the features of a clean estimate at low noise and of the finished image.

    The prompt plays no part. noise: the share of noise at which the estimate is taken; the less
    there is, the less is left to change, and all candidates score higher.
    """

    noise: float = 0.4

    metrics: ClassVar[tuple[str, ...]] = ("self_similarity",)

    @property
    def preview_noise(self) -> float:
        return self.noise

    def check(self) -> None:
        super().check()
        if not 0 < self.noise < 1:
            raise UserError(f"verifier_args.noise lies between 0 and 1, not {self.noise}.")

    def score(self, items: Sequence[Item]) -> list[Score]:
        there = [item for item in items if item.preview is not None]
        late = self._vision.see([item.media for item in there])
        early = self._vision.see([item.preview for item in there])
        pairs = zip(late, early, strict=True)
        return [
            Score.missing(UNSEEN) if item.preview is None else _similarity(*next(pairs))
            for item in items
        ]


def _similarity(late: Seen | Score, early: Seen | Score) -> Score:
    if isinstance(late, Score):
        return late
    if isinstance(early, Score):
        return early
    cosine = torch.cosine_similarity(late.features.double(), early.features.double(), dim=0)
    return Score.of(self_similarity=float(cosine))
