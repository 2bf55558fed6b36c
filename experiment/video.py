"""Videos as MP4 files: frames in, bytes out, and back.

H.264 is lossy: whoever still holds a candidate's frames should use them, not what is read back.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

CRF = 18  # x264's constant rate factor: hard to tell from the original by eye
THREADS = 4  # fixed: x264's bytes depend on their number


class BadVideo(Exception):
    """A file that cannot be read as a video; its message says why."""


@dataclass(frozen=True)
class Video:
    """What a video's file says of it."""

    frames: int
    fps: Fraction
    size: tuple[int, int]  # width, height


def mp4_bytes(frames: Iterable[Image.Image], fps: int | Fraction, *, crf: int = CRF) -> bytes:
    """A video of these frames, of which there is at least one, all as large as the first.

    The same frames give the same bytes on every machine with the same build of x264. H.264 with
    half the color resolution takes even sides only: odd ones repeat their last row or column.
    """
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    rest = iter(frames)
    first = next(rest)
    buffer = io.BytesIO()
    exact = {"fflags": "+bitexact"}  # no version of the muxer in the file
    with av.open(buffer, "w", format="mp4", options=exact) as container:
        # x264's rate control over macroblock trees reads memory that nobody has set when it uses
        # AVX-512: with it the same frames give other bytes each time.
        options = {"crf": str(crf), "preset": "medium", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height = (side + side % 2 for side in first.size)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = THREADS
        # Said in the file, for players guess by the size, and guess differently.
        stream.colorspace = Colorspace.ITU709
        stream.color_range = ColorRange.MPEG
        stream.color_primaries = ColorPrimaries.BT709
        stream.color_trc = ColorTrc.BT709
        for frame in chain([first], rest):
            picture = av.VideoFrame.from_image(_evened(frame.convert("RGB")))
            converted = picture.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(converted))
        container.mux(stream.encode())
    return buffer.getvalue()


def _evened(frame: Image.Image) -> Image.Image:
    """The frame with even sides."""
    from PIL import Image

    width, height = frame.size
    if width % 2 == height % 2 == 0:
        return frame
    even = Image.new("RGB", (width + width % 2, height + height % 2))
    # The corner first, then what lies over it.
    for x, y in ((width % 2, height % 2), (width % 2, 0), (0, height % 2), (0, 0)):
        even.paste(frame, (x, y))
    return even


def probe(path: Path) -> Video:
    """Length, speed and size of a video, from the file's own index."""
    with _opened(path) as (_, stream):
        rate = stream.average_rate or Fraction(1)
        return Video(stream.frames, rate, (stream.width, stream.height))


def iterate_frames(path: Path) -> Iterator[Image.Image]:
    """The frames of a video, one at a time."""
    with _opened(path) as (container, stream):
        seen = False
        for frame in container.decode(stream):
            seen = True
            yield frame.to_image()
        if not seen:
            raise BadVideo("it holds no frame")


def read_frames(path: Path, count: int | None = None) -> list[Image.Image]:
    """All frames of a video, or at most `count`, evenly spread from the first to the last."""
    if count is None:
        return list(iterate_frames(path))
    length = probe(path).frames
    n = min(count, length)
    wanted = {round(k * (length - 1) / max(n - 1, 1)) for k in range(n)}
    return [frame for at, frame in enumerate(iterate_frames(path)) if at in wanted]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The file and its video; only as MP4, for FFmpeg also knows formats that name other files."""
    import av

    with open(path, "rb") as file:
        try:
            with av.open(file, format="mp4") as container:
                if not container.streams.video:
                    raise BadVideo("it holds no video")
                yield container, container.streams.video[0]
        # A torn file's index may also point to where no file can be read.
        except (av.FFmpegError, OSError) as error:
            raise BadVideo(f"it cannot be read as MP4 ({error.strerror})") from error
