"""Text for pictures in Pillow's own font: sized, wrapped, and spelled in the glyphs it has."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import cache

from PIL import ImageFont

OMITTED = "[…]"
CAPTION_LINES = 4


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def fitting_font(text: str, size: int, width: float) -> ImageFont.FreeTypeFont:
    """The font at this size, or at the largest one at which the text is no wider than `width`."""
    font = font_of(size)
    while font.getlength(text) > width and size > 4:
        size -= 1
        font = font_of(size)
    return font


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The text in a few lines no wider than `width`; an ellipsis stands for what is too much."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < CAPTION_LINES:
        last = len(lines) == CAPTION_LINES - 1
        end = _fitting_length(rest, font, width)
        if end < len(rest) and last:
            end = _fitting_length(rest, font, width - font.getlength("…"))
            lines.append(rest[:end].rstrip() + "…")
            break
        if end < len(rest) and " " in rest[: end + 1]:
            end = rest.rindex(" ", 0, end + 1)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def _fitting_length(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many characters fit into the width; at least one, so that wrapping comes to an end."""
    ends = range(1, len(text) + 1)
    return max(1, bisect_right(ends, width, key=lambda end: font.getlength(text[:end])))


def drawable(text: str) -> str:
    """The text in letters that Pillow's own font has: plain Latin ones.

    Accents are dropped, symbols named (`[rocket]`), and stretches in other scripts left out.
    """
    plain = "".join(map(_plain, " ".join(text.split())))
    gaps = re.escape(OMITTED)
    return re.sub(rf"{gaps}(?:[\W_]*{gaps})*", OMITTED, plain)


@cache
def _plain(character: str) -> str:
    if _has_glyph(character):
        return character
    category = unicodedata.category(character)
    if category in {"Mn", "Me", "Cf", "Cc", "Sk"}:  # accents, joiners, controls, skin tones
        return ""
    if category == "Pd":
        return "-"
    for spelling in (unicodedata.normalize("NFKD", character), character.casefold()):
        if drawn := "".join(filter(_has_glyph, spelling)):
            return drawn
    name = unicodedata.name(character, "").lower()
    letter = re.match(r"latin (small|capital) (?:letter|ligature) ([a-z]{1,2})\b", name)
    if letter:
        return letter[2].upper() if letter[1] == "capital" else letter[2]
    return f"[{name}]" if category == "So" and name else OMITTED


@cache
def _has_glyph(character: str) -> bool:
    """Whether the font has the character: those it lacks all look like the noncharacter U+FFFF."""
    font = font_of(32)
    return character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
