"""Finds the models inside a verifier, so that one without a way of its own can leave a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DEEPEST = 4  # a verifier, its Keyframes, its model's record, the model


def models_within(thing: Any, depth: int = DEEPEST) -> Iterator[Any]:
    """The torch modules that an object holds in its attributes, lists and mappings."""
    from torch import nn

    if isinstance(thing, nn.Module):
        yield thing
    elif depth == 0 or isinstance(thing, str | bytes):
        return
    elif isinstance(thing, Mapping):
        for value in list(thing.values()):
            yield from models_within(value, depth - 1)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from models_within(value, depth - 1)
    elif _holds(thing):
        yield from models_within(vars(thing), depth)


def _holds(thing: Any) -> bool:
    """Whether to look inside: not into other libraries' objects (tokenizers, clients)."""
    module = type(thing).__module__.partition(".")[0]
    return hasattr(thing, "__dict__") and module not in ("transformers", "torch", "numpy", "PIL")
