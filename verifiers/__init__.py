"""What judges an image. One file a verifier, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from utils import UserError, check_options, did_you_mean
from verifiers import keyframes
from verifiers.base import Chosen, Metric
from verifiers.keyframes import Keyframes

VERIFIERS = {
    "classifier": "verifiers.classifier:Classifier",
    "clip": "verifiers.clip:ClipScore",
    "contrast": "verifiers.contrast:Contrast",
    "ensemble": "verifiers.ensemble:Ensemble",
    "fid": "verifiers.fid:Fid",
    "gemini": "verifiers.gemini:Gemini",
    "hpsv2": "verifiers.hpsv2:Hpsv2",
    "http": "verifiers.http:HttpScorer",
    "image_reward": "verifiers.image_reward:ImageReward",
    "inception_score": "verifiers.inception_score:InceptionScore",
    "laion_aesthetic": "verifiers.aesthetic:LaionAesthetic",
    "openai": "verifiers.openai_compatible:OpenAICompatible",
    "pickscore": "verifiers.pickscore:PickScore",
    "qwen": "verifiers.qwen:Qwen",
    "self_similarity": "verifiers.self_similarity:SelfSimilarity",
    "shapes_oracle": "verifiers.shapes_oracle:ShapesOracle",
    "vqa": "verifiers.vqa:Vqa",
}


def verifier_class(name: str) -> Any:
    """The verifier of this name, or the user's own at "package.module:Class"."""
    path = VERIFIERS.get(name, name)
    if ":" not in path:
        raise UserError(f"There is no verifier '{name}': {did_you_mean(name, VERIFIERS)}")
    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's own module can fail in any way as it is imported
        raise UserError(f"The verifier '{name}' cannot be imported: {error}.") from error
    if not (is_dataclass(found) and hasattr(found, "score")):
        raise UserError(f"'{name}' is no verifier: it must be a dataclass with a method 'score'.")
    return found


def build_verifier(name: str, metric: Metric | None, options: Mapping[str, Any]) -> Chosen:
    """A verifier ready to be loaded: its options, packages, keys and files are checked."""
    chosen = make_verifier(name, metric, options)
    chosen.check()
    return chosen


def make_verifier(name: str, metric: Metric | None, options: Mapping[str, Any]) -> Chosen:
    """A verifier with its options filled in and its metric chosen; nothing outside is looked at."""
    build = verifier_class(name)
    own, framing = split_options(build, options)
    check_options(f"The verifier '{name}'", build, own)
    verifier: Any = build(**own)
    if not build.video:
        verifier = Keyframes(verifier, **framing)
    return Chosen(verifier, name, metric or default_metric(verifier.metrics))


def default_metric(metrics: Sequence[str]) -> str:
    """The metric searched by when none is chosen: the overall score, or the first there is."""
    return "overall_score" if "overall_score" in metrics else metrics[0]


def split_options(build: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The verifier's own options, and those on how an image verifier is shown a video."""
    framing = {} if build.video else {k: v for k, v in options.items() if k in keyframes.OPTIONS}
    return {k: v for k, v in options.items() if k not in framing}, framing
