"""What the loop itself costs a candidate: a run on a model and a verifier that cost nothing.

The model is `benchmarks.still` (a formula over 8x8 pixels, 4 steps), the verifier adds up pixels.
With `pictures` off PNGs are not written; the journal, rows and records are, fsyncs included.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.figures import Figure, figure
from benchmarks.still import still_checkpoint
from experiment.config import parse_config
from experiment.prompts import Prompt
from experiment.rows import sum_of
from experiment.runner import Experiment, load, plan
from experiment.store import RunStore
from verifiers.base import BaseVerifier, Item, Score

BAR = 2.0  # ms a candidate, without pictures


@dataclass
class Nothing(BaseVerifier):
    """The first pixel of the picture: a verifier that takes no time."""

    metrics: ClassVar[tuple[str, ...]] = ("pixel",)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return [Score.of(pixel=float(item.media.getpixel((0, 0))[0])) for item in items]


class Blank(RunStore):
    """A run's folder without pictures: their names are given, nothing is written."""

    def write_media(self, prompt: Prompt, round: int, seed: int, media: Any) -> str:
        name = self.name(prompt, round, seed, ".png")
        self._sums[name] = sum_of(b"")
        return name


def still_config(folder: Path, rounds: int, **changes: Any) -> dict[str, Any]:
    """Random search over the still model, 2 + 4 + ... + 2**rounds candidates."""
    return {
        **still_checkpoint(folder / "still"),
        "pipeline_call_args": {"num_inference_steps": 4},
        "search_args": {"search_method": "random", "search_rounds": rounds},
        "verifier_args": {"name": "benchmarks.overhead:Nothing"},
        "prompt": "a red circle",
        "engine_args": {"device": "cpu"},
        **changes,
    }


def searched(
    config: dict[str, Any], store: type[RunStore], root: str, prompt: str
) -> tuple[float, float]:
    """Seconds of a run without its loading: by the clock, and of all its threads' work."""
    parsed = parse_config({**config, "prompt": prompt})
    planned = plan(parsed)
    engine = load(parsed, planned)
    folder = store.create(root, parsed)
    run = Experiment(
        parsed, engine.denoiser, engine.verifier, {}, folder, planned, engine.batch_size
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started, worked = time.perf_counter(), time.process_time()
        run.run()
        return time.perf_counter() - started, time.process_time() - worked


def figures(repeats: int, quick: bool) -> list[Figure]:
    """Milliseconds a candidate with pictures and without, in turns; a first turn is not counted."""
    rounds = 3 if quick else 7
    candidates = 2 ** (rounds + 1) - 2
    taken: dict[type[RunStore], list[tuple[float, float]]] = {Blank: [], RunStore: []}
    with tempfile.TemporaryDirectory() as root:
        config = still_config(Path(root), rounds)
        for turn in range(1 + repeats):
            for store, found in taken.items():
                found.append(searched(config, store, root, f"prompt {turn}"))
    each = {
        store: [[seconds / candidates * 1e3 for seconds in both] for both in found[1:]]
        for store, found in taken.items()
    }
    return [
        figure("no pictures", "ms each", [wall for wall, _ in each[Blank]], bar=BAR),
        figure("no pictures, CPU time", "ms each", [cpu for _, cpu in each[Blank]]),
        figure("8x8 PNGs", "ms each", [wall for wall, _ in each[RunStore]]),
        figure("8x8 PNGs, CPU time", "ms each", [cpu for _, cpu in each[RunStore]]),
    ]
