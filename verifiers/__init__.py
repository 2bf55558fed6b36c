"""What judges an image. One file a verifier, imported when it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from utils import UserError, did_you_mean
from verifiers.base import Chosen, Metric

VERIFIERS = {
    "clip": "verifiers.clip:ClipScore",
    "shapes_oracle": "verifiers.shapes_oracle:ShapesOracle",
}

_RUBRIC = (
    "accuracy_to_prompt",
    "creativity_and_originality",
    "visual_quality_and_realism",
    "consistency_and_cohesion",
    "emotional_or_thematic_resonance",
    "overall_score",
)

PLANNED = {  # legal in a config, so that existing configs can be planned; cannot run yet
    "gemini": _RUBRIC,
    "openai": _RUBRIC,
    "qwen": _RUBRIC,
    "laion_aesthetic": ("laion_aesthetic_score",),
}


def verifier_class(name: str) -> Any:
    """The verifier of this name, or the user's own at "package.module:Class"."""
    path = VERIFIERS.get(name, name)
    if ":" not in path:
        known = {**VERIFIERS, **PLANNED}
        raise UserError(f"There is no verifier '{name}': {did_you_mean(name, known)}")
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The verifier '{name}' cannot be imported: {error}.") from error


def is_planned(name: str) -> bool:
    """Whether this verifier can be named but not run yet."""
    return name in PLANNED and name not in VERIFIERS


def metrics_of(name: str) -> tuple[str, ...]:
    """The metrics a verifier gives."""
    return PLANNED[name] if is_planned(name) else tuple(verifier_class(name).metrics)


def default_metric(name: str) -> str:
    """The metric searched by when none is chosen: the overall score, or the first there is."""
    known = metrics_of(name)
    return "overall_score" if "overall_score" in known else known[0]


def build_verifier(name: str, metric: Metric, options: Mapping[str, Any]) -> Chosen:
    """A verifier with its options checked and its metric chosen; nothing is loaded yet."""
    if is_planned(name):
        raise UserError(
            f"The verifier '{name}' is not built yet: choose one of {', '.join(sorted(VERIFIERS))},"
            " or plan the run with --dry_run."
        )
    build = verifier_class(name)
    check_options(f"The verifier '{name}'", build, options)
    chosen = Chosen(build(**options), name, metric)
    chosen.check()
    return chosen


def check_options(who: str, build: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that are no fields of the class."""
    known = {field.name for field in dataclasses.fields(build) if field.init}
    for option in options:
        if option not in known:
            raise UserError(f"{who} has no option '{option}': {did_you_mean(option, known)}")
