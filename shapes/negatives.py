"""Hard negatives: captions that differ from a claim in one respect."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shapes.grammar import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Claim, Thing

NEGATIVES = 3  # a scene

_COLOR_NAMES, _BACKGROUND_NAMES = tuple(COLORS), tuple(BACKGROUNDS)


def draw_things(count: int, rng: random.Random) -> tuple[Thing, ...]:
    """Things of which no two share both color and shape."""
    things: list[Thing] = []
    while len(things) < count:
        thing = Thing(rng.choice(_COLOR_NAMES), rng.choice(SHAPES))
        if thing not in things:
            things.append(thing)
    return tuple(things)


def draw_negatives(claim: Claim, rng: random.Random) -> tuple[str, ...]:
    """Captions that contradict the claim, in the order of their making.

    When few changes apply, the rest are single things made up from nothing. Those can repeat, and
    can even be true: "a red star" of a scene with a small red star.
    """
    found: dict[str, None] = {}
    for _ in range(30):
        if len(found) == NEGATIVES:
            break
        other = _change(claim, rng)
        if other is not None and str(other) != str(claim):
            found[str(other)] = None
    texts = list(found)
    while len(texts) < NEGATIVES:
        texts.append(str(Claim(draw_things(1, rng))))
    return tuple(texts)


def _change(claim: Claim, rng: random.Random) -> Claim | None:
    """The claim with one random change; None where that change says nothing new."""
    how = rng.choice(_CHANGES)
    at = rng.randrange(len(claim.things))
    other = how(claim, at, rng)
    if other is None or len({(t.color, t.shape) for t in other.things}) < len(other.things):
        return None
    return other if claim.relation or _gist(other) != _gist(claim) else None


def _gist(claim: Claim) -> tuple[object, ...]:
    """A claim whatever the order in which it names its colors and shapes."""
    named = sorted((t.color, t.shape, t.count) for t in claim.things)
    return named, claim.relation, [t.size for t in claim.things], claim.background


def _with(claim: Claim, at: int, **changes: Any) -> Claim:
    things = list(claim.things)
    things[at] = replace(things[at], **changes)
    return replace(claim, things=tuple(things))


def _recolor(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    return _with(claim, at, color=rng.choice(_COLOR_NAMES))


def _reshape(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    return _with(claim, at, shape=rng.choice(SHAPES))


def _swap(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    """The first two things change places, or just colors where places are left open."""
    if len(claim.things) < 2:
        return None
    first, second, *rest = claim.things
    if claim.relation:
        return replace(claim, things=(second, first))
    pair = replace(first, color=second.color), replace(second, color=first.color)
    return replace(claim, things=(*pair, *rest))


def _recount(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    """Only a scene that was drawn with several equal objects has a count to get wrong."""
    if claim.things[0].count == 1:
        return None
    return _with(claim, 0, count=rng.choice([2, 3, 4]))


def _relate(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    return replace(claim, relation=rng.choice(RELATIONS)) if claim.relation else None


def _resize(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    size = claim.things[at].size
    return _with(claim, at, size={"small": "large", "large": "small"}[size]) if size else None


def _reground(claim: Claim, at: int, rng: random.Random) -> Claim | None:
    if claim.background is None:
        return None
    return replace(claim, background=rng.choice(_BACKGROUND_NAMES))


# The order is part of the distribution: a seed picks from this list by index.
_CHANGES: list[Callable[[Claim, int, random.Random], Claim | None]] = [
    _recolor, _reshape, _swap, _recount, _relate, _resize, _reground,
]  # fmt: skip
