"""What is fastest on this device, batch size and attention: measured once, remembered in files."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipelines.denoiser import Denoiser
from pipelines.memory_errors import free, out_of_memory
from pipelines.parts import denoisers
from utils import cache_folder, digest, one_at_a_time, write_atomically

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32)
GAIN = 0.05  # of the time an image takes; less is not worth the memory
KNOWN = "batch_sizes.json"
ATTENTION_GAIN = 0.02  # of a step; less is within what one measurement is worth
ATTENTION_KNOWN = "attention.json"
BACKENDS = ("default", "cudnn")
STEPS = 5  # timed for an attention; the least counts

Known = TypeVar("Known", int, str)


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
    """Seconds a step of one image takes, by batch size, up to the first that gains nothing, does
    not fit with its decoding, or would have the weights elsewhere."""
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
        if not _holds(denoiser, size):
            return
        try:
            seconds = _step(denoiser, prompt, size, clock)
        except RuntimeError as error:
            if not out_of_memory(error) or size == sizes[0]:
                raise
            free()
            return
        yield size, seconds / size


def _step(
    denoiser: Denoiser,
    prompt: str,
    size: int,
    clock: Callable[[], float],
    times: int = 1,
    *,
    decode: bool = True,
) -> float:
    """The least seconds of a batch's first step, after one that is not counted; decoded once, for
    memory."""
    seeds = tuple(range(size))
    drawn = denoiser.draw(prompt, seeds)
    seconds = []
    for _ in range(1 + times):
        _settled(drawn.latents.device)
        started = clock()
        done = denoiser.denoise(prompt, drawn.latents, seeds, drawn.step, drawn.step + 1)
        _settled(done.latents.device)
        seconds.append(clock() - started)
    if decode:
        denoiser.decode(prompt, done.clean, seeds, denoiser.steps(prompt), whole=True)
    return min(seconds[1:])


def _holds(denoiser: Denoiser, size: int) -> bool:
    return denoiser.residence is None or denoiser.residence.holds(size)


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def remembered_size(denoiser: Denoiser, prompt: str, machine: Mapping[str, Any]) -> int:
    """The fastest batch size, from the file of those measured before if it is there; a smaller one
    where others have filled the device since.

    machine: all else that it depends on: device, versions, number format.
    """
    path, key = cache_folder() / KNOWN, _key(denoiser, machine)
    known = _read(path, int).get(key, 0)
    if known < 1:
        with one_at_a_time(path):
            known = _read(path, int).get(key, 0)  # by who had the turn before
            if known < 1:
                known = fastest(measured(denoiser, prompt))
                _write(path, {**_read(path, int), key: known})
    while not _holds(denoiser, known):
        known //= 2
    return known


def faster_attention(
    denoiser: Denoiser,
    prompt: str,
    n: int,
    anew: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The denoiser goes on with cuDNN's attention if that is faster by 2 %, else with torch's own.

    n: the batch size. anew: called after each change, to compile what is compiled: a graph keeps
    the attention that it was traced with. What fails in any way is not faster.
    """
    try:
        own = _step(denoiser, prompt, n, clock, STEPS, decode=False)
        denoiser.use_attention("cudnn")
        anew()
        if _step(denoiser, prompt, n, clock, STEPS, decode=False) <= (1 - ATTENTION_GAIN) * own:
            return "cudnn"
    except Exception as error:  # whatever cuDNN or a compiler may raise
        logger.warning("Going on with torch's own attention: measuring cuDNN's failed: %s", error)
    free()
    denoiser.use_attention("default")
    anew()
    return "default"


def remembered_attention(
    denoiser: Denoiser,
    prompt: str,
    n: int,
    machine: Mapping[str, Any],
    start: Callable[[], object],
    anew: Callable[[], object],
) -> None:
    """Have the denoiser take the attention that was the faster one when it was measured.

    start: compiles what is to be compiled, before anything else runs.
    """
    path = cache_folder() / ATTENTION_KNOWN
    key = _key(denoiser, {**machine, "batch_size": n})
    known = _read(path, str).get(key)
    if known not in BACKENDS:
        with one_at_a_time(path):
            known = _read(path, str).get(key)  # by who had the turn before
            if known not in BACKENDS:
                start()
                known = faster_attention(denoiser, prompt, n, anew)
                _write(path, {**_read(path, str), key: known})
                return
    denoiser.use_attention(known)
    start()


def _key(denoiser: Denoiser, machine: Mapping[str, Any]) -> str:
    configs = [dict(part.config) for part in denoisers(denoiser.pipe)]  # type: ignore[arg-type]
    sizes = {k: v for k, v in denoiser.call_args.items() if isinstance(v, int | float)}
    return digest(json.dumps([configs, sizes, machine], sort_keys=True, default=str))


def _write(path: Path, known: Mapping[str, int | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(known, indent=4).encode())


def _read(path: Path, kind: type[Known]) -> dict[str, Known]:
    """What is known; a damaged file is worked out again."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    found = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in found if isinstance(value, kind)}
