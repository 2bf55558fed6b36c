"""How many images at once are fastest on this device: a short measurement, remembered in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.denoiser import Denoiser, denoisers
from pipelines.memory_errors import free, out_of_memory
from utils import cache_folder, digest, write_atomically

SIZES = (1, 2, 4, 8, 16, 32)
GAIN = 0.05  # of the time an image takes; less is not worth the memory
KNOWN = "batch_sizes.json"


def fastest(seconds: Mapping[int, float]) -> int:
    """The smallest batch within 5 % of the least time an image.

    seconds: an image, by batch size.
    """
    least = min(seconds.values())
    return min(size for size, each in seconds.items() if each <= least * (1 + GAIN))


def measured(
    denoiser: Denoiser,
    prompt: str,
    sizes: Sequence[int] = SIZES,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Seconds a step of one image takes, by batch size, up to the first that gains nothing or does
    not fit with its decoding."""
    found: dict[int, float] = {}
    for size, seconds in _timed(denoiser, prompt, sizes, clock):
        found[size] = seconds
        if seconds > (1 - GAIN) * min(
            [s for n, s in found.items() if n < size], default=2 * seconds
        ):
            break
    return found


def _timed(
    denoiser: Denoiser, prompt: str, sizes: Sequence[int], clock: Callable[[], float]
) -> Iterator[tuple[int, float]]:
    for size in sizes:
        try:
            seconds = _step(denoiser, prompt, size, clock)
        except RuntimeError as error:
            if not out_of_memory(error) or size == sizes[0]:
                raise
            free()
            return
        yield size, seconds / size


def _step(denoiser: Denoiser, prompt: str, size: int, clock: Callable[[], float]) -> float:
    """Seconds of a batch's first step, after one that is not counted; decoded once, for memory."""
    seeds = tuple(range(size))
    drawn = denoiser.draw(prompt, seeds)
    seconds = 0.0
    for _ in range(2):
        _settled(drawn.latents.device)
        started = clock()
        done = denoiser.denoise(prompt, drawn.latents, seeds, drawn.step, drawn.step + 1)
        _settled(done.latents.device)
        seconds = clock() - started
    denoiser.decode(prompt, done.clean, seeds, denoiser.steps(prompt))
    return seconds


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def remembered_size(denoiser: Denoiser, prompt: str, machine: Mapping[str, Any]) -> int:
    """The fastest batch size, from the file of those measured before if it is there.

    machine: all else that it depends on: device, versions, number format.
    """
    configs = [dict(part.config) for part in denoisers(denoiser.pipe)]  # type: ignore[arg-type]
    sizes = {k: v for k, v in denoiser.call_args.items() if isinstance(v, int | float)}
    key = digest(json.dumps([configs, sizes, machine], sort_keys=True, default=str))
    path = cache_folder() / KNOWN
    known = _read(path)
    if key not in known:
        known[key] = fastest(measured(denoiser, prompt))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=4).encode())
    return known[key]


def _read(path: Path) -> dict[str, int]:
    """What is known; a damaged file is worked out again."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    sizes = content.items() if isinstance(content, dict) else ()
    return {key: size for key, size in sizes if isinstance(size, int) and size > 0}
