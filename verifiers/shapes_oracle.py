"""The exact judge of the bundled shapes world: what is in the image, against what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from verifiers.base import BaseVerifier, Item, Score


@dataclass
class ShapesOracle(BaseVerifier):
    """oracle_score: share of the caption's facts that hold; oracle_right: 1 if all do, else 0."""

    metrics: ClassVar[tuple[str, ...]] = ("oracle_score", "oracle_right")

    @staticmethod
    def reads(prompt: str) -> bool:
        """Whether the prompt is a caption of this world, so that it says what to look for."""
        from shapes.grammar import parse

        return parse(prompt) is not None

    def score(self, items: Sequence[Item]) -> list[Score]:
        return [self._judge(item) for item in items]

    def _judge(self, item: Item) -> Score:
        from shapes.oracle import judge

        verdict = judge(item.media, item.prompt)
        if verdict.score != verdict.score:
            return Score.missing(verdict.detail)
        return Score.of(
            verdict.detail, oracle_score=verdict.score, oracle_right=float(verdict.right)
        )
