"""The config's JSON Schema, for editors: `configs/schema.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

import search
import verifiers
from experiment.config import ExperimentConfig


def schema() -> dict[str, Any]:
    """JSON Schema of the config, for editors; names and options of what is registered included."""
    whole = ExperimentConfig.model_json_schema(by_alias=True)
    parts = whole["$defs"]
    parts["SearchArgs"] = _named(
        parts["SearchArgs"],
        "search_method",
        {name: search.search_class(name) for name in search.SEARCHES},
    )
    parts["VerifierArgs"] = _named(
        parts["VerifierArgs"],
        "name",
        {name: verifiers.verifier_class(name) for name in verifiers.VERIFIERS},
    )
    return whole


def _named(part: dict[str, Any], key: str, classes: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a part that names a class: its own keys, and by name the class's fields."""
    cases = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": _options(registered)},
        }
        for name, registered in sorted(classes.items())
    ]
    part["properties"][key]["examples"] = sorted(classes)
    return {**part, "allOf": cases}


def _options(registered: Any) -> dict[str, Any]:
    """The schema of each option of a registered class, with its default."""
    hints = get_type_hints(registered)
    options = {}
    for field in dataclasses.fields(registered):
        if field.init:
            option = TypeAdapter(hints[field.name]).json_schema()
            if field.default is not dataclasses.MISSING:
                option["default"] = field.default
            options[field.name] = option
    return options


def write_schema(path: Path) -> None:
    """Write the schema where configs point to."""
    path.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
