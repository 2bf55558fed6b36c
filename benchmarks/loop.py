"""Images per second of a whole run of ours, beside plain diffusers loops over the same seeds.

    python -m benchmarks.loop --json loop.json

ours: an `Experiment` on a temporary folder, without judges: search, denoise, decode, verify, write.
one at a time: for each seed call the pipeline, score the image, save it (tt-scale-flux's loop).
best batch: the same in batches of the size that is fastest here, across the rounds' borders.

All share one process and one set of weights and take turns, after a first turn that is not counted;
loading is not counted either. Each turn has a prompt of its own, so each loop pays for encoding it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image, ImageChops

from experiment.config import ExperimentConfig, SearchArgs, load_config
from experiment.manifest import manifest
from experiment.plan import Plan
from experiment.prompts import Prompt
from experiment.records import read_candidates
from experiment.runner import Experiment, plan
from experiment.speed import BATCH_SIZE
from experiment.store import RunStore
from pipelines.denoiser import Denoiser
from pipelines.loading import choose_device, load_pipeline
from search.core import Flow, Need, Rollout, Space
from utils import UserError, write_atomically
from verifiers.base import Chosen, Item

RANDOM = {"search_method": "random", "search_rounds": 4}
OVERRIDES: dict[str, Any] = {
    "prompt": None,
    "prompts": "shapes/prompts.txt",
    "num_prompts": "all",
    "judges": [],
    "budget": {},
    "search_args": RANDOM,
}
QUICK = {"pipeline_call_args.num_inference_steps": 2}
WIDE = 38

Timed = tuple[float, dict[int, Path]]
"""Seconds, and the pictures by seed."""


@dataclass(frozen=True)
class Filled:
    """Random search in rounds of one size, so that each fills its batches."""

    size: int

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = True

    def sized(self, steps: int, nfe: int) -> Self:
        return self

    def flow(self, space: Space) -> Flow:
        while True:
            yield Rollout(space.draw(self.size), until=space.steps)


@dataclass(frozen=True)
class Bench:
    """A loaded model, once in our denoiser and once as diffusers made it."""

    planned: Plan
    denoiser: Denoiser
    plain: Any
    verifier: Chosen
    batch_size: int
    machine: dict[str, Any]

    @classmethod
    def load(cls, config: ExperimentConfig) -> Bench:
        planned, args = plan(config), config.verifier_args
        verifier = args.build()
        device = choose_device(config.engine_args.device)
        pipe = load_pipeline(planned.checkpoint, config.torch_dtype, device)
        verifier.load(device)
        plain = copy.copy(pipe)  # the same weights, but not the denoiser's memory of prompts
        plain.set_progress_bar_config(disable=True)
        denoiser = Denoiser(pipe, config.pipeline_call_args)
        if denoiser.video:
            raise UserError("This benchmark makes images: choose the config of an image pipeline.")
        batch_size = BATCH_SIZE if config.batch_size == "auto" else config.batch_size
        machine = manifest(pipe, planned.checkpoint, device)
        return cls(planned, denoiser, plain, verifier, batch_size, machine)

    def ours(self, folder: str, prompt: Prompt, search: SearchArgs) -> Timed:
        """A whole run with one prompt."""
        config = self.planned.config.model_copy(update={"search_args": search})
        planned = replace(self.planned, config=config, prompts=[prompt])
        started = time.perf_counter()
        store = RunStore.create(folder, config)
        run = Experiment(config, self.denoiser, self.verifier, {}, store, planned, self.batch_size)
        with contextlib.redirect_stdout(io.StringIO()):
            run.run()
        seconds = time.perf_counter() - started
        rows = read_candidates(store.folder)
        return seconds, {row.seed: store.folder / row.path for row in rows if row.path}

    def loop(self, folder: str, prompt: str, seeds: Sequence[int], size: int) -> Timed:
        """A plain loop over batches of this size."""
        paths = {seed: Path(folder, f"{size}_{seed}.png") for seed in seeds}
        started = time.perf_counter()
        for begin in range(0, len(seeds), size):
            batch = seeds[begin : begin + size]
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in batch]
            images = self.plain(generator=generators, **self._arguments(prompt, len(batch))).images
            self.verifier.score([Item(image, prompt) for image in images])
            for seed, image in zip(batch, images, strict=True):
                image.save(paths[seed])
        return time.perf_counter() - started, paths

    def _arguments(self, prompt: str, n: int) -> dict[str, Any]:
        """The pipeline's arguments, each text once an image."""
        arguments = {**self.planned.config.pipeline_call_args, "prompt": prompt}
        return {
            name: [value] * n if isinstance(value, str) and "prompt" in name else value
            for name, value in arguments.items()
        }

    def sweep(self, prompts: Iterator[Prompt], sizes: Iterable[int]) -> dict[int, float]:
        """The plain loop's images per second by batch size: the better of two turns."""
        speeds: dict[int, list[float]] = {size: [] for size in sorted(sizes)}
        seeds = range(max(speeds))
        with tempfile.TemporaryDirectory() as folder:
            for prompt in (next(prompts) for _ in range(3)):
                for size, found in speeds.items():
                    found.append(len(seeds) / self.loop(folder, prompt.text, seeds, size)[0])
        return {size: max(found[1:]) for size, found in speeds.items()}

    def compare(
        self, prompts: Iterator[Prompt], search: SearchArgs, best: int, repeats: int
    ) -> dict[str, Any]:
        """The three loops in turn, over the seeds that the search draws."""
        seconds: dict[str, list[float]] = {"ours": []}
        apart: dict[str, int] = {}
        for prompt in (next(prompts) for _ in range(1 + repeats)):
            with tempfile.TemporaryDirectory() as folder:
                taken, ours = self.ours(folder, prompt, search)
                seconds["ours"].append(taken)
                for name, size in {"one at a time": 1, "best batch": best}.items():
                    taken, theirs = self.loop(folder, prompt.text, list(ours), size)
                    seconds.setdefault(name, []).append(taken)
                    differences = [difference(ours[seed], theirs[seed]) for seed in ours]
                    apart[name] = max(apart.get(name, 0), *differences)
        warm = {name: taken[1:] for name, taken in seconds.items()}
        speeds = {name: spread(len(ours) / s for s in taken) for name, taken in warm.items()}
        ratios = {
            n: spread(t / o for t, o in zip(warm[n], warm["ours"], strict=True)) for n in apart
        }
        return {"images": len(ours), "seconds": warm, "images_per_second": speeds,
                "ratios": ratios, "largest_difference": apart}  # fmt: skip


def spread(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def difference(one: Path, other: Path) -> int:
    """The largest difference of a pixel's channel, of 255."""
    with Image.open(one) as a, Image.open(other) as b:
        bands: Any = ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getextrema()
    return max(high for _, high in bands)


def measure(
    config: ExperimentConfig, sizes: Iterable[int], repeats: int, quick: bool = False
) -> dict[str, Any]:
    """Find the best batch; compare on rounds that fill it, then on a whole random search."""
    before = os.getloadavg()
    bench = Bench.load(config)
    prompts = itertools.cycle(bench.planned.prompts)
    swept = bench.sweep(prompts, {bench.batch_size} if quick else {bench.batch_size, *sizes})
    best = max(swept, key=lambda size: swept[size])
    rounds = 1 if quick else max(2, math.lcm(bench.batch_size, best) // bench.batch_size)
    filled = {"search_method": "benchmarks.loop:Filled", "size": bench.batch_size}
    searches: dict[str, Any] = {"filled rounds": {**filled, "search_rounds": rounds}}
    if not quick:
        searches["random search, 4 rounds"] = RANDOM
    workloads = {
        name: bench.compare(prompts, SearchArgs.model_validate(args), best, repeats)
        for name, args in searches.items()
    }
    return {"machine": bench.machine, "config": config.resolved(), "repeats": repeats,
            "batch_size": {"ours": bench.batch_size, "best batch": best},
            "plain_images_per_second": swept, "workloads": workloads,
            "load_average": {"before": before, "after": os.getloadavg()}}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The measurement as people read it."""
    machine, sizes = found["machine"], found["batch_size"]
    swept = [f"{speed:.2f} at {n}" for n, speed in found["plain_images_per_second"].items()]
    lines = [
        f"{machine['checkpoint']}, {machine['device']}, {machine['threads']} threads,"
        f" load average {found['load_average']['before'][0]:.2f} at the start",
        f"batches of {sizes['ours']} in ours; plain images/s by batch size: {', '.join(swept)}",
    ]
    for name, work in found["workloads"].items():
        lines += ["", f"{name}, {work['images']} images".ljust(WIDE) + "median   least    most"]
        lines += [row(f"  {loop}: images/s", v) for loop, v in work["images_per_second"].items()]
        lines += [row(f"  ours / {loop}", v) for loop, v in work["ratios"].items()]
        apart = ", ".join(f"{loop} {v}" for loop, v in work["largest_difference"].items())
        lines.append(f"  largest difference from ours, of 255: {apart}")
    return "\n".join(lines)


def row(label: str, values: dict[str, float]) -> str:
    return label.ljust(WIDE - 2) + "".join(f"{value:8.2f}" for value in values.values())


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("--config", default="configs/shapes_flux.json")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 8, 16], metavar="N")
    flags.add_argument("--json", type=Path, help="write everything measured there")
    flags.add_argument("--quick", action="store_true", help="only to see that it runs")
    args = flags.parse_args(argv)
    try:
        if min(args.repeats, *args.batch_sizes) < 1:
            raise UserError("--repeats and --batch_sizes must be at least 1.")
        config = load_config(args.config, {**OVERRIDES, **(QUICK if args.quick else {})})
        found = measure(config, args.batch_sizes, 2 if args.quick else args.repeats, args.quick)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    if args.json is not None:
        write_atomically(args.json, (json.dumps(found, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
