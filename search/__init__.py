"""What to try next: searches over noises and sampling paths. Knows no model, disk or verifier."""

from __future__ import annotations

from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from utils import UserError, did_you_mean

SEARCHES = {
    "random": "search.methods.random:Random",
    "zero-order": "search.methods.zero_order:ZeroOrder",
}


def search_class(name: str) -> Any:
    """The search of this name, or the user's own at "package.module:Class"."""
    path = SEARCHES.get(name, name)
    if ":" not in path:
        raise UserError(f"There is no search method '{name}': {did_you_mean(name, SEARCHES)}")
    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's own module can fail in any way as it is imported
        raise UserError(f"The search method '{name}' cannot be imported: {error}.") from error
    if not (is_dataclass(found) and hasattr(found, "flow")):
        raise UserError(
            f"'{name}' is no search method: it must be a dataclass with a method 'flow'."
        )
    return found
