"""Small pictures of winners, as text that a page holds within itself."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from experiment.drawing import Unreadable, read_image, readable
from experiment.video import read_frames

SIDE = 192
QUALITY = 72  # of WebP


def thumbnails(paths: Iterable[Path]) -> Iterator[tuple[Path, str | Unreadable]]:
    """A data URI for each image or video, in order, or why there is none."""
    # Pillow decodes and scales outside of Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(_thumbnail, paths)


def _thumbnail(path: Path) -> tuple[Path, str | Unreadable]:
    try:
        image = _middle_frame(path) if path.suffix == ".mp4" else read_image(path)
    except Unreadable as error:
        return path, error
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY, method=2)
    return path, "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _middle_frame(path: Path) -> Image.Image:
    with readable(path):
        frames = read_frames(path, 3)
        middle: Image.Image = frames[len(frames) // 2].convert("RGB")
        return middle
