"""A verifier that stands outside of this project, held to what a verifier is: one sentence each."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real
from typing import Any

from utils import UserError, declared, fixed
from verifiers.base import Score, Verifier

PARTS = [
    part
    for part in (*Verifier.__annotations__, *vars(Verifier))
    if part[0] != "_" and part != "metrics"  # which have a sentence of their own
]
MOST_NAMED = 3  # parts that are lacking


def check_verifier(name: str, found: Any) -> None:
    """Refuse a class that lacks a part of a verifier, or names its metrics wrongly."""
    lacking = [f"'{part}'" for part in PARTS if not declared(found, part)]
    if lacking:
        named = ", ".join(lacking[:MOST_NAMED])
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        raise UserError(
            f"'{name}' is no complete verifier, it lacks {named}{more}: derive it from"
            " verifiers.base.BaseVerifier."
        )
    metrics = fixed(found, "metrics", ("its own",)) if declared(found, "metrics") else None
    if not isinstance(metrics, tuple | list) or not metrics:
        raise UserError(
            f"'{name}' does not say what it measures: add `metrics: ClassVar = (\"quality\",)` with"
            " the names that its Score.of(quality=...) gives."
        )
    if not all(isinstance(metric, str) for metric in metrics):
        raise UserError(f"'{name}' has metrics={metrics!r}: give names.")


def checked_scores(verifier: Verifier, scores: Any, wanted: int) -> list[Score]:
    """What `score` returned, if it is a `Score` for each item whose aspects are numbers."""
    who = f"'{type(verifier).__module__}:{type(verifier).__qualname__}'"
    if not isinstance(scores, list | tuple):
        raise UserError(
            f"The verifier {who} returns {_kind(scores)} from 'score': return a list with a Score"
            " for each item."
        )
    if len(scores) != wanted:
        raise UserError(
            f"The verifier {who} returns {len(scores)} {_scores(len(scores))} for {wanted}"
            f" {'item' if wanted == 1 else 'items'}: return one for each, in order"
            " (Score.missing(why) where there is none)."
        )
    return [_checked_score(who, score) for score in scores]


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _scores(number: int) -> str:
    return "score" if number == 1 else "scores"


def _checked_score(who: str, score: Any) -> Score:
    if not isinstance(score, Score):
        raise UserError(
            f"The verifier {who} returns {_kind(score)} where a Score belongs: return"
            " Score.of(metric=value), with the metric's own name."
        )
    for name, value in score.aspects.items():
        if not isinstance(value, Real):
            raise UserError(f"The verifier {who} gives {_kind(value)} for '{name}': give a float.")
    if all(type(value) in (float, int) for value in score.aspects.values()):
        return score
    # NumPy's numbers are numbers, but JSON does not know them.
    return replace(score, aspects={name: float(value) for name, value in score.aspects.items()})
