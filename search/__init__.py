"""What to try next: searches over noises and sampling paths. Knows no model, disk or verifier."""

from __future__ import annotations

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
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The search method '{name}' cannot be imported: {error}.") from error
