"""What judges an image. One file a verifier, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils import check_options, named_class
from verifiers import keyframes
from verifiers.base import Chosen, Metric
from verifiers.keyframes import Keyframes
from verifiers.own import check_verifier

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
    found = named_class("verifier", name, VERIFIERS, "score")
    check_verifier(name, found)
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
