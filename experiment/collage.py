"""Pictures of a run: the best image of each round side by side, and all candidates of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

from experiment.lettering import OMITTED, drawable, fitting_font, font_of, wrapped
from experiment.records import (
    CandidateRecord,
    PromptKey,
    ResultFile,
    RoundRecord,
    by_prompt,
    parse_name,
    read_best,
    read_candidates,
    read_rounds,
    result_files,
)
from utils import significant

LONGEST_ROW = 8
LONGEST_SIDE = 16_000
MOST_PIXELS = 89_000_000  # beyond, Pillow warns of a decompression bomb when the file is opened
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (113, 113, 122)
STRIP, STRIP_OPACITY, LABEL = (12, 12, 14), 0.66, (255, 255, 255)
WINNER = (0, 158, 96)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tile:
    """One labelled image of a picture."""

    path: Path
    label: str
    framed: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture to be drawn: labelled images in rows under a caption."""

    name: str
    caption: str
    note: str
    tiles: tuple[Tile, ...]
    columns: int
    labels_below: bool = False  # else on the images


@dataclass(frozen=True)
class Layout:
    """Where everything goes, in pixels."""

    boxes: tuple[Box, ...]  # left, top, right, bottom of each image
    width: int
    height: int
    gap: int
    band: int  # height of the space for a label below each image
    text: int  # size of the caption's letters


def pictures(folder: Path, *, per_round: bool = False) -> Iterator[Picture]:
    """One collage a prompt of a run folder; with `per_round` also a grid for each round."""
    rounds, images = read_rounds(folder), result_files(folder, ".png")
    keys = {record.key for record in rounds} | {image.key for image in images}
    names = _distinct_names(sorted(keys))
    best = read_best(folder)
    for key, records in by_prompt(rounds).items():
        yield _collage(names[key], records, best)
    if per_round:
        yield from _round_grids(folder, names, rounds, images)


def draw(picture: Picture, warn: Callable[[str], None]) -> Image.Image | None:
    """The picture, or None if no image of it can be read; `warn` hears of each that cannot."""
    tiles, sizes = [], []
    for tile in picture.tiles:
        try:
            sizes.append(_read_image(tile.path).size)
            tiles.append(tile)
        except _Unreadable as error:
            warn(str(error))
    if not tiles:
        return None

    layout = _fitting_layout(sizes, picture)
    head = _head(picture, layout)
    canvas = Image.new("RGB", (layout.width, head.height + layout.height), PAPER)
    canvas.paste(head, (0, 0))
    # One image at a time: a grid of a thousand would not fit into memory at full size.
    for tile, (left, top, right, bottom) in zip(tiles, layout.boxes, strict=True):
        box = (left, top + head.height, right, bottom + head.height)
        if tile.framed:
            _draw_frame(canvas, box, layout)
        image = _read_image(tile.path)
        if image.size != (right - left, bottom - top):
            image = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        canvas.paste(image, box)
        if picture.labels_below:
            _draw_label_below(canvas, box, tile, layout)
        else:
            _draw_label_inside(canvas, box, tile)
    canvas.thumbnail((LONGEST_SIDE, LONGEST_SIDE))  # a long caption may have led past the limit
    return canvas


# What is in a picture.


def _collage(name: str, records: Sequence[RoundRecord], best: Collection[str]) -> Picture:
    winner = _best_of(records, best)
    rows = math.ceil(len(records) / LONGEST_ROW)
    return Picture(
        name=f"collage_{name}_i@{records[0].search_round}-{records[-1].search_round}.png",
        caption=_caption(records[0].prompt, records[0].key),
        note=drawable(f"{_metric(records[0])} of the best of each round"),
        tiles=tuple(
            Tile(
                path=record.image_path,
                label=f"i={record.search_round}  {significant(record.score)}",
                framed=record is winner,
            )
            for record in records
        ),
        columns=math.ceil(len(records) / rows),
    )


def _round_grids(
    folder: Path,
    names: dict[PromptKey, str],
    rounds: Sequence[RoundRecord],
    images: Sequence[ResultFile],
) -> Iterator[Picture]:
    """All candidates of a round that have an image, in the order in which they were drawn.

    tt-scale-flux writes no rows of candidates: there only the winner's score is known.
    """
    # A candidate that was scored again has several rows; the last one stands.
    rows = {row.path: row for row in read_candidates(folder) if row.path is not None}
    recorded = [parse_name(folder / path) for path in rows]
    winners = {record.image_path.name: record for record in rounds}
    known = {record.key: record for record in rounds}
    files = {file.path.name: file for file in [*recorded, *images] if file is not None}

    for key, of_prompt in by_prompt(files.values()).items():
        by_round: dict[int, list[ResultFile]] = {}
        for file in of_prompt:
            by_round.setdefault(file.search_round, []).append(file)
        for number, candidates in sorted(by_round.items()):
            yield Picture(
                name=f"round_{names[key]}_i@{number}.png",
                caption=_caption(_prompt_of(key, known), key),
                note=drawable(
                    f"round {number}: seed and {_metric(known.get(key))}, n={len(candidates)}"
                ),
                tiles=tuple(
                    Tile(
                        path=file.path,
                        label=f"{file.seed}  {_verdict(file.path.name, rows, winners)}".rstrip(),
                        framed=file.path.name in winners,
                    )
                    for file in candidates
                ),
                columns=math.ceil(math.sqrt(len(candidates))),
                labels_below=True,
            )


def _distinct_names(keys: Sequence[PromptKey]) -> dict[PromptKey, str]:
    """The slugs, and the hash too where an earlier prompt of the folder has the same slug."""
    names: dict[PromptKey, str] = {}
    taken = set()
    for key in keys:
        slug = key.slug.casefold()  # file systems that ignore case would overwrite one with another
        names[key] = f"{key.slug}_hash@{key.hash}" if slug in taken else key.slug
        taken.add(slug)
    return names


def _best_of(records: Sequence[RoundRecord], best: Collection[str]) -> RoundRecord | None:
    """The round that the run chose in the end, else the first with the highest score."""
    for record in records:
        if record.image_path.name in best:
            return record
    scored = [record for record in records if not math.isnan(record.score)]
    return max(scored, key=lambda record: record.score, default=None)


def _prompt_of(key: PromptKey, known: dict[PromptKey, RoundRecord]) -> str:
    return known[key].prompt if key in known else key.slug.replace("_", " ")


def _verdict(name: str, rows: dict[str, CandidateRecord], winners: dict[str, RoundRecord]) -> str:
    """A candidate's score, or what became of it; nothing where nothing is known."""
    if name in rows:
        row = rows[name]
        return significant(row.score) if row.status == "ok" else row.status
    return significant(winners[name].score) if name in winners else ""


def _metric(record: RoundRecord | None) -> str:
    return (record.choice_of_metric if record is not None else "") or "score"


# Where everything goes.


def _fitting_layout(sizes: Sequence[tuple[int, int]], picture: Picture) -> Layout:
    """The layout at the height of the tallest image, or at the largest that keeps the limits."""
    height = max(height for _, height in sizes)
    layout = _layout(sizes, picture, height)
    while height > 1:
        largest = LONGEST_SIDE * 0.95  # leaves room for the caption
        excess = max(
            layout.width / largest,
            layout.height / largest,
            math.sqrt(layout.width * layout.height / (MOST_PIXELS * 0.95)),
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


class _Unreadable(Exception):
    """An image that cannot be drawn, and why."""


def _read_image(path: Path) -> Image.Image:
    """An image's pixels in RGB, transparency over white."""
    if path.suffix == ".mp4":
        raise _Unreadable(f"{path} is left out: it is a video, and only images are drawn.")
    try:
        with Image.open(path) as image:
            if not image.has_transparency_data:
                return image.convert("RGB")
            paper = Image.new("RGBA", image.size, PAPER)
            return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    except FileNotFoundError as error:
        raise _Unreadable(f"{path} is left out: there is no such file.") from error
    except Image.UnidentifiedImageError as error:
        raise _Unreadable(f"{path} is left out: it is not an image.") from error
    # Damaged files make Pillow's decoders raise more than OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _Unreadable(f"{path} is left out: it cannot be read ({error}).") from error


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


def _draw_label_inside(canvas: Image.Image, box: Box, tile: Tile) -> None:
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


def _caption(prompt: str, key: PromptKey) -> str:
    """What the font can show of a prompt; with its hash where that is not all."""
    shown = drawable(prompt)
    return f"{shown} (hash {key.hash})" if OMITTED in shown else shown
