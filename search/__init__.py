"""What to try next: searches over noises and sampling paths. Knows no model, disk or verifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.own import check_search
from utils import check_options, named_class

SEARCHES = {
    "draft": "search.methods.draft:Draft",
    "ascent": "search.methods.ascent:Ascent",
    "random": "search.methods.random:Random",
    "zero-order": "search.methods.zero_order:ZeroOrder",
    "steering": "search.methods.steering:Steering",
    "svdd": "search.methods.svdd:Svdd",
    "code": "search.methods.code:Code",
    "rbf": "search.methods.rbf:Rbf",
    "halving": "search.methods.halving:Halving",
    "paths": "search.methods.paths:Paths",
    "monitor": "search.methods.monitor:Monitor",
    "ses": "search.methods.ses:Ses",
    "evolution": "search.methods.evolution:Evolution",
    "evosearch": "search.methods.evosearch:EvoSearch",
    "tree": "search.methods.tree:Tree",
}


def make_search(name: str, options: Mapping[str, Any]) -> Any:
    """The search of this name with these options."""
    build = search_class(name)
    check_options(f"The search method '{name}'", build, options)
    return build(**options)


def search_class(name: str) -> Any:
    """The search of this name, or the user's own at "package.module:Class"."""
    found = named_class("search method", name, SEARCHES, "flow")
    check_search(name, found)
    return found
