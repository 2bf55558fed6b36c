"""Pictures as tensors and back, to the last bit: how those are kept that are not files yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_tensors(media: Sequence[Any], paths: Sequence[str | None] = ()) -> dict[str, Tensor]:
    """Named tensors of a batch's pictures.

    Left out are images at a path, which PNG keeps to the last bit; a video's frames MP4 does not.
    """
    return {
        f"{'video' if isinstance(each, list) else 'image'}.{i}": _pixels(each)
        for i, (each, path) in enumerate(zip(media, paths or [None] * len(media), strict=True))
        if each is not None and (path is None or isinstance(each, list))
    }


def from_tensors(tensors: Mapping[str, Tensor], n: int) -> list[Any]:
    """The pictures among a batch's tensors; None where there is none."""
    return [_media(tensors, i) for i in range(n)]


def _pixels(media: Any) -> Tensor:
    frames = [np.asarray(image) for image in media] if isinstance(media, list) else media
    return torch.from_numpy(np.array(frames, dtype=np.uint8))


def _media(tensors: Mapping[str, Tensor], i: int) -> Any:
    from PIL import Image

    if (image := tensors.get(f"image.{i}")) is not None:
        return Image.fromarray(image.numpy())
    if (video := tensors.get(f"video.{i}")) is not None:
        return [Image.fromarray(frame) for frame in video.numpy()]
    return None
