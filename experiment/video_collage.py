"""The best videos of a prompt's rounds: playing side by side, and by their keyframes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from PIL import Image

from experiment.drawing import (
    KEYFRAMES,
    Picture,
    Tile,
    Unreadable,
    draw,
    draw_image,
    draw_label_inside,
    fitting_layout,
    ground,
    read_image,
    readable,
)
from experiment.video import CRF, Video, iterate_frames, mp4_bytes, probe
from utils import png_bytes

LONGEST_SIDE, MOST_PIXELS = 3840, 3840 * 2160  # beyond, many players give up

Warn = Callable[[str], None]


def film(collage: Picture) -> Picture:
    """The collage as a video in which all of its videos play."""
    return replace(collage, name=str(Path(collage.name).with_suffix(".mp4")), moving=True)


def contact_sheet(collage: Picture) -> Picture:
    """A row of keyframes for each of the collage's videos."""
    columns = min(KEYFRAMES, max(_video(tile.path).frames for tile in collage.tiles))
    return replace(
        collage,
        tiles=tuple(shown for tile in collage.tiles for shown in _row(tile, columns)),
        columns=columns,
    )


def _row(tile: Tile, columns: int) -> Iterator[Tile]:
    """Moments of a video evenly spread from its first frame to its last, labelled in seconds."""
    video = _video(tile.path)
    for column in range(columns):
        moment = column / max(columns - 1, 1)
        seconds = moment * (video.frames - 1) / float(video.fps)
        yield replace(tile, label=f"{seconds:.2f} s" if column else tile.label, moment=moment)


def _video(path: Path) -> Video:
    """What a file says of itself; what is no readable video counts as one frame."""
    try:
        with readable(path):
            if path.suffix == ".mp4":
                return probe(path)
    except Unreadable:
        pass  # whoever draws it will say so
    return Video(1, Fraction(1), (1, 1))


def rendered(picture: Picture, warn: Warn) -> bytes | None:
    """The picture's file, or None if nothing of it can be read; `warn` hears of what cannot."""
    if picture.moving:
        return _film_bytes(picture, warn)
    image = draw(picture, warn)
    return None if image is None else png_bytes(image)


def _film_bytes(picture: Picture, warn: Warn) -> bytes | None:
    """All videos of a picture playing together, at the speed of the first."""
    tiles, reels, sizes = [], [], []
    for tile in picture.tiles:
        reel = _Reel(tile.path, warn)
        if reel.shown is not None:
            tiles.append(tile)
            reels.append(reel)
            sizes.append(reel.shown.size)
    if not tiles:
        return None
    layout = fitting_layout(sizes, picture, LONGEST_SIDE, MOST_PIXELS)
    canvas, boxes = ground(picture, tiles, layout)

    def frames() -> Iterator[Image.Image]:
        while True:
            for reel, tile, box in zip(reels, tiles, boxes, strict=True):
                assert reel.shown is not None
                draw_image(canvas, box, reel.shown)
                draw_label_inside(canvas, box, tile)
            yield canvas
            if not any([reel.wind() for reel in reels]):
                return

    return mp4_bytes(frames(), _video(tiles[0].path).fps, crf=CRF)


class _Reel:
    """A video as it plays, one frame in memory; at its end the last frame stays."""

    def __init__(self, path: Path, warn: Warn) -> None:
        self._path = path
        self._warn = warn
        self._frames = _frames(path)
        self.shown: Image.Image | None = None
        self.wind()

    def wind(self) -> bool:
        """Show the next frame; False if there is none."""
        try:
            self.shown = next(self._frames)
        except StopIteration:
            return False
        except Unreadable as error:
            self._warn(str(error))
            return False
        return True


def _frames(path: Path) -> Iterator[Image.Image]:
    if path.suffix != ".mp4":
        yield read_image(path)
        return
    with readable(path):
        yield from iterate_frames(path)
