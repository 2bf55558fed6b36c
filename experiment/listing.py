"""What there is to choose from, one line each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import search
import verifiers
from utils import ROOT


def listing() -> str:
    """The ready-made configs, verifiers and search methods."""
    lines = ["pipelines (any diffusers checkpoint works; these have a config)"]
    for path in sorted((ROOT / "configs").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "pretrained_model_name_or_path" in content:
            lines.append(_line(f"configs/{path.name}", content["pretrained_model_name_or_path"]))
    lines += ["", "verifiers"]
    for name in sorted(verifiers.VERIFIERS):
        lines += _verifier(name, verifiers.verifier_class(name))
    lines += ["", "search methods", *_named(search.SEARCHES, search.search_class)]
    return "\n".join(lines)


def _named(table: Mapping[str, str], find: Callable[[str], Any]) -> list[str]:
    return [_line(name, _summary(find(name))) for name in sorted(table)]


def _verifier(name: str, build: Any) -> list[str]:
    """A verifier, its metrics, and what it needs."""
    lines = [_line(name, _summary(build)), _line("", "metrics: " + ", ".join(build.metrics))]
    return lines + ([_line("", f"needs: {build.needs}")] if build.needs else [])


def _summary(described: Any) -> str:
    """The first sentence of the module that holds it: what it is, and where it comes from."""
    return (inspect.getdoc(inspect.getmodule(described)) or "").split("\n")[0]


def _line(name: str, text: str) -> str:
    return f"  {name:<38}{text}"
