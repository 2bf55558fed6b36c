"""Pictures written a second, as a run writes them: batches of PNGs into a journal, fsyncs included.

The picture is made up to compress as a FLUX image of 1024x1024 does: 1.5 MB at level 1.
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.figures import Figure, figure
from benchmarks.overhead import still_config
from experiment.batches import Answered
from experiment.config import parse_config
from experiment.journal import Journal
from experiment.prompts import load_prompts
from experiment.store import RunStore
from search.core import Candidates, Rollout
from search.ledger import Cost
from utils import png_bytes
from verifiers.base import Score

BATCH = 8
BAR = 20.0  # images a second on two cores
LATENTS = (4096, 64)  # of a FLUX image of that size


def picture(side: int = 1024) -> Image.Image:
    """Smooth fields with patches of grain, [side, side, 3]."""
    rng = np.random.default_rng(0)
    whole = np.zeros((side, side, 3))
    for cells in (4, 16, 64):  # ever finer, ever fainter
        whole += _stretched(rng.uniform(0, 255, (cells, cells, 3)), side) / cells**0.5
    where = _stretched(rng.uniform(0, 255, (8, 8)), side).clip(0, 255)[..., None] / 255
    grain = rng.normal(0, 1, (side, side, 1)) + rng.normal(0, 0.2, (side, side, 3))
    whole += 7 * where**3 * grain  # as large, and as slow to compress, as the real ones
    return Image.fromarray(whole.clip(0, 255).astype(np.uint8))


def _stretched(coarse: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(coarse.astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)


def figures(repeats: int, quick: bool) -> list[Figure]:
    image = picture(128 if quick else 1024)
    batches = 1 if quick else 4
    speeds, used = [], []
    for _ in range(1 + repeats):
        wall, cpu = _written(image, batches)
        speeds.append(batches * BATCH / wall)
        used.append(cpu / (batches * BATCH) * 1e3)
    size = len(png_bytes(image)) / 1e6
    name = f"{image.width}x{image.height} of {size:.2f} MB"
    return [
        figure(f"PNG and journal, {name}", "images/s", speeds[1:], bar=BAR, side="least"),
        figure(f"PNG and journal, {name}", "CPU ms each", used[1:]),
        figure("PNG alone, level 1", "ms each", [_encoded(image, 1) for _ in range(repeats)]),
        figure("PNG alone, PIL's level 6", "ms each", [_encoded(image, 6) for _ in range(repeats)]),
    ]


def _encoded(image: Image.Image, level: int) -> float:
    started = time.perf_counter()
    image.save(io.BytesIO(), format="PNG", compress_level=level)
    return (time.perf_counter() - started) * 1e3


def _written(image: Image.Image, batches: int) -> tuple[float, float]:
    """Seconds, and seconds of CPU, of journaling so many batches."""
    with tempfile.TemporaryDirectory() as root:
        config = parse_config(still_config(Path(root), 1))
        (prompt,) = load_prompts(config)
        journal = Journal(RunStore.create(root, config), prompt, BATCH)
        asked = [_batch(image, first) for first in range(0, batches * BATCH, BATCH)]
        before, started = _cpu(), time.perf_counter()
        for rollout, answered in asked:
            journal.append(rollout, rollout.candidates, answered, [1] * BATCH)
        return time.perf_counter() - started, _cpu() - before


def _batch(image: Image.Image, first: int) -> tuple[Rollout, Answered]:
    latents = torch.zeros(BATCH, *LATENTS, dtype=torch.bfloat16)
    start = Candidates(latents, 0, tuple(range(first, first + BATCH)))
    media: list[Any] = [image] * BATCH
    scores = [Score.of(pixel=0.0)] * BATCH
    return Rollout(start, until=4, round=1), Answered(
        start, None, scores, media, Cost(), batch_size=BATCH
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
