"""What judges have said of a folder's images after the fact: `judged.jsonl`, beside its own files.

A line is one judge's word on one image. Of several lines by one judge on one image the last stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiment.rows import Sum, as_sum
from utils import json_number
from verifiers.base import NO_ANSWER

JUDGED = "judged.jsonl"
MISFITS = (KeyError, TypeError, ValueError, AttributeError)  # of what is no judge's line

LeaveOut = Callable[[str, str], None]  # told a line's name, and why it cannot be used


@dataclass(frozen=True)
class Word:
    """One judge's word on one image.

    path: of the image, relative to the folder. judge: the name it is shown by. asked: what tells
    judges apart, their options. metric, score: the chosen one; nan for no answer, and `status` and
    `explanation` say why. scores: all that it gave, by judge (or an ensemble's member) and metric.
    sum: of the image's bytes.
    """

    path: str
    prompt: str
    judge: str
    asked: Mapping[str, Any]
    metric: str
    score: float
    status: str
    scores: Mapping[str, Mapping[str, float]]
    explanation: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    sum: Sum | None = None

    @property
    def key(self) -> str:
        return judge_key(self.asked)

    @property
    def answered(self) -> bool:
        """Whether asking again would be of no use."""
        return self.status not in NO_ANSWER

    def as_line(self) -> dict[str, Any]:
        return {**asdict(self), "score": json_number(self.score)}


def judge_key(asked: Mapping[str, Any]) -> str:
    """Tells judges apart."""
    return json.dumps(asked, sort_keys=True)


def parsed(line: Mapping[str, Any]) -> Word:
    """The word in a line; raises one of `MISFITS` for what is none."""
    return Word(
        path=_text(line["path"]),
        prompt=_text(line["prompt"]),
        judge=_text(line["judge"]),
        asked=dict(line["asked"]),
        metric=_text(line["metric"]),
        score=math.nan if line["score"] is None else float(line["score"]),
        status=_text(line["status"]),
        scores={
            str(judge): {str(name): float(value) for name, value in given.items()}
            for judge, given in line["scores"].items()
        },
        explanation=str(line.get("explanation") or ""),
        details=dict(line.get("details") or {}),
        sum=as_sum(line.get("sum")),
    )


def words(folder: Path, leave_out: LeaveOut) -> Iterator[Word]:
    """All that is on record in a folder, but damaged lines and words on what has changed since."""
    path = folder / JUDGED
    if not path.is_file():
        return
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        leave_out(JUDGED, f"it cannot be read ({error.strerror})")
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                word = parsed(json.loads(line))
            except (*MISFITS, RecursionError):
                leave_out(f"{JUDGED}, line {number}", "it is damaged or no judge's word")
                continue
            if not _changed(folder / word.path, word):
                yield word


def _changed(path: Path, word: Word) -> bool:
    """Whether another picture stands there now, as far as its size tells."""
    try:
        return word.sum is not None and path.stat().st_size != word.sum[0]
    except (OSError, ValueError):  # nothing does; that is its reader's to say
        return False


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
