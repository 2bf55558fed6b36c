"""A whole search beside the same images in plain loops, on the bundled FLUX.

Random search, 2 + 4 + 8 + 16 images, judged by the bundled CLIP and written as PNG, beside

one at a time: tt-scale-flux's loop, written anew: round by round, one image a call, so that each
    call encodes the prompt; the round is judged when all of it is made, then saved as PIL does.
bare calls: `pipe(batch)` for each batch that the search made, and nothing else.

They share one process and one set of weights and take turns, each turn with a prompt of its own;
a first turn is not counted. Seconds depend on the machine, so ratios of a turn are what is told.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.figures import Figure, figure
from benchmarks.loop import OVERRIDES, QUICK, RANDOM, Bench
from benchmarks.plain import one_at_a_time
from experiment.config import SearchArgs, load_config
from experiment.prompts import Prompt
from experiment.records import CandidateRecord, read_candidates
from verifiers.base import Item

CONFIG = "configs/shapes_flux.json"
PLAIN, BARE = 1.7, 0.95  # at least so many times the speed


def figures(repeats: int, quick: bool) -> list[Figure]:
    """Ratios of seconds, theirs to ours, over whole searches."""
    config = load_config(CONFIG, {**OVERRIDES, **(QUICK if quick else {})})
    bench = Bench.load(config)
    prompts = itertools.cycle(bench.planned.prompts)
    search = SearchArgs.model_validate({**RANDOM, "search_rounds": 2 if quick else 4})
    turns = [_turn(bench, next(prompts), search) for _ in range(1 + repeats)][1:]
    images = turns[0][3]
    return [
        figure(f"search of {images} images, ours", "s", [ours for ours, *_ in turns]),
        figure("one at a time / ours", "x", [p / o for o, p, _, _ in turns],
               bar=PLAIN, side="least"),
        figure("bare calls / ours", "x", [b / o for o, _, b, _ in turns], bar=BARE, side="least"),
    ]  # fmt: skip


def _turn(bench: Bench, prompt: Prompt, search: SearchArgs) -> tuple[float, float, float, int]:
    """Seconds of the search, of the plain loop, of the bare calls; and how many images."""
    with tempfile.TemporaryDirectory() as root:
        taken, made = bench.ours(root, prompt, search)
        (run,) = {path.parent for path in made.values()}
        rows = [row for row in read_candidates(run) if row.path]
        plain = _one_at_a_time(bench, prompt.text, list(_rounds(rows)), Path(root))
    return taken, plain, _bare_calls(bench, prompt.text, list(_batches(rows))), len(rows)


def _rounds(rows: Sequence[CandidateRecord]) -> Iterator[list[int]]:
    for _, group in itertools.groupby(rows, key=lambda row: row.round):
        yield [row.seed for row in group]


def _batches(rows: Sequence[CandidateRecord]) -> Iterator[list[int]]:
    """The seeds of each batch that was made, in order."""
    left = iter(rows)
    for row in left:
        yield [row.seed, *(r.seed for r in itertools.islice(left, row.batch_size - 1))]


def _one_at_a_time(bench: Bench, prompt: str, rounds: Sequence[list[int]], folder: Path) -> float:
    def judge(images: Sequence[Image.Image]) -> None:
        bench.verifier.score([Item(image, prompt) for image in images])

    return one_at_a_time(lambda seed: _called(bench, prompt, [seed])[0], judge, rounds, folder)


def _bare_calls(bench: Bench, prompt: str, batches: Sequence[list[int]]) -> float:
    started = time.perf_counter()
    for seeds in batches:
        _called(bench, prompt, seeds)
    return time.perf_counter() - started


def _called(bench: Bench, prompt: str, seeds: Sequence[int]) -> list:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return bench.plain(generator=generators, **bench.arguments(prompt, len(seeds))).images
