"""Decoded pixels whose pictures are made later: that is a CPU's work, and the device is free.

Most pipelines end with their image or video processor's own post-processing, and hand on what it
returns. That is seen, never assumed: the first decoding is left alone and looked at. From then on
what the processor does on the device is done at once, its conversion to PIL when the picture is
asked for, by its own functions in their order. Where anything is otherwise, nothing is put off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from pipelines.precise import replaced

# Attributes of pipelines, and what of diffusers' own code is known to do what is done here.
PROCESSORS = {
    "image_processor": (VaeImageProcessor, "postprocess"),
    "video_processor": (VideoProcessor, "postprocess_video"),
}
STEPS = ("postprocess", "pt_to_numpy", "numpy_to_pil")


@dataclass(frozen=True)
class Undeveloped:
    """One candidate's pixels, [frames, 3, H, W] in [0, 1] on the CPU; one frame for a picture."""

    processor: Any
    pixels: Tensor
    video: bool

    def developed(self) -> Any:
        """A PIL image, or a video's list of them."""
        frames = self.processor.numpy_to_pil(self.processor.pt_to_numpy(self.pixels))
        return frames if self.video else frames[0]


class Developer:
    """Puts off a pipeline's conversion to PIL, where it can be."""

    def __init__(self, pipe: Any) -> None:
        self._processor, self._method = _processor(pipe)
        self._last: int | None = None  # which of its calls the pipeline returns; None: not seen yet

    @contextmanager
    def watching(self, output: dict[str, Any]) -> Iterator[None]:
        """Around a call of the pipeline that fills `output`: what it returns may be undeveloped."""
        if self._processor is None:
            yield
            return
        asked: list[Any] = []  # what each of the calls returned
        process = getattr(self._processor, self._method)

        def wrapped(pixels: Any, *args: Any, **kwargs: Any) -> Any:
            later = len(asked) == self._last and isinstance(pixels, Tensor)
            put_off = self._put_off(process, pixels, args, kwargs) if later else None
            asked.append(process(pixels, *args, **kwargs) if put_off is None else put_off)
            return asked[-1]

        with replaced(self._processor, {self._method: wrapped}):
            yield
        self._look(next(iter(output.values()), None), asked)

    def _put_off(
        self, process: Callable[..., Any], pixels: Tensor, args: Sequence[Any], kwargs: Any
    ) -> Sequence[Undeveloped] | None:
        """Of a call for PIL, what is done on the device; None for another."""
        if args or kwargs.get("output_type") != "pil":
            return None
        video = self._method != "postprocess"
        done = process(pixels, **{**kwargs, "output_type": "pt"}).cpu()
        each = done if video else done[:, None]
        return [Undeveloped(self._processor, one, video) for one in each]

    def _look(self, returned: Any, asked: Sequence[Any]) -> None:
        """What was returned is the last that the processor made, or nothing is put off again."""
        if self._last is None and asked and returned is asked[-1]:
            self._last = len(asked) - 1
        elif self._last is None or not asked or returned is not asked[self._last]:
            self._processor = None


def _processor(pipe: Any) -> tuple[Any, str]:
    """The pipeline's one processor and its method, if they are diffusers' own, unchanged."""
    found = [name for name in PROCESSORS if hasattr(pipe, name)]
    if len(found) != 1:
        return None, ""
    processor, (build, method) = getattr(pipe, found[0]), PROCESSORS[found[0]]
    same = all(
        getattr(type(processor), name, None) is getattr(build, name) for name in (*STEPS, method)
    )
    return (
        (processor, method)
        if same and not vars(processor).keys() & {*STEPS, method}
        else (None, "")
    )
