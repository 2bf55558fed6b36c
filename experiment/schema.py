"""The config's JSON Schema, for editors: `configs/schema.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    cases = []
    for name, registered in sorted(classes.items()):
        own = TypeAdapter(registered).json_schema()
        properties = {
            option: details
            for option, details in own.get("properties", {}).items()
            if not option.startswith("_")
        }
        cases.append(
            {
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": {"properties": properties},
            }
        )
    part["properties"][key]["examples"] = sorted(classes)
    return {**part, "allOf": cases}


def write_schema(path: Path) -> None:
    """Write the schema where configs point to."""
    path.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
