"""Classes of a class-conditional pipeline: a prompt's own, by its name or its number."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from utils import UserError, did_you_mean

# How denoisers' configs name the number of classes they were trained on.
COUNTS = ("num_classes", "num_class_embeds", "num_embeds_ada_norm")


def by_class(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a call has to be told its classes: what it makes has no prompt but them."""
    wanted = parameters.get("class_labels")
    return wanted is not None and wanted.default is wanted.empty and "prompt" not in parameters


def class_names(listed: Mapping[Any, str] | None) -> dict[str, int]:
    """Classes by name, from a checkpoint's list of number and names; the pipelines' own rule: of
    classes that share a name it is the last."""
    return {
        name.strip(): int(number)
        for number, names in (listed or {}).items()
        for name in names.split(",")
    }


def class_number(asked: Any, names: Mapping[str, int], count: int | None = None) -> int:
    """The class asked for: its name (case and underscores aside), its number, or "class 207".

    count: how many classes there are, where that is known.
    """
    plain = _plain(asked)
    known = {_plain(name): number for name, number in names.items()}
    if plain in known:
        return known[plain]
    number = plain.removeprefix("class ")
    most = count if count is not None else max(known.values(), default=-1) + 1
    if number.isascii() and number.isdigit() and (not most or int(number) < most):
        return int(number)
    shown = f"'{asked}'" if len(str(asked)) <= 60 else f"'{str(asked)[:57]}...'"
    if not names:
        among = f" from 0 to {most - 1}" if most else ""
        raise UserError(
            f"There is no class {shown}: the checkpoint names none, so ask by number{among}."
        )
    raise UserError(f"There is no class {shown} among the model's {most}: {_near(plain, names)}")


def asked_class(call_args: Mapping[str, Any], prompt: str) -> Any:
    """What names the class: the call arguments' `class_labels`, if set, or else the prompt."""
    given = call_args.get("class_labels")
    if not isinstance(given, list):
        return prompt if given is None else given
    if len(given) != 1:
        raise UserError(
            f"'class_labels' in pipeline_call_args holds {len(given)} values for one prompt: give"
            " one."
        )
    return given[0]


def class_count(configs: Iterable[Mapping[str, Any]]) -> int | None:
    """The number of classes that the denoisers' configs name, if they do."""
    found = [config[name] for config in configs for name in COUNTS if config.get(name)]
    return int(found[0]) if found else None


def _near(plain: str, names: Mapping[str, int]) -> str:
    if len(names) <= 20:
        return did_you_mean(plain, names)
    hint = did_you_mean(plain, {_plain(name) for name in names})
    return hint if hint.startswith("did") else "no name of theirs is near it."


def _plain(name: Any) -> str:
    """A name without what people type differently: case, underscores, spaces."""
    return " ".join(str(name).casefold().replace("_", " ").split())
