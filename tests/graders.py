"""Small verifiers for tests, named in configs by their dotted path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch.backends.cuda import flash_sdp_enabled

from verifiers.base import BaseVerifier, Item, Score


def brightness(item: Item) -> float:
    return float(np.asarray(item.media, dtype=np.float64).mean()) / 255


@dataclass
class Brightness(BaseVerifier):
    """Mean brightness; `every` so many-th item gets no score, `sign` -1 prefers dark images."""

    every: int = 0
    sign: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("brightness", "darkness")
    seen: list[Item] = field(default_factory=list, init=False)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Score:
        self.seen.append(item)
        if self.every and len(self.seen) % self.every == 0:
            return Score.missing("looked away")
        value = brightness(item)
        return Score.of(brightness=self.sign * value, darkness=1 - value)


@dataclass
class Falling(BaseVerifier):
    """Every image is worse than the one before it."""

    metrics: ClassVar[tuple[str, ...]] = ("falling",)
    explains: ClassVar[bool] = True
    count: int = field(default=0, init=False)

    def score(self, items: Sequence[Item]) -> list[Score]:
        scores = []
        for _ in items:
            self.count -= 1
            scores.append(Score.of("worse than the last", falling=float(self.count)))
        return scores


@dataclass
class Settled(BaseVerifier):
    """How little a picture has changed since it was nearly done, and its preview's brightness."""

    noise: float = 0.3
    metrics: ClassVar[tuple[str, ...]] = ("settled", "early")

    @property
    def preview_noise(self) -> float:
        return self.noise

    def score(self, items: Sequence[Item]) -> list[Score]:
        scores = []
        for item in items:
            early, late = (np.asarray(x, dtype=np.float64) for x in (item.preview, item.media))
            scores.append(Score.of(settled=-float(abs(early - late).mean()), early=early.mean()))
        return scores


@dataclass
class Motion(BaseVerifier):
    """How much a video moves, to the last bit of its pixels."""

    metrics: ClassVar[tuple[str, ...]] = ("motion",)
    video: ClassVar[bool] = True
    only_video: ClassVar[bool] = True
    chosen: ClassVar[list[float]] = []  # of every instance

    def score(self, items: Sequence[Item]) -> list[Score]:
        return [Score.of(motion=motion(item.media)) for item in items]

    def chose(self, item: Item) -> None:
        self.chosen.append(motion(item.media))


def motion(frames: Any) -> float:
    assert isinstance(frames, list)
    return float(np.abs(np.diff([np.asarray(f, dtype=np.float64) for f in frames], axis=0)).mean())


@dataclass
class FallingVideos(Falling):
    """Every video is worse than the one before it."""

    video: ClassVar[bool] = True


@dataclass
class Asked(Brightness):
    """Brightness; keeps the prompt and the label of each item, of every instance."""

    told: ClassVar[list[tuple[str, str | None]]] = []

    def score(self, items: Sequence[Item]) -> list[Score]:
        self.told.extend((item.prompt, item.label) for item in items)
        return super().score(items)


@dataclass
class Far(Brightness):
    """Brightness, judged elsewhere; `meeting` is waited for at the first calls."""

    meeting: ClassVar[Callable[[], object] | None] = None
    asked: ClassVar[list[str]] = []

    @property
    def remote(self) -> bool:
        return True

    def score(self, items: Sequence[Item]) -> list[Score]:
        Far.asked += [item.prompt for item in items]
        if Far.meeting is not None:
            Far.meeting()
        return super().score(items)


@dataclass
class Near(Brightness):
    """Brightness; tells where it was loaded, and `meeting` is waited for at each call."""

    meeting: ClassVar[Callable[[], object] | None] = None
    places: ClassVar[list[str]] = []

    def load(self, device: str) -> None:
        self.places.append(device)

    def score(self, items: Sequence[Item]) -> list[Score]:
        if Near.meeting is not None:
            Near.meeting()
        return super().score(items)


@dataclass
class Watcher(Brightness):
    """Brightness; notes in which thread it judges, and whether torch offers it every attention."""

    watched: ClassVar[list[tuple[str, bool]]] = []

    def score(self, items: Sequence[Item]) -> list[Score]:
        self.watched.append((threading.current_thread().name, flash_sdp_enabled()))
        return super().score(items)
