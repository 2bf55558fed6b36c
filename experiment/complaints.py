"""What is wrong with a config, as one sentence: pydantic's complaints in this project's words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from utils import did_you_mean

# What pydantic adds to a key's path for each member of a union.
BRANCH = re.compile(
    r"int|float|str|bool|none|[A-Z]\w*Args|constrained-\w+|(literal|dict|list|tuple|function-\w+)\[.*"
)
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "keys and values in {{}}",
    "model": "keys and values in {{}}",
    "dataclass": "keys and values in {{}}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "string_too_short": "at least {min_length} long",
}


def sentence(error: ValidationError, prefix: str = "", model: Any = None) -> str:
    """The first complaint as one sentence, and of how many more keys there are complaints.

    prefix: of the keys' path. model: whose keys are proposed for one that is unknown.
    """
    by_key: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for each in error.errors():
        by_key.setdefault(_path(each), []).append(each)
    (path, first), *more = by_key.items()
    text = _complaint((*([prefix] if prefix else []), *path), first, model)
    return f"{text[:-1]} (and {len(more)} more)." if more else text


def _path(error: ErrorDetails) -> tuple[str, ...]:
    """The key that is complained of; of a union's members each has a complaint of its own."""
    *path, last = (str(part) for part in error["loc"] or ("",))
    kept = [part for part in path if not BRANCH.fullmatch(part)]
    return (*kept, last) if error["type"] in UNKNOWN or not BRANCH.fullmatch(last) else (*kept,)


def _complaint(path: Sequence[str], errors: Sequence[ErrorDetails], model: Any) -> str:
    where, error = ".".join(path) or "the config", errors[0]
    if error["type"] in UNKNOWN:
        return f"Unknown key '{where}': {did_you_mean(path[-1], _keys(path[:-1], model))}"
    if error["type"] == "missing":
        return f"The key '{where}' is missing."
    if error["type"] == "value_error":
        return f"{where}: {str(error['ctx']['error']).rstrip('.')}."
    shown = json.dumps(error["input"], default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    wanted = [_wanted(each) for each in errors]
    if None in wanted:
        return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, not {shown}."
    return f"{where}: must be {' or '.join(dict.fromkeys(map(str, wanted)))}, not {shown}."


def _wanted(error: ErrorDetails) -> str | None:
    """What the key's value must be; None for a complaint that has no words here."""
    kind = error["type"]
    text = WANTED.get(kind) or WANTED.get(kind.split("_")[0])
    return None if text is None else text.format(**error.get("ctx", {}))


def _keys(path: Sequence[str], model: Any) -> list[str]:
    """The legal keys of the part of the config at this path."""
    for name in path:
        field = getattr(model, "model_fields", {}).get(name)
        kind = getattr(field, "annotation", None)
        # A part that may be null is a union.
        model = next((k for k in (kind, *get_args(kind)) if hasattr(k, "model_fields")), None)
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]
