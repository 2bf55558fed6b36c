"""A verifier that can be told when to fail, named in configs by its dotted path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tests.graders import brightness
from verifiers.base import BaseVerifier, Item, Score


@dataclass
class Fickle(BaseVerifier):
    """Mean brightness; the run is interrupted at the call of this number from now."""

    metrics: ClassVar[tuple[str, ...]] = ("brightness",)
    calls_left: ClassVar[int] = 10**9

    def score(self, items: Sequence[Item]) -> list[Score]:
        Fickle.calls_left -= 1
        if not Fickle.calls_left:
            raise KeyboardInterrupt
        return [Score.of(brightness=brightness(item)) for item in items]
