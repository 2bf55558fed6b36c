"""An image verifier shown a video: it judges a few frames, and their scores become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from utils import UserError
from verifiers.base import Item, Score, Verifier
from verifiers.own import checked_scores

OPTIONS = ("frames", "frame_score")
JOINED: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "min": min,
    "last": lambda values: values[-1],
}


@dataclass(frozen=True)
class Keyframes:
    """Wraps an image verifier; images pass through untouched.

    frames: how many frames of a video are judged, evenly spread from the first to the last.
    frame_score: what becomes of their scores: the mean, the lowest, or the last frame's.
    """

    verifier: Verifier
    frames: int = 3
    frame_score: Literal["mean", "min", "last"] = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.frames, int) or self.frames < 1:
            raise UserError(f"'frames' must be a whole number from 1, not {self.frames!r}.")
        if self.frame_score not in JOINED:
            raise UserError(f"'frame_score' is mean, min or last, not '{self.frame_score}'.")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["verifier"], name)

    def score(self, items: Sequence[Item]) -> list[Score]:
        shown = [
            (i, replace(item.of(f"frame {at}"), media=frame, preview=_same_frame(item, at)))
            for i, item in enumerate(items)
            for at, frame in self._chosen(item.media)
        ]
        asked = [item for _, item in shown]
        scores = checked_scores(self.verifier, self.verifier.score(asked), len(asked))
        groups: list[list[Score]] = [[] for _ in items]
        for (i, _), score in zip(shown, scores, strict=True):
            groups[i].append(score)
        return [self._joined(group) for group in groups]

    def _chosen(self, media: Any) -> list[tuple[int, Any]]:
        """The frames to judge, with their positions; an image is its own only frame."""
        if not isinstance(media, list):
            return [(0, media)]
        n = min(self.frames, len(media))
        places = [round(k * (len(media) - 1) / max(n - 1, 1)) for k in range(n)]
        return [(at, media[at]) for at in places]

    def _joined(self, scores: Sequence[Score]) -> Score:
        if len(scores) == 1:
            return scores[0]
        for score in scores:
            if score.status != "ok":
                return replace(score, value=math.nan)
        join = JOINED[self.frame_score]
        aspects = {
            name: float(join([score.aspects[name] for score in scores]))
            for name in scores[0].aspects
        }
        explanation = " ".join(s.explanation for s in scores if s.explanation)
        details = {"frames": [dict(s.details) for s in scores]} if scores[0].details else {}
        return Score.of(explanation, details=details, **aspects)


def _same_frame(item: Item, at: int) -> Any:
    return item.preview[at] if isinstance(item.preview, list) else item.preview
