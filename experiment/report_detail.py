"""What the page shows of a prompt that is opened: its rounds, its curve, all its candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.report_measures import Told, best_so_far
from experiment.report_run import Candidate, Round, Searched
from experiment.statistics import Estimate
from utils import json_number


def detail(
    runs: Sequence[Told], key: tuple[str, int], thumbs: Mapping[Path, str]
) -> list[dict[str, Any] | None]:
    """One entry a run; None where it has no such prompt. thumbs: the winners' small pictures."""
    found: list[dict[str, Any] | None] = []
    for run in runs:
        searched = run.run.by_key.get(key)
        found.append(_searched(run, searched, thumbs) if searched else None)
    return found


def _searched(run: Told, searched: Searched, thumbs: Mapping[Path, str]) -> dict[str, Any]:
    best = searched.best
    return {
        "index": searched.index,
        "stem": searched.stem,
        "best": best.id if best else None,
        "thumb": thumbs.get(run.run.folder / best.path) if best and best.path else None,
        "rounds": _rounds(run, searched),
        "curves": {
            cost: [[short(x), short(y)] for x, y in best_so_far(searched, cost)]
            for cost in run.costs
        },
        "rows": [_row(run, searched, each) for each in searched.candidates],
    }


def _rounds(run: Told, searched: Searched) -> list[dict[str, Any]]:
    """Every round in order: those with a record by it, others as their candidates tell."""
    recorded: dict[int, Round] = {each.number: each for each in searched.rounds}
    fresh: dict[int, list[Candidate]] = {}
    for candidate in searched.candidates:
        if candidate.finished:
            fresh.setdefault(candidate.round, []).append(candidate)
    return [
        _recorded(run, recorded[number], len(fresh.get(number, ())))
        if number in recorded
        else _unrecorded(run, number, fresh[number])
        for number in sorted(recorded.keys() | fresh.keys())
    ]


def _recorded(run: Told, each: Round, finished: int) -> dict[str, Any]:
    shown = each.path in run.run.names
    return {
        "number": each.number,
        "id": each.id,
        "score": short(each.score),
        "n": each.num_noises or finished,
        "name": each.path if shown else None,
        "why": "image missing",
        "explanation": each.explanation,
        "rejected": False,
    }


def _unrecorded(run: Told, number: int, fresh: Sequence[Candidate]) -> dict[str, Any]:
    """A round that left no record: rejected, or without a score, or its record is lost.

    Of a rejected one only what was the prompt's best so far has its picture.
    """
    scored = [each for each in fresh if not math.isnan(each.score)]
    kept = [each for each in scored if each.path in run.run.names]
    rejected = any(each.path is None for each in scored)
    best = max(kept or scored, key=lambda each: each.score, default=None)
    why = "rejected: no better one" if rejected else "image missing"
    return {
        "number": number,
        "id": best.id if best else None,
        "score": short(best.score) if best else None,
        "n": len(fresh),
        "name": best.path if best and kept else None,
        "why": why if scored else "nothing scored",
        "explanation": best.explanation if best else "",
        "rejected": rejected,
    }


def _row(run: Told, searched: Searched, each: Candidate) -> list[Any]:
    """A candidate's fields in the order that the script names them."""
    return [
        each.id,
        each.round,
        each.step,
        each.steps,
        each.seed,
        each.status,
        values(run, each),
        short(each.guidance),
        each.draft,
        short(each.nfe),
        short(each.seconds),
        each.parents,
        _picture(run, searched, each),
        each.explanation,
        _sound(each.recipe),
    ]


def _picture(run: Told, searched: Searched, each: Candidate) -> int | str:
    """0 for none, 1 for the name that the row implies, 2 for one that is missing, or a name."""
    if each.path is None:
        return 0
    if each.path not in run.run.names:
        return 2
    return 1 if each.path == f"{searched.stem}_i@{each.round}_s@{each.seed}.png" else each.path


# Numbers.


def _sound(value: Any) -> Any:
    """The same without what JSON cannot hold, which a foreign row may."""
    if isinstance(value, dict):
        return {name: _sound(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_sound(each) for each in value]
    return json_number(value) if isinstance(value, float) else value


def values(run: Told, candidate: Candidate) -> list[float | None]:
    """Its scores by the run's metrics, null where it has none."""
    return [short(value) for value in run.values(candidate)]


def ends(estimate: Estimate) -> list[float | None]:
    """A mean and its interval."""
    return list(map(short, (estimate.mean, estimate.low, estimate.high)))


def short(value: float) -> float | int | None:
    """A number in six significant digits, whole ones as such: a page has a million of them."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 2**53 else rounded
