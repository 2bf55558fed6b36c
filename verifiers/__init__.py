"""What judges an image. One file a verifier, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from utils import UserError, check_options, did_you_mean
from verifiers import keyframes
from verifiers.base import Chosen, Metric
from verifiers.keyframes import Keyframes

VERIFIERS = {
    "clip": "verifiers.clip:ClipScore",
    "ensemble": "verifiers.ensemble:Ensemble",
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


def build_verifier(name: str, metric: Metric | None, options: Mapping[str, Any]) -> Chosen:
    """A verifier ready to be loaded: its options, packages, keys and files are checked."""
    chosen = make_verifier(name, metric, options)
    chosen.check()
    return chosen


def make_verifier(name: str, metric: Metric | None, options: Mapping[str, Any]) -> Chosen:
    """A verifier with its options filled in and its metric chosen; nothing outside is looked at."""
    if is_planned(name):
        raise UserError(
            f"The verifier '{name}' is not built yet: choose one of {', '.join(sorted(VERIFIERS))},"
            " or plan the run with --dry_run."
        )
    build = verifier_class(name)
    own, framing = split_options(build, options)
    check_options(f"The verifier '{name}'", build, own)
    verifier: Any = build(**own)
    if not build.video:
        verifier = Keyframes(verifier, **framing)
    return Chosen(verifier, name, metric or default_metric(name))


def split_options(build: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The verifier's own options, and those on how an image verifier is shown a video."""
    framing = {} if build.video else {k: v for k, v in options.items() if k in keyframes.OPTIONS}
    return {k: v for k, v in options.items() if k not in framing}, framing
