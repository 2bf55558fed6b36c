"""A search that stands outside of this project, held to what a search is: one sentence each."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any, get_args

from search.core import Flow, Need, Rollout, Scored, Search, Space
from utils import UserError, declared, fixed

# What a search has beside its `flow`, and how it is written where nothing special is wanted.
MEMBERS = {
    "needs": "needs: ClassVar = frozenset()",
    "blind": "blind: ClassVar = False",
    "sized": "def sized(self, steps, nfe): return self",
}
WISH = "yield Rollout(space.draw(8), until=space.steps)"


class BadSearch(UserError):
    """A search's own code has failed, or asked for what there is not."""


def check_search(name: str, found: Any) -> None:
    """Refuse a class that lacks a part of a search, or has it of another kind."""
    lacking = [f"`{MEMBERS[member]}`" for member in MEMBERS if not declared(found, member)]
    if lacking:
        raise UserError(f"'{name}' is no complete search method: add {' and '.join(lacking)}.")
    known = get_args(Need)
    needs, blind = fixed(found, "needs", ()), fixed(found, "blind", False)
    if not isinstance(needs, frozenset | set | tuple | list) or not set(needs) <= set(known):
        raise UserError(
            f"'{name}' has needs={needs!r}: give a frozenset of {', '.join(known)}, or none of"
            " them."
        )
    if not isinstance(blind, bool):
        raise UserError(f"'{name}' has blind={blind!r}: give True or False.")
    for method in ("sized", "flow"):
        if not callable(getattr(found, method)):
            raise UserError(f"'{name}' has a '{method}' that is no method: write `def {method}`.")


def is_own(search: Search) -> bool:
    """Whether the search's code is a user's own."""
    return not type(search).__module__.startswith(__package__ + ".")


def sized(search: Search, steps: int, nfe: int) -> Search:
    """The search fitted to what is left of a budget."""
    if not is_own(search):
        return search.sized(steps, nfe)
    try:
        fitted = search.sized(steps, nfe)
    except Exception as error:
        raise _failed(search, "sized", error) from error
    if not callable(getattr(fitted, "flow", None)):
        raise BadSearch(f"'{_name(search)}' has a 'sized' that returns no search: return self.")
    return fitted


def flow_of(search: Search, space: Space, *, first: bool) -> Flow:
    """The search's wishes; a user's own with each one checked. first: none came before it."""
    return _checked(search, space, first) if is_own(search) else search.flow(space)


def _checked(search: Search, space: Space, first: bool) -> Flow:
    flow, wish = _begun(search, space)
    if wish is None and first:
        raise BadSearch(f"'{_name(search)}' has a 'flow' that yields nothing: `{WISH}`.")
    try:
        while wish is not None:
            _check_wish(search, space, wish)
            scored = yield wish
            wish = _next(search, flow, scored)
    finally:
        flow.close()


def _begun(search: Search, space: Space) -> tuple[Generator[Any, Scored, None], Any]:
    """The flow, and its first wish, None if it has none."""
    try:
        flow = search.flow(space)
    except UserError:
        raise
    except Exception as error:
        raise _failed(search, "flow", error) from error
    if not isinstance(flow, Generator):
        raise BadSearch(
            f"'{_name(search)}' has a 'flow' that is no generator but returns a"
            f" {type(flow).__name__}: `{WISH}`."
        )
    return flow, _next(search, flow, None)


def _next(search: Search, flow: Generator[Any, Any, None], scored: Scored | None) -> Any:
    """The flow's next wish; None at its end."""
    try:
        return flow.send(scored)
    except StopIteration:
        return None
    except UserError:
        raise
    except Exception as error:
        raise _failed(search, "flow", error) from error


def _check_wish(search: Search, space: Space, wish: Any) -> None:
    name = _name(search)
    if not isinstance(wish, Rollout):
        raise BadSearch(f"'{name}' yields a {type(wish).__name__}, not a Rollout: `{WISH}`.")
    if not len(wish.candidates):
        raise BadSearch(f"'{name}' yields a Rollout of no candidates: ask for one at least.")
    if not wish.draft and wish.until > space.steps:
        raise BadSearch(
            f"'{name}' yields a Rollout until step {wish.until} of {space.steps}: use space.steps."
        )


def _failed(search: Search, method: str, error: Exception) -> BadSearch:
    """What went wrong, and the last line of the user's own file on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(sys.modules.get(type(search).__module__), "__file__", None)
    own = [frame for frame in frames if frame.filename == file] or frames
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
    return BadSearch(f"'{_name(search)}' fails in '{method}' ({where}): {said}.")


def _name(search: Search) -> str:
    return f"{type(search).__module__}:{type(search).__qualname__}"
