"""tt-scale-flux's loop, written anew from its description: the plain way to search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image


def one_at_a_time(
    call: Callable[[int], Image.Image],
    judge: Callable[[Sequence[Image.Image]], object],
    rounds: Sequence[Sequence[int]],
    folder: Path,
) -> float:
    """Seconds of rounds of seeds: a call an image, judged once a round is made, PIL's own PNGs.

    call: makes the image of a seed, and encodes its prompt for it.
    """
    started = time.perf_counter()
    for seeds in rounds:
        images = [call(seed) for seed in seeds]
        judge(images)
        for seed, image in zip(seeds, images, strict=True):
            image.save(folder / f"{seed}.png")
    return time.perf_counter() - started
