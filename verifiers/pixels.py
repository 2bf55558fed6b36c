"""Pictures on their way into a model: resized, cut or padded to its square, normalised.

Two paths give the same square. `Framing.image` resizes in PIL on 8 bits, as the published scorers
do. `Framing.pixels` resizes in torch, so that a score can be differentiated: a float within 1.1/255
of PIL's bytes, since it neither rounds its two passes nor its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn.functional import interpolate, pad

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TOLERANCE = 1.1 / 255 / min(CLIP_STD)  # between the two paths, in normalised units: 0.0165

Size: TypeAlias = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Framing:
    """How a model wants its pictures.

    resized: the size to resize to, of the size that is. cut: makes a square of what was resized.
    """

    resized: Callable[[Size], Size]
    cut: Callable[[Tensor], Tensor]
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD

    def image(self, image: Image) -> Tensor:  # [3, side, side]
        """A PIL image through PIL's own bicubic filter."""
        height, width = self.resized((image.height, image.width))
        resized = image.convert("RGB").resize((width, height), Resampling.BICUBIC)
        return self._framed(of_image(resized)[None])[0]

    def pixels(self, pixels: Tensor) -> Tensor:  # [n, 3, H, W] in [0, 1] -> [n, 3, side, side]
        """The same, differentiable in the pixels."""
        size = self.resized((pixels.shape[-2], pixels.shape[-1]))
        return self._framed(resize(pixels.float(), size))

    def _framed(self, pixels: Tensor) -> Tensor:
        return normalize(self.cut(pixels), self.mean, self.std)


def cropped(side: int) -> Framing:
    """The shorter side to `side`, the middle square kept: torchvision's Resize and CenterCrop."""
    return Framing(partial(shorter_to, side), partial(center_crop, side, half=_nearest_half))


def padded(side: int) -> Framing:
    """The longer side to `side`, black beside it: open_clip's ResizeMaxSize."""
    return Framing(partial(longer_to, side), partial(pad_to_square, side))


def as_processor(processor: Any) -> Framing:
    """What a CLIP image processor of transformers does."""
    side = processor.crop_size["height"]
    resized = partial(shorter_to, processor.size["shortest_edge"] or side)
    cut = partial(center_crop, side, half=_lower_half)
    return Framing(resized, cut, processor.image_mean, processor.image_std)


def of_image(image: Image) -> Tensor:  # [3, H, W] in [0, 1]
    """A PIL image as pixels."""
    rgb = image.convert("RGB")
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1).float() / 255


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Antialiased bicubic, as PIL: first along rows, then along columns, each cut to [0, 1]."""
    height, width = size
    bicubic = partial(interpolate, mode="bicubic", antialias=True, align_corners=False)
    if width != pixels.shape[-1]:
        pixels = bicubic(pixels, size=(pixels.shape[-2], width)).clamp(0, 1)
    if height != pixels.shape[-2]:
        pixels = bicubic(pixels, size=(height, width)).clamp(0, 1)
    return pixels


def shorter_to(side: int, size: Size) -> Size:
    """The size with its shorter side at `side`; the longer one is rounded down."""
    height, width = size
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def longer_to(side: int, size: Size) -> Size:
    """The size with its longer side at `side`; the shorter one is rounded to the nearest."""
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return height, width


def center_crop(side: int, pixels: Tensor, *, half: Callable[[int], int]) -> Tensor:
    """The middle square; `half` places it where a pixel more is left on one side."""
    top, left = half(pixels.shape[-2] - side), half(pixels.shape[-1] - side)
    return pixels[..., top : top + side, left : left + side]


def pad_to_square(side: int, pixels: Tensor) -> Tensor:
    """Zeros (black, as this comes before normalisation) around, the odd one right and below."""
    above, before = (side - pixels.shape[-2]) // 2, (side - pixels.shape[-1]) // 2
    below, after = side - pixels.shape[-2] - above, side - pixels.shape[-1] - before
    return pad(pixels, (before, after, above, below))


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std, by channel."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def _lower_half(gap: int) -> int:
    return gap // 2  # transformers


def _nearest_half(gap: int) -> int:
    return round(gap / 2)  # torchvision
