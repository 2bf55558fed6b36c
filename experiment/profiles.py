"""`engine_args.profile`: a search explores with cheap drafts, and its winners are rendered exactly.

A profile other than "exact" puts the config's search inside the search `draft`, which renders the
best noises again on the exact model; a config that names `draft` itself stays as it is. What comes
out is an ordinary config, and is what a run's config.json holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import search
from utils import UserError

Profile = Literal["exact", "fp8", "cached", "draft"]

DEFAULT_ROUNDS = 4
WHOLE = ("fp8", "cached")  # their drafts take all the steps, each more cheaply


def explored(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config's content with its search inside one that drafts, where a profile asks for that."""
    engine, args = content.get("engine_args"), content.get("search_args", {})
    profile = engine.get("profile", "exact") if isinstance(engine, Mapping) else "exact"
    if profile == "exact" or not isinstance(args, Mapping):
        return content
    share = {"share": 1.0} if profile in WHOLE else {}
    method = args.get("search_method", "random")
    if isinstance(method, str) and getattr(search.search_class(method), "drafts", False):
        return {**content, "search_args": {**share, **args}}
    inner, outer = dict(args), {"search_method": "draft", "inner": args, **share}
    rounds = args.get("search_rounds")
    budget = content.get("budget")
    bounded = isinstance(budget, Mapping) and any(v is not None for v in budget.values())
    if rounds is None and not bounded:
        rounds = DEFAULT_ROUNDS
    if isinstance(rounds, int):
        inner["search_rounds"] = rounds
        outer["search_rounds"] = 1
    return {**content, "search_args": {**outer, "inner": inner}}


def refuse_contradiction(profile: str, quantization: str | None, made: Any) -> None:
    """Refuse a profile beside what it contradicts. made: the search."""
    if profile != "exact" and quantization is not None:
        raise UserError(
            f"engine_args.profile '{profile}' renders winners exactly, and engine_args.quantization"
            f" '{quantization}' would not: keep one of them."
        )
    whole = getattr(made, "drafts", False) and made.share == 1
    if whole and profile not in WHOLE:
        raise UserError(
            "Drafts that take all the steps are no cheaper than images: set search_args.share below"
            " 1, or engine_args.profile to 'cached' or 'fp8'."
        )
