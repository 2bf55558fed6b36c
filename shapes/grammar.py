"""Captions of the shapes world: what one claims, how it is written, and how it is read.

caption  = claim [" on a " BACKGROUND " background"]
claim    = thing | thing {", " thing} " and " thing | thing RELATION thing
thing    = ("a" | "an" | "two" | "three" | "four") [SIZE] COLOR SHAPE
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
COLORS = {  # 8-bit RGB
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 210, 40),
    "green": (45, 160, 70),
    "cyan": (70, 200, 215),
    "blue": (45, 80, 215),
    "purple": (125, 50, 180),
    "pink": (245, 130, 185),
}
BACKGROUNDS = {"white": (245, 245, 240), "gray": (140, 140, 145), "black": (22, 22, 26)}
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
_NOUNS = {**{s: (s, False) for s in SHAPES}, **{p: (s, True) for s, p in _PLURALS.items()}}
_THING = re.compile(rf"({'|'.join(_COUNTS)}) (?:({'|'.join(SIZES)}) )?(\w+) (\w+)")
_RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")
_BACKGROUND = re.compile(rf" on a ({'|'.join(BACKGROUNDS)}) background$")


@dataclass(frozen=True)
class Thing:
    """One phrase of a caption: so many equal objects; `size` None leaves the size open."""

    color: str
    shape: str
    count: int = 1
    size: str | None = None

    def __str__(self) -> str:
        words = f"{self.size} {self.color}" if self.size else self.color
        if self.count > 1:
            return f"{NUMBERS[self.count]} {words} {_PLURALS[self.shape]}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words} {self.shape}"


@dataclass(frozen=True)
class Claim:
    """What a caption says: these objects and no others; None leaves relation or background open.

    A relation is that of the first thing to the second, and then there are exactly two things.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        names = [str(thing) for thing in self.things]
        if self.relation:
            text = f" {self.relation} ".join(names)
        elif len(names) == 1:
            text = names[0]
        else:
            text = ", ".join(names[:-1]) + " and " + names[-1]
        return text + (f" on a {self.background} background" if self.background else "")


def parse(caption: str) -> Claim | None:
    """The claim of a caption, None outside the grammar; case, spaces and a full stop are free."""
    text = re.sub(r"\s*,\s*", ", ", " ".join(caption.lower().split()))
    text = text.removesuffix(".").rstrip()
    background = None
    if found := _BACKGROUND.search(text):
        text, background = text[: found.start()], found[1]
    phrases, relation = _phrases(text)
    things = [_thing(phrase) for phrase in phrases]
    known = tuple(thing for thing in things if thing is not None)
    if len(known) < len(things) or (relation and len(things) != 2):
        return None
    return Claim(known, relation, background)


def _phrases(text: str) -> tuple[list[str], str | None]:
    """The things of a caption without its background, and the relation between them."""
    parts = _RELATION.split(text)
    if len(parts) > 1:
        return parts[::2], parts[1]
    head, _, last = text.rpartition(" and ")
    return ([*head.split(", "), last] if head else [last]), None


def _thing(phrase: str) -> Thing | None:
    """One phrase such as "two small red circles"; None unless number and noun agree."""
    found = _THING.fullmatch(phrase)
    if found is None or found[3] not in COLORS or found[4] not in _NOUNS:
        return None
    count, (shape, plural) = _COUNTS[found[1]], _NOUNS[found[4]]
    return Thing(found[3], shape, count, found[2]) if plural == (count > 1) else None
