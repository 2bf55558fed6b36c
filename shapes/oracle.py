"""An exact judge of a picture against a caption, from the pixels up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shapes.grammar import Claim, Thing, parse
from shapes.vision import Picture, look
from shapes.world import Item

# Radii of small objects are drawn from .085 to .11, of large ones from .19 to .22, and where the
# caption says nothing from .09 to .17: so plain objects can pass for small, never for large.
SMALL_BELOW = 0.125
LARGE_ABOVE = 0.18
MOST_MATCHED = 10  # the objects beyond a picture's largest ten are only counted


@dataclass(frozen=True)
class Verdict:
    """How much of a caption a picture shows.

    score: share of the caption's facts that hold; nan when the caption is outside the grammar.
    right: whether all of them hold.
    detail: the facts that fail.
    """

    score: float
    right: bool
    detail: str


@dataclass(frozen=True)
class Fact:
    """Whether one thing that a caption says holds, and in words how it fails if it does."""

    text: str
    holds: bool


def judge(image: Image.Image | NDArray[np.generic], caption: str) -> Verdict:
    """Whether the picture shows what the caption says, all of it and nothing else."""
    claim = parse(caption)
    if claim is None:
        return Verdict(math.nan, False, "the caption is outside the grammar")
    return weigh(claim, look(image))


def weigh(claim: Claim, picture: Picture) -> Verdict:
    """The verdict on a claim about a picture that has been read."""
    facts = check(claim, picture)
    failed = [fact.text for fact in facts if not fact.holds]
    score = (len(facts) - len(failed)) / len(facts)
    return Verdict(score, not failed, "; ".join(failed) or "all holds")


def check(claim: Claim, picture: Picture) -> list[Fact]:
    """The claim's atomic facts: each object's traits, counts, total, relation, background."""
    wanted = [at for at, thing in enumerate(claim.things) for _ in range(thing.count)]
    found = _assigned([claim.things[at] for at in wanted], picture.items[:MOST_MATCHED])
    facts: list[Fact] = []
    for at, item in zip(wanted, found, strict=True):
        facts += _traits(claim.things[at], item)
    facts += [_count(thing, claim, picture) for thing in claim.things]
    seen = len(picture.items)
    facts.append(Fact(f"{len(wanted)} objects wanted, {seen} seen", seen == len(wanted)))
    if claim.relation:
        groups = [[i for a, i in zip(wanted, found, strict=True) if a == at] for at in (0, 1)]
        facts.append(Fact(f"not {claim.relation}", _relates(claim.relation, *groups)))
    if claim.background:
        text = f"{claim.background} background wanted, {picture.background} seen"
        facts.append(Fact(text, picture.background == claim.background))
    return facts


def size_of(item: Item) -> str:
    """The class of an object's radius: small, medium or large."""
    if item.radius < SMALL_BELOW:
        return "small"
    return "large" if item.radius > LARGE_ABOVE else "medium"


def _traits(thing: Thing, item: Item | None) -> list[Fact]:
    """Color, shape and said size of one wanted object; all fail where none is left for it."""
    name = str(replace(thing, count=1))
    if item is None:
        missing = [Fact(f"{name}: missing", False), Fact(f"{name}: no shape", False)]
        return missing + ([Fact(f"{name}: no size", False)] if thing.size else [])
    facts = [
        Fact(f"{name}: color {item.color}", item.color == thing.color),
        Fact(f"{name}: shape {item.shape}", item.shape == thing.shape),
    ]
    if thing.size:
        size = size_of(item)
        facts.append(Fact(f"{name}: size {size}", size == thing.size))
    return facts


def _count(thing: Thing, claim: Claim, picture: Picture) -> Fact:
    """Whether there are as many objects of this color and shape as the whole claim says."""
    kind = (thing.color, thing.shape)
    said = sum(other.count for other in claim.things if (other.color, other.shape) == kind)
    seen = sum((item.color, item.shape) == kind for item in picture.items)
    return Fact(f"{said} {thing.color} {thing.shape} wanted, {seen} seen", seen == said)


def _assigned(wanted: Sequence[Thing], items: Sequence[Item]) -> list[Item | None]:
    """A different object for each wanted one, with the most traits right in all.

    best[used] is the assignment of the things so far that leaves the objects outside the bit set
    `used` free; None stands for a thing without an object.
    """
    best: dict[int, tuple[int, tuple[Item | None, ...]]] = {0: (0, ())}
    for thing in wanted:
        gains = [sum(fact.holds for fact in _traits(thing, item)) for item in items]
        step: dict[int, tuple[int, tuple[Item | None, ...]]] = {}
        for used, (gain, chosen) in best.items():
            options: list[tuple[int, int, Item | None]] = [(used, gain, None)]
            for bit, item in enumerate(items):
                if not used >> bit & 1:
                    options.append((used | 1 << bit, gain + gains[bit], item))
            for key, value, item_or_none in options:
                if key not in step or value > step[key][0]:
                    step[key] = (value, (*chosen, item_or_none))
        best = step
    return list(max(best.values(), key=lambda pair: pair[0])[1])


def _relates(relation: str, first: Sequence[Item | None], second: Sequence[Item | None]) -> bool:
    """Whether each of the first lies so from each of the second, along the longer way."""
    return all(
        a is not None and b is not None and relation == _relation(a, b)
        for a in first
        for b in second
    )


def _relation(a: Item, b: Item) -> str:
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
