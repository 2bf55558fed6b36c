"""Draws a picture of labelled tiles in rows: where everything goes, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

from experiment.lettering import fitting_font, font_of, wrapped
from experiment.video import BadVideo, read_frames

LONGEST_SIDE = 16_000
KEYFRAMES = 5
MOST_PIXELS = 89_000_000  # beyond, Pillow warns of a decompression bomb when the file is opened
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (113, 113, 122)
STRIP, STRIP_OPACITY, LABEL = (12, 12, 14), 0.66, (255, 255, 255)
WINNER = (0, 158, 96)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tile:
    """One labelled image of a picture; of a video, the frame at `moment`, from 0 to 1."""

    path: Path
    label: str
    framed: bool = False
    moment: float = 0.5


@dataclass(frozen=True)
class Picture:
    """A picture to be drawn: labelled images in rows under a caption, or videos that move."""

    name: str
    caption: str
    note: str
    tiles: tuple[Tile, ...]
    columns: int
    labels_below: bool = False  # else on the images
    moving: bool = False


@dataclass(frozen=True)
class Layout:
    """Where everything goes, in pixels."""

    boxes: tuple[Box, ...]  # left, top, right, bottom of each image
    width: int
    height: int
    gap: int
    band: int  # height of the space for a label below each image
    text: int  # size of the caption's letters


def draw(picture: Picture, warn: Callable[[str], None]) -> Image.Image | None:
    """The picture, or None if no image of it can be read; `warn` hears of each that cannot."""
    read = _reader()
    tiles, sizes = [], []
    for tile in picture.tiles:
        try:
            sizes.append(read(tile).size)
            tiles.append(tile)
        except Unreadable as error:
            warn(str(error))
    if not tiles:
        return None

    layout = fitting_layout(sizes, picture, LONGEST_SIDE, MOST_PIXELS)
    canvas, boxes = ground(picture, tiles, layout)
    # One image at a time: a grid of a thousand would not fit into memory at full size.
    for tile, box in zip(tiles, boxes, strict=True):
        draw_image(canvas, box, read(tile))
        if picture.labels_below:
            _draw_label_below(canvas, box, tile, layout)
        else:
            draw_label_inside(canvas, box, tile)
    canvas.thumbnail((LONGEST_SIDE, LONGEST_SIDE))  # a long caption may have led past the limit
    return canvas


def ground(
    picture: Picture, tiles: Sequence[Tile], layout: Layout
) -> tuple[Image.Image, list[Box]]:
    """The canvas with all but the images and their labels, and where on it the images go."""
    head = _head(picture, layout)
    canvas = Image.new("RGB", (layout.width, head.height + layout.height), PAPER)
    canvas.paste(head, (0, 0))
    boxes = [(left, top + head.height, right, bottom + head.height)
             for left, top, right, bottom in layout.boxes]  # fmt: skip
    for tile, box in zip(tiles, boxes, strict=True):
        if tile.framed:
            _draw_frame(canvas, box, layout)
    return canvas, boxes


def draw_image(canvas: Image.Image, box: Box, image: Image.Image) -> None:
    left, top, right, bottom = box
    if image.size != (right - left, bottom - top):
        image = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    canvas.paste(image, box)


# Where everything goes.


def fitting_layout(
    sizes: Sequence[tuple[int, int]], picture: Picture, longest_side: int, most_pixels: int
) -> Layout:
    """The layout at the height of the tallest image, or at the largest that keeps the limits."""
    height = max(height for _, height in sizes)
    layout = _layout(sizes, picture, height)
    while height > 1:
        largest = longest_side * 0.95  # leaves room for the caption
        excess = max(
            layout.width / largest,
            layout.height / largest,
            math.sqrt(layout.width * layout.height / (most_pixels * 0.95)),
        )
        if excess <= 1:
            break
        height = max(1, min(height - 1, int(height / excess)))
        layout = _layout(sizes, picture, height)
    return layout


def _layout(sizes: Sequence[tuple[int, int]], picture: Picture, height: int) -> Layout:
    """Rows of images of one height, with a gap between them and around them."""
    gap = 2 * max(3, round(height / 80))  # twice a frame, so that frames never touch
    band = max(18, round(height / 14)) if picture.labels_below else 0
    boxes, top, widest = [], gap, 0
    for start in range(0, len(sizes), picture.columns):
        left = gap
        for size in sizes[start : start + picture.columns]:
            width = max(1, round(size[0] * height / size[1]))
            boxes.append((left, top, left + width, top + height))
            left += width + gap
        widest = max(widest, left)
        top += height + band + gap
    return Layout(
        boxes=tuple(boxes),
        width=widest,
        height=top,
        gap=gap,
        band=band,
        text=max(14, round(height / 24), round(widest / 90)),
    )


# Images.


class Unreadable(Exception):
    """An image that cannot be drawn, and why."""


def _reader() -> Callable[[Tile], Image.Image]:
    """Reads a tile's image; a video is read once for all of its tiles, if they come together."""
    keyframes = lru_cache(maxsize=8)(_read_keyframes)

    def read(tile: Tile) -> Image.Image:
        if tile.path.suffix != ".mp4":
            return read_image(tile.path)
        frames = keyframes(tile.path)
        return frames[round(tile.moment * (len(frames) - 1))]

    return read


def _read_keyframes(path: Path) -> list[Image.Image]:
    with readable(path):
        return read_frames(path, KEYFRAMES)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a video's file into the sentence that is said of it."""
    try:
        yield
    except FileNotFoundError as error:
        raise Unreadable(f"{path} is left out: there is no such file.") from error
    except BadVideo as error:
        raise Unreadable(f"{path} is left out: {error}.") from error
    except OSError as error:
        raise Unreadable(f"{path} is left out: it cannot be read ({error.strerror}).") from error


def read_image(path: Path) -> Image.Image:
    """An image's pixels in RGB, transparency over white."""
    try:
        with Image.open(path) as image:
            if not image.has_transparency_data:
                return image.convert("RGB")
            paper = Image.new("RGBA", image.size, PAPER)
            return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    except FileNotFoundError as error:
        raise Unreadable(f"{path} is left out: there is no such file.") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"{path} is left out: it is not an image.") from error
    # Damaged files make Pillow's decoders raise more than OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unreadable(f"{path} is left out: it cannot be read ({error}).") from error


def _draw_frame(canvas: Image.Image, box: Box, layout: Layout) -> None:
    """A filled rectangle around an image and its label, which the image is then pasted on."""
    left, top, right, bottom = box
    thickness = layout.gap // 2
    ImageDraw.Draw(canvas).rectangle(
        (
            left - thickness,
            top - thickness,
            right + thickness - 1,
            bottom + (layout.band or thickness) - 1,
        ),
        fill=WINNER,
    )


def _draw_label_below(canvas: Image.Image, box: Box, tile: Tile, layout: Layout) -> None:
    left, _, right, bottom = box
    font = fitting_font(tile.label, round(layout.band * 0.7), right - left)
    _, top, _, base = font.getbbox("0", anchor="ls")
    ImageDraw.Draw(canvas).text(
        ((left + right) / 2, bottom + layout.band / 2 - (top + base) / 2),
        tile.label,
        fill=LABEL if tile.framed else INK,
        font=font,
        anchor="ms",
    )


def draw_label_inside(canvas: Image.Image, box: Box, tile: Tile) -> None:
    """The label in the upper left corner: light text on a dark strip, as wide as it needs."""
    left, top, right, bottom = box
    inset = max(1, round((right - left) / 50))
    room = right - left - 4 * inset
    if room < 1:
        return
    size = min(max(14, round((right - left) / 18)), max(4, round((bottom - top) / 2)))
    font = fitting_font(tile.label, size, room)
    _, above, _, below = font.getbbox("0", anchor="ls")
    width = min(round(font.getlength(tile.label) + font.size * 0.9), room + 2 * inset)
    height = round(below - above + font.size * 0.7)
    colour, opacity = (WINNER, 1.0) if tile.framed else (STRIP, STRIP_OPACITY)
    strip = _rounded(width, height, round(font.size * 0.3), opacity)
    canvas.paste(colour, (left + inset, top + inset), strip)
    ImageDraw.Draw(canvas).text(
        (left + inset + width / 2, top + inset + height / 2 - (above + below) / 2),
        tile.label,
        fill=LABEL,
        font=font,
        anchor="ms",
    )


@cache
def _rounded(width: int, height: int, radius: int, opacity: float) -> Image.Image:
    """A mask in the shape of a rounded rectangle, with smooth edges."""
    fine = 4
    mask = Image.new("L", (width * fine, height * fine))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, width * fine - 1, height * fine - 1), radius * fine, fill=round(255 * opacity)
    )
    return mask.resize((width, height), Image.Resampling.BOX)


# Text.


def _head(picture: Picture, layout: Layout) -> Image.Image:
    """The caption and the note, as wide as the picture; the gap below it is the picture's own."""
    large, small = font_of(layout.text), font_of(max(12, round(layout.text * 0.75)))
    room = layout.width - 2 * layout.gap
    lines = [(line, large, INK) for line in wrapped(picture.caption, large, room)]
    lines += [(line, small, FAINT) for line in wrapped(picture.note, small, room)]
    height = layout.gap // 2 + sum(round(font.size * 1.3) for _, font, _ in lines)
    head = Image.new("RGB", (layout.width, height), PAPER)
    pen, top = ImageDraw.Draw(head), layout.gap // 2
    for line, font, colour in lines:
        top += round(font.size * 1.3)
        pen.text((layout.gap, top - font.size * 0.3), line, fill=colour, font=font, anchor="ls")
    return head
