"""The runs below an output folder, one line each: what ran, how far it came, what it takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.records import SUMMARY, read_candidates
from utils import UserError, significant

CONFIG = "config.json"


@dataclass(frozen=True)
class RunLine:
    """One run folder. done: prompts searched; mean: of their best scores; megabytes on disk."""

    folder: Path
    model: str
    verifier: str
    method: str
    done: int
    finished: bool
    mean: float | None
    megabytes: float

    def cells(self) -> tuple[str, ...]:
        prompts = f"{self.done}" if self.finished else f"{self.done} (unfinished)"
        best = "-" if self.mean is None else significant(self.mean)
        return (
            str(self.folder),
            self.model,
            self.verifier,
            self.method,
            prompts,
            best,
            f"{self.megabytes:.1f}",
        )


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
    for path in sorted(root.rglob(CONFIG)):
        config = _read(path)
        if config is not None and "pretrained_model_name_or_path" in config:
            yield _line(path.parent, config)


def _line(folder: Path, config: dict[str, Any]) -> RunLine:
    summary = _read(folder / SUMMARY)
    best = _best(folder, summary)
    scores = [score for score in best.values() if score is not None]
    return RunLine(
        folder=folder,
        model=str(config["pretrained_model_name_or_path"]),
        verifier=str(config.get("verifier_args", {}).get("name")),
        method=str(config.get("search_args", {}).get("search_method")),
        done=len(best),
        finished=summary is not None,
        mean=sum(scores) / len(scores) if scores else None,
        megabytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6,
    )


def _best(folder: Path, summary: dict[str, Any] | None) -> dict[int, float | None]:
    """Each prompt's best score: as summed up, or of an unfinished run what its rows say so far."""
    if summary is not None:
        found = {p["prompt_index"]: p.get("best") for p in summary.get("prompts", [])}
        return {index: best and best.get("score") for index, best in found.items()}
    try:
        rows = read_candidates(folder)
    except UserError:  # a damaged file is its own reader's to complain about
        return {}
    highest: dict[int, float | None] = {}
    for row in rows:
        best = highest.setdefault(row.prompt_index, None)
        counts = row.step == row.steps and row.path and not math.isnan(row.score)
        if counts and (best is None or row.score > best):
            highest[row.prompt_index] = row.score
    return highest


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
