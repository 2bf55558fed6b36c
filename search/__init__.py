"""What to try next: searches over noises and sampling paths. Knows no model, disk or verifier."""

from __future__ import annotations

from typing import Any

from utils import named_class

SEARCHES = {
    "random": "search.methods.random:Random",
    "zero-order": "search.methods.zero_order:ZeroOrder",
}


def search_class(name: str) -> Any:
    """The search of this name, or the user's own at "package.module:Class"."""
    return named_class("search method", name, SEARCHES, "flow")
