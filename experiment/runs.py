"""The runs below an output folder, one line each: what ran, how far it came, what it takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiment.records import (
    SHARDS,
    STATE,
    SUMMARY,
    by_prompt,
    candidate_files,
    parse_name,
    read_candidates,
    read_rounds,
)
from utils import UserError, find_path, significant

CONFIG, WINNERS, DONE = "config.json", "winners.jsonl", "done.jsonl"
CONFIG_KEYS = ("pretrained_model_name_or_path", "search_args", "verifier_args")  # any of them
MODEL, METRIC = -4, -2  # of a run's path: <model>/<verifier>/<metric>/<time>


@dataclass(frozen=True)
class Reached:
    """How far a run came. best: the scores of the prompts that are done; nan for none.

    total: how many prompts it has; None where that is not known. finished: None where nobody can
    tell, of trees that tt-scale-flux leaves.
    """

    best: Sequence[float]
    failed: int
    total: int | None
    finished: bool | None

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{len(self.best)}{of}{failed}{' (unfinished)' if self.finished is False else ''}"


@dataclass(frozen=True)
class RunLine:
    """One run folder. mean: of its prompts' best scores; megabytes on disk."""

    folder: Path
    model: str
    verifier: str
    method: str
    reached: Reached
    megabytes: float

    def cells(self) -> tuple[str, ...]:
        known = [score for score in self.reached.best if not math.isnan(score)]
        mean = significant(sum(known) / len(known)) if known else "-"
        what = (str(self.folder), self.model, self.verifier, self.method)
        return (*what, str(self.reached), mean, f"{self.megabytes:.1f}")


HEAD = ("run", "model", "verifier", "method", "prompts", "best mean", "MB")


def listed_runs(root: str) -> str:
    """All runs below a folder as a table, in the order of their names."""
    lines = [run.cells() for run in _runs(Path(root))]
    if not lines:
        raise UserError(f"There are no runs below '{root}': give another --output_dir.")
    widths = [max(len(row[i]) for row in (HEAD, *lines)) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (HEAD, *lines)
    )


def _runs(root: Path) -> Iterator[RunLine]:
    for name, folders, files in os.walk(root):
        folders.sort()
        folder = Path(name)
        config = _object(folder / CONFIG) if CONFIG in files else None
        ours = config is not None and any(key in config for key in CONFIG_KEYS)
        if ours or any(f.endswith(".json") and parse_name(Path(f)) for f in files):
            yield _line(folder, config or {})


def _line(folder: Path, config: Mapping[str, Any]) -> RunLine:
    return RunLine(
        folder=folder,
        model=_text(config, CONFIG_KEYS[0]) or _model_of(folder, config),
        verifier=_text(config, "verifier_args", "name") or "-",
        method=_text(config, "search_args", "search_method") or "-",
        reached=_reached(folder, config),
        megabytes=sum(map(_size, folder.rglob("*"))) / 1e6,
    )


def _model_of(folder: Path, config: Mapping[str, Any]) -> str:
    """As the path has it, where it is that of an output tree."""
    parts = folder.absolute().parts
    metric = _text(config, "verifier_args", "choice_of_metric")
    return parts[MODEL] if len(parts) > -MODEL and parts[METRIC] == metric else "-"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # of a run that goes on meanwhile
        return 0


def _reached(folder: Path, config: Mapping[str, Any]) -> Reached:
    summary = _object(folder / SUMMARY)
    if summary is not None:
        entries = _entries(summary.get("prompts"))
        return _summed_up(entries, len(entries), finished=True)
    state = folder / STATE
    if state.is_dir() or (folder / WINNERS).is_file():
        return _summed_up(_done(folder), _total(config), finished=False)
    if not candidate_files(folder) and not (folder / "manifest.json").exists():
        return Reached(_best_of_rounds(folder), 0, None, None)
    return Reached(_best_of_rows(folder), 0, _total(config), False)


def _summed_up(
    entries: Sequence[Mapping[str, Any]], total: int | None, *, finished: bool
) -> Reached:
    failed = sum("failed" in entry for entry in entries)
    best = [_score(entry.get("best")) for entry in entries if "failed" not in entry]
    return Reached(best, failed, total, finished)


def _score(best: Any) -> float:
    score = best.get("score") if isinstance(best, Mapping) else None
    return float(score) if isinstance(score, int | float) else math.nan


def _done(folder: Path) -> list[Mapping[str, Any]]:
    """What is summed up of an unfinished run's prompts; nothing is repaired on the way."""
    state = folder / STATE
    files = [state / DONE, *(state / SHARDS).glob("prompt*.json"), folder / WINNERS]
    lines = (line for file in files for line in _lines(file))
    found = _entries([line.get("summary") for line in lines if isinstance(line, Mapping)])
    return list({str(entry.get("prompt_index")): entry for entry in found}.values())


def _lines(path: Path) -> Iterator[Any]:
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.split(b"\n"):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last one may still be being written


def _entries(found: Any) -> list[Mapping[str, Any]]:
    return [e for e in found if isinstance(e, Mapping)] if isinstance(found, list) else []


def _best_of_rows(folder: Path) -> list[float]:
    """Each prompt's best score so far."""
    try:
        rows = read_candidates(folder)
    except UserError:  # a damaged file is its own reader's to complain about
        return []
    highest: dict[int, float] = {}
    for row in rows:
        best = highest.setdefault(row.prompt_index, math.nan)
        counts = row.step == row.steps and row.path and not math.isnan(row.score)
        if counts and not row.score <= best:
            highest[row.prompt_index] = row.score
    return list(highest.values())


def _best_of_rounds(folder: Path) -> list[float]:
    rounds = by_prompt(read_rounds(folder, lambda _: None))
    known = ([r.score for r in own if not math.isnan(r.score)] for own in rounds.values())
    return [max(scores, default=math.nan) for scores in known]


def _total(config: Mapping[str, Any]) -> int | None:
    """How many prompts a run's config asks for, if that can be told from what is here."""
    if config.get("prompt") is not None:
        return 1
    name, wanted = config.get("prompts"), config.get("num_prompts")
    path = find_path(name) if isinstance(name, str) else None
    held = None
    if path is not None and path.is_file():
        held = _held(str(path), str(config.get("prompts_column") or "") or None)
    if isinstance(wanted, int):
        return wanted if held is None else min(held, wanted)
    if wanted == "all":
        return held
    from experiment.config import DEFAULT_NUM_PROMPTS

    return DEFAULT_NUM_PROMPTS if held is None else min(held, DEFAULT_NUM_PROMPTS)


@cache
def _held(path: str, column: str | None) -> int | None:
    """Prompts in a file; None where it cannot be read."""
    from experiment.prompts import prompts_of_file

    try:
        return sum(1 for _ in prompts_of_file(Path(path), column))
    except UserError:
        return None


def _text(config: Mapping[str, Any], *keys: str) -> str:
    """A value of a config, by the way to it; empty where it has none."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, str | int | float) else ""


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
