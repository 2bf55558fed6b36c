"""What a judge elsewhere costs a run while it is faster than denoising: nothing, it should be.

The judge sleeps, as one does that waits for another machine: a little less than a batch takes to
denoise. Its run is told as a multiple of a run with a judge that answers at once; what cannot be
hidden is the last batch's sleep (`unhidden`, at most that share of the run).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import ImageStat

from benchmarks.figures import Figure, figure
from experiment.config import ExperimentConfig, load_config
from experiment.records import read_candidates
from experiment.runner import Experiment, load, plan
from experiment.store import RunStore
from verifiers.base import BaseVerifier, Item, Score

CONFIG = "configs/shapes_flux.json"
BATCH = 4
SHARE = 0.8  # of the time that a batch takes to denoise
BAR = 1.1


@dataclass
class Sleeping(BaseVerifier):
    """Mean brightness, after `seconds`: a call asks for a batch, as graders take one at once."""

    seconds: float = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("brightness",)

    @property
    def remote(self) -> bool:
        return True

    def score(self, items: Sequence[Item]) -> list[Score]:
        time.sleep(self.seconds)
        return [
            Score.of(brightness=ImageStat.Stat(item.media.convert("L")).mean[0]) for item in items
        ]


def figures(repeats: int, quick: bool) -> list[Figure]:
    config = load_config(CONFIG, _changes(2 if quick else 10, 2 if quick else 4))
    batches = 2 * (2 if quick else 4)
    _, batch = _run(config, 0.0)  # a first run, to warm up and to time a batch
    pause = SHARE * batch
    turns = [(_run(config, 0.0), _run(config, pause)) for _ in range(repeats)]
    ratios = [asleep / awake for (awake, _), (asleep, _) in turns]
    unhidden = [pause / awake for (awake, _), _ in turns]
    slept = f"a judge that sleeps {pause:.2f} s, {SHARE:.0%} of a batch"
    return [
        figure(slept, "x", ratios, bar=BAR, note=f"{batches} batches"),
        figure("unhidden: the last batch's sleep", "of the run", unhidden),
    ]


def _changes(steps: int, prompts: int) -> dict[str, object]:
    return {
        "pipeline_call_args.num_inference_steps": steps,
        "num_prompts": prompts,
        "judges": [],
        "batch_size_for_img_gen": BATCH,
        "search_args": {
            "search_method": "benchmarks.loop:Filled", "size": BATCH, "search_rounds": 2,
        },
        "verifier_args": {"name": "benchmarks.judge:Sleeping"},
    }  # fmt: skip


def _run(config: ExperimentConfig, pause: float) -> tuple[float, float]:
    """Seconds of a run, and of each of its batches."""
    args = config.verifier_args.model_copy(update={"seconds": pause})
    config = config.model_copy(update={"verifier_args": args})
    planned = plan(config)
    engine = load(config, planned)
    with tempfile.TemporaryDirectory() as root:
        store = RunStore.create(root, config)
        run = Experiment(config, engine.denoiser, engine.verifier, {}, store, planned, BATCH)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            started = time.perf_counter()
            run.run()
            taken = time.perf_counter() - started
        rows = read_candidates(store.folder)
    return taken, BATCH * taken / len(rows)
