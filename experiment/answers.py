"""What graders have answered of a batch that is not judged to its end.

Each answer is paid for, and graders behind an API take their time: every one is in the journal as
soon as it has come, so that an interruption costs those that were still awaited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiment.rows import Sum, as_sum, sum_of
from verifiers.base import NO_ANSWER, Score

ANSWER = "answer"  # the kind of line

Place = tuple[int, tuple[str, ...]]  # where in the batch, and which of several who are asked


class Answers:
    """Answers of earlier sittings, and those that come in. append: adds a line to the journal."""

    def __init__(self, append: Callable[[Mapping[str, Any]], None]) -> None:
        self._append = append
        self._known: dict[str, dict[Place, tuple[Sum | None, Score]]] = {}

    def memory(self, asked: Mapping[str, Any], at: int = 0) -> AnswersOf:
        """Of one item. asked: what its batch is known by; at: its place there."""
        return AnswersOf(self, asked, (at, ()))

    def take(self, line: Mapping[str, Any]) -> None:
        """Know a line of an earlier sitting."""
        place = (int(line["at"]), tuple(line["by"]))
        known = self._known.setdefault(_key(line["asked"]), {})
        known[place] = as_sum(line["pixels"]), from_json(line["score"])

    def forget(self, asked: Mapping[str, Any] | None) -> None:
        """The batch is on record as a whole."""
        self._known.pop(_key(asked), None)

    def recall(self, asked: Mapping[str, Any], place: Place, media: Any) -> Score | None:
        known = self._known.get(_key(asked), {}).get(place)
        if known is None or known[0] != _sum_of(media):  # another machine may draw it otherwise
            return None
        return known[1]

    def keep(self, asked: Mapping[str, Any], place: Place, media: Any, score: Score) -> None:
        if score.status in NO_ANSWER:
            return
        at, by = place
        told = {"pixels": _sum_of(media), "score": as_json(score)}
        self._append({"kind": ANSWER, "asked": asked, "at": at, "by": by, **told})


@dataclass(frozen=True)
class AnswersOf:
    """The memory that an item carries to whoever judges it."""

    answers: Answers
    asked: Mapping[str, Any]
    place: Place

    def recall(self, media: Any) -> Score | None:
        return self.answers.recall(self.asked, self.place, media)

    def keep(self, media: Any, score: Score) -> None:
        self.answers.keep(self.asked, self.place, media, score)

    def of(self, part: str) -> AnswersOf:
        at, by = self.place
        return replace(self, place=(at, (*by, part)))


def _key(asked: Mapping[str, Any] | None) -> str:
    return json.dumps(asked)


def _sum_of(media: Any) -> Sum:
    """Of a picture's pixels, or of all frames'."""
    frames: Sequence[Any] = media if isinstance(media, list) else [media]
    total = (0, 0)
    for frame in frames:
        total = sum_of(frame.tobytes(), total)
    return total


def as_json(score: Score) -> dict[str, Any]:
    """A score as JSON; its value alone may be nan, which becomes null."""
    return {
        "value": None if math.isnan(score.value) else score.value,
        "aspects": dict(score.aspects),
        "explanation": score.explanation,
        "status": score.status,
        "details": dict(score.details),
        "members": {name: as_json(member) for name, member in score.members.items()},
    }


def from_json(content: Mapping[str, Any]) -> Score:
    value = math.nan if content["value"] is None else content["value"]
    members = {name: from_json(member) for name, member in content["members"].items()}
    return Score(**{**content, "value": value, "members": members})
