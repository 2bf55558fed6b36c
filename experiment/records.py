"""The records of a run folder: what its file names, JSON files and candidate rows say."""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from utils import UserError

CANDIDATES = "candidates.jsonl"
SUMMARY = "summary.json"
STATE = "state"  # a folder, there while a run is unfinished
SHARDS = "shards"  # within it: what several processes have done that is not yet merged
_NAME = re.compile(r"prompt@(.+?)_hash@([^_]+)_i@(\d+)_s@(\d+)\.(\w+)")


@dataclass(frozen=True, order=True)
class PromptKey:
    """What tells the prompts of a folder apart: long prompts can share their shortened slug."""

    slug: str
    hash: str


@dataclass(frozen=True)
class ResultFile:
    """A candidate's image or a round's record, as its name describes it."""

    path: Path
    key: PromptKey
    search_round: int
    seed: int


@dataclass(frozen=True)
class RoundRecord:
    """The best candidate of one search round of one prompt."""

    key: PromptKey
    prompt: str
    search_round: int
    num_noises: int
    best_noise_seed: int
    score: float  # nan: no answer
    explanation: str
    choice_of_metric: str
    image_path: Path
    json_path: Path


@dataclass(frozen=True)
class CandidateRecord:
    """One row of `candidates.jsonl`: a candidate at one of the times it was scored."""

    id: int
    prompt: str
    prompt_index: int
    round: int
    step: int
    steps: int
    seed: int
    recipe: Mapping[str, Any]
    parents: tuple[int, ...]
    status: str
    score: float  # nan unless `status` is "ok"
    scores: Mapping[str, Mapping[str, float]]
    judges: Mapping[str, Mapping[str, float]]
    explanation: str
    nfe: float
    rows: int
    batch_size: int
    seconds: float
    path: str | None  # relative to the run folder; None for previews and rejected rounds
    draft: bool = False
    profile: str = "exact"  # earlier versions wrote none
    guidance: float = 1.0  # a factor on the pipeline's


class Keyed(Protocol):
    """Anything that belongs to one prompt."""

    @property
    def key(self) -> PromptKey: ...


K = TypeVar("K", bound=Keyed)


def by_prompt(records: Iterable[K]) -> dict[PromptKey, list[K]]:
    """The records of each prompt, prompts in the order of their keys."""
    groups: dict[PromptKey, list[K]] = {}
    for record in records:
        groups.setdefault(record.key, []).append(record)
    return dict(sorted(groups.items()))


def parse_name(path: Path) -> ResultFile | None:
    """What a file's name says, or None for a file that is neither an image nor a round's record."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    slug, digest, search_round, seed, _ = match.groups()
    return ResultFile(path, PromptKey(slug, digest), int(search_round), int(seed))


def result_files(folder: Path, suffix: str) -> list[ResultFile]:
    """The folder's result files of one kind, by prompt, round and seed."""
    found = [parse_name(path) for path in folder.iterdir() if path.suffix == suffix]
    return sorted(
        (file for file in found if file is not None),
        key=lambda file: (file.key, file.search_round, file.seed),
    )


def read_rounds(folder: Path, tell: Callable[[str], None] | None = None) -> list[RoundRecord]:
    """The winners of all rounds, by prompt and round.

    A damaged record is an error, or left out where there is someone to `tell`.
    """
    found = []
    for file in result_files(folder, ".json"):
        try:
            found.append(_round(file))
        except UserError as error:
            if tell is None:
                raise
            tell(f"{file.path.name} is left out: {error}")
    return found


def candidate_files(folder: Path) -> list[Path]:
    """The files that hold a run's rows: `candidates.jsonl`, and while several processes work on the
    run one more of each prompt that they have taken, in the order of the prompts."""
    taken = (folder / STATE / SHARDS).glob("prompt*.jsonl")
    files = [folder / CANDIDATES, *sorted(taken, key=lambda p: (len(p.name), p.name))]
    return [path for path in files if path.exists()]


def read_candidates(folder: Path, since: int = 0) -> list[CandidateRecord]:
    """A run's rows in the order they were written; none if there is no file of them.

    since: the byte of `candidates.jsonl` at which the first row of interest begins.
    A last line that an interruption cut short is left out; damage anywhere else is an error.
    """
    with _no_collection():
        return [row for path in candidate_files(folder) for row in _rows_of(path, since)]


def _rows_of(path: Path, since: int) -> Iterator[CandidateRecord]:
    for number, row in written_rows(path, since if path.name == CANDIDATES else 0):
        try:
            yield _candidate(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(damaged_row(path, number)) from error


def written_rows(path: Path, since: int = 0) -> Iterator[tuple[int, Any]]:
    """The rows of a file that may still grow, as they stand in it, with their lines' numbers."""
    # Not splitlines(): a prompt may hold U+2028, which ends a line of text but not a row.
    lines = [line for line in enumerate(_read(path)[since:].split(b"\n"), 1) if line[1].strip()]
    yield from _parsed(path, lines)


def _parsed(path: Path, lines: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, Any]]:
    """The JSON of each line: of all at once, which takes half the time, unless one is damaged."""
    try:
        rows = json.loads(b"[" + b",".join(line for _, line in lines) + b"]")
    except (ValueError, RecursionError):
        rows = []
    if len(rows) == len(lines):
        yield from ((number, row) for (number, _), row in zip(lines, rows, strict=True))
        return
    for number, line in lines:
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == lines[-1][0]:
                return
            raise UserError(damaged_row(path, number)) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without it the collector looks again and again at rows that all stay: half the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_best(folder: Path) -> frozenset[str]:
    """The names of the images that the run chose as its best; empty while it is unfinished."""
    path = folder / SUMMARY
    if not path.exists():
        return frozenset()
    try:
        best = [prompt["best"] or {} for prompt in read_object(path)["prompts"]]
        return frozenset(entry["path"] for entry in best if entry.get("path"))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a run's summary: mend it, or move it away.") from error


def _round(file: ResultFile) -> RoundRecord:
    fields = read_object(file.path)
    best = fields.get("best_score")
    graded = best if isinstance(best, dict) else {"score": best}
    # The record's own `best_img_path` is relative to a working directory nobody remembers.
    video = file.path.with_suffix(".mp4")
    is_video = video.exists() or str(fields.get("best_img_path")).endswith(".mp4")
    return RoundRecord(
        key=file.key,
        prompt=str(fields.get("prompt") or file.key.slug.replace("_", " ")),
        search_round=file.search_round,
        num_noises=_count(fields.get("num_noises")),
        best_noise_seed=file.seed,
        score=_number(graded.get("score")),
        explanation=str(graded.get("explanation") or ""),
        choice_of_metric=_metric(fields.get("choice_of_metric")),
        image_path=video if is_video else file.path.with_suffix(".png"),
        json_path=file.path,
    )


def _candidate(row: Mapping[str, Any]) -> CandidateRecord:
    return CandidateRecord(
        id=int(row["id"]),
        prompt=str(row["prompt"]),
        prompt_index=int(row["prompt_index"]),
        round=int(row["round"]),
        step=int(row["step"]),
        steps=int(row["steps"]),
        seed=int(row["seed"]),
        recipe=row.get("recipe") or {},
        parents=tuple(row.get("parents") or ()),
        status=str(row["status"]),
        score=_number(row.get("score")),
        scores=row.get("scores") or {},
        judges=row.get("judges") or {},
        explanation=str(row.get("explanation") or ""),
        nfe=_number(row.get("nfe", 0)),
        rows=int(row.get("rows", 0)),
        batch_size=int(row.get("batch_size", 0)),
        seconds=_number(row.get("seconds", 0)),
        path=_path(row.get("path")),
        draft=row.get("draft") is True,
        profile=str(row.get("profile") or "exact"),
        guidance=_number(row.get("guidance", 1.0)),
    )


def _path(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise TypeError(f"{value!r} is no path")
    return value


def damaged_row(path: Path, number: int) -> str:
    return f"Line {number} of {path} is not a candidate's row: mend or delete that line."


def read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): mend it, or move it away.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: mend it, or move it away.")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend that.") from error


def _number(value: object) -> float:
    """A JSON number as a float; anything else, null above all, is nan."""
    return float(value) if isinstance(value, int | float) else math.nan


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _metric(choice: object) -> str:
    """A metric's name, or the names of several with their weights."""
    if isinstance(choice, dict):
        return " + ".join(f"{weight} {name}" for name, weight in choice.items())
    return str(choice or "")
