"""Numbers of JSON that may have come from anywhere."""

from __future__ import annotations

import math

from experiment.report_run import Named


def as_number(value: object) -> float:
    """A finite JSON number as a float; anything else is nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer of any length is JSON
        return math.nan


def as_whole(value: object) -> int:
    """A whole JSON number; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def as_named(scores: object) -> dict[Named, float]:
    """{"clip": {"clip_score": 0.8}} with one key; what is no number is left out."""
    if not isinstance(scores, dict):
        return {}
    return {
        (str(name), str(aspect)): found
        for name, aspects in scores.items()
        if isinstance(aspects, dict)
        for aspect, value in aspects.items()
        if not math.isnan(found := as_number(value))
    }
