"""Full-size pipelines on one GPU: our run, a plain loop, batches of 1 to 16, memory, idle time.

    python -m benchmarks.gpu                          # all five, eager and compiled
    python -m benchmarks.gpu --pipelines flux.1-dev --ways compiled
    python -m benchmarks.gpu --tiny --device cpu      # only to see that it runs

Weights are random (`benchmarks/full_size.py`), so pictures mean nothing and times do. For each:

one at a time: tt-scale-flux's loop, written anew from its description: one image a call, its prompt
    encoded each time, judged when the round is made, saved as PIL does. Its verifier does nothing.
ours: two prompts' searches on the loaded model, all in: encoding, denoising, decoding, a verifier
    that does nothing, PNGs, journal. `--ways`: eager, compiled (as engine_args.compile does).
busy: the share of such a run in which the denoiser or the decoder works, while a judge elsewhere
    sleeps for `--sleep` of the time that a batch takes.
batches: seconds a step of one image, and peak memory, by batch size.

Beside seconds stands the share of the floor (`benchmarks/floors.py`), beside peaks what the plan
foresees. Everything goes into one JSON file a pipeline.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.busy import Busy
from benchmarks.figures import machine
from benchmarks.floors import PEAK, WORK, Work
from benchmarks.full_size import PIPELINES, Pipeline
from benchmarks.judge import Sleeping
from benchmarks.plain import one_at_a_time
from experiment.config import parse_config
from experiment.plan import Plan
from experiment.records import read_candidates
from experiment.runner import Experiment, plan
from experiment.store import RunStore
from pipelines.compiling import compile_denoisers
from pipelines.denoiser import Denoiser, denoisers
from pipelines.loading import choose_device, hush
from pipelines.memory import GB, Placement, needs_of
from pipelines.memory_errors import free, out_of_memory
from pipelines.placement import Residence
from utils import UserError, did_you_mean, write_atomically
from verifiers.base import Chosen

WAYS = ("eager", "compiled")
SIZES = (1, 2, 4, 8, 16)
PROMPTS = ("a red circle left of a blue square", "a green ring above a yellow star")
PLACEMENT = Placement(vae="slicing")
RESULTS = Path("benchmarks/results")
REPEATS = 3  # of a step, whose median is told


@dataclass(frozen=True)
class Bench:
    """A pipeline on its device, once in our denoiser and once as diffusers made it."""

    name: str
    device: str
    tiny: bool
    pipe: Any
    denoiser: Denoiser
    arguments: dict[str, Any]
    work: Work

    @classmethod
    def load(cls, name: str, device: str, tiny: bool) -> Bench:
        pipeline, work = PIPELINES[name], WORK[name]
        if tiny:
            work = Work(work.row, work.around, steps=2, batch=2)
        pipe = pipeline.make(tiny, device)
        arguments = {**pipeline.arguments(tiny), "num_inference_steps": work.steps}
        residence = Residence(pipe, device, PLACEMENT)
        encode = pipe.encode_prompt
        denoiser = Denoiser(pipe, arguments, residence)
        object.__setattr__(pipe, "plain_encode", encode)
        return cls(name, device, tiny, pipe, denoiser, arguments, work)

    @property
    def pipeline(self) -> Pipeline:
        return PIPELINES[self.name]

    def plain(self, images: int) -> dict[str, Any]:
        """The plain loop's seconds an image."""
        remembering = self.pipe.encode_prompt
        object.__setattr__(self.pipe, "encode_prompt", self.pipe.plain_encode)

        def called(seed: int) -> Any:
            generator = torch.Generator("cpu").manual_seed(seed)
            return self.pipe(prompt=PROMPTS[0], generator=generator, **self.arguments).images[0]

        try:
            called(0)  # kernels are chosen
            before = self.denoiser.rows
            with tempfile.TemporaryDirectory() as folder:
                taken = one_at_a_time(called, lambda _: None, [list(range(images))], Path(folder))
        finally:
            object.__setattr__(self.pipe, "encode_prompt", remembering)
        assert self.denoiser.rows == before  # rows are counted within our own calls alone
        return self._told(taken / images)

    def ours(self, images: int, pause: float = 0.0) -> dict[str, Any]:
        """Our run's seconds an image, peak memory, and how busy the device was."""
        batch = self.work.batch
        verifier = Chosen(Sleeping(pause), "sleeping", "brightness")
        with tempfile.TemporaryDirectory() as root:
            planned = self._planned(Path(root, "model"), images)
            store = RunStore.create(root, planned.config)
            run = Experiment(planned.config, self.denoiser, verifier, {}, store, planned, batch)
            _reset(self.device)
            with Busy(self.pipe) as busy, contextlib.redirect_stdout(io.StringIO()):
                started = time.perf_counter()
                run.run()
                taken = time.perf_counter() - started
            rows = read_candidates(store.folder)
        return {
            **self._told(taken / len(rows), sum(row.rows for row in rows) / len(rows)),
            "images": len(rows),
            "batch_size": batch,
            "busy_share": busy.share,
            **self._memory(batch),
        }

    def _memory(self, batch: int) -> dict[str, float]:
        """The peak since it was last set back and the plan's estimate, where torch counts it."""
        if not self.device.startswith("cuda"):
            return {}
        peak = torch.cuda.max_memory_allocated(self.device) / GB
        expected = needs_of(self.pipe, self.arguments, batch).peak(PLACEMENT) / GB
        return {"peak_gb": peak, "expected_peak_gb": expected}

    def batches(self, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Seconds a step of one image and peak memory, until a batch does not fit."""
        for size in sizes:
            _reset(self.device)
            try:
                seconds, rows = self._step(size)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                free()
                return
            floor = None if self.tiny else rows * self.work.row / PEAK
            yield {
                "batch_size": size,
                "seconds_a_step": seconds,
                "share_of_floor": None if floor is None else floor / seconds,
                **self._memory(size),
            }

    def _step(self, size: int) -> tuple[float, float]:
        """Seconds of a step, and rows, for one image of so many; decoded once, for the memory."""
        seeds = tuple(range(size))
        drawn = self.denoiser.draw(PROMPTS[0], seeds)
        taken = []
        for _ in range(1 + REPEATS):
            _wait(self.device)
            started = time.perf_counter()
            done = self.denoiser.denoise(
                PROMPTS[0], drawn.latents, seeds, drawn.step, drawn.step + 1
            )
            _wait(self.device)
            taken.append(time.perf_counter() - started)
        self.denoiser.decode(PROMPTS[0], done.clean, seeds, self.denoiser.steps(PROMPTS[0]))
        return statistics.median(taken[1:]) / size, done.rows / size

    def compile(self) -> float:
        """Seconds that compiling takes, for the batch size of the runs."""
        started = time.perf_counter()
        parts = denoisers(self.pipe)
        compile_denoisers(parts, backend="eager" if self.tiny else "inductor")
        self.denoiser.warm_up(PROMPTS[0], self.work.batch)
        _wait(self.device)
        return time.perf_counter() - started

    def _told(self, seconds: float, rows: float | None = None) -> dict[str, Any]:
        """Seconds an image beside its floor; rows as measured, else one or two a step."""
        if rows is None:
            rows = self.work.steps * self.denoiser.rows_each(PROMPTS[0])
        floor = None if self.tiny else self.work.floor(rows)
        share = None if floor is None else floor / seconds
        return {"seconds_an_image": seconds, "floor": floor, "share_of_floor": share}

    def _planned(self, folder: Path, images: int) -> Plan:
        """Two prompts, each with half of the images in rounds of a batch."""
        folder.mkdir()
        self.pipeline.write(folder, tiny=self.tiny)
        rounds = max(1, images // (2 * self.work.batch))
        prompts = folder / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS))
        search = {"search_method": "benchmarks.loop:Filled", "size": self.work.batch}
        return plan(
            parse_config(
                {
                    "pretrained_model_name_or_path": str(folder),
                    "torch_dtype": "fp32" if self.device == "cpu" else self.pipeline.dtype,
                    "pipeline_call_args": self.arguments,
                    "search_args": {**search, "search_rounds": rounds},
                    "verifier_args": {"name": "benchmarks.judge:Sleeping"},
                    "prompts": str(prompts),
                    "num_prompts": "all",
                    "engine_args": {"device": self.device},
                }
            )
        )


def measure(
    name: str, device: str, tiny: bool, ways: Sequence[str], sizes: Sequence[int], images: int,
    sleep: float,
) -> dict[str, Any]:  # fmt: skip
    """Everything about one pipeline."""
    bench = Bench.load(name, device, tiny)
    n = images or 4 * bench.work.batch
    found: dict[str, Any] = {"one at a time": bench.plain(max(1, n // 4))}
    print(line(name, "one at a time", found["one at a time"]), flush=True)
    for way in WAYS:  # eager first: there is no way back that is sure to be whole
        if way not in ways:
            continue
        made: dict[str, Any] = {}
        if way == "compiled":
            made["compile_seconds"] = bench.compile()
        made["ours"] = bench.ours(n)
        pause = sleep * made["ours"]["seconds_an_image"] * bench.work.batch
        made["judged elsewhere"] = {**bench.ours(n, pause), "sleep": pause}
        made["batches"] = list(bench.batches(sizes))
        made["graphs"] = dict(torch._dynamo.utils.counters["stats"])
        found[way] = made
        for part in ("ours", "judged elsewhere"):
            print(line(name, f"{way}, {part}", made[part]), flush=True)
        for each in made["batches"]:
            print(step_line(name, way, each), flush=True)
    return {
        "pipeline": name, "tiny": tiny, "steps": bench.work.steps, "peak_tflops": PEAK,
        "machine": machine(device), **found,
    }  # fmt: skip


def line(name: str, what: str, found: dict[str, Any]) -> str:
    """A measurement as people read it."""
    text = f"{name:<17}{what:<28}{found['seconds_an_image']:8.3f} s an image"
    if found["share_of_floor"] is not None:
        text += f", {found['share_of_floor']:4.0%} of the floor ({found['floor']:.3f} s)"
    if "busy_share" in found:
        text += f", busy {found['busy_share']:.1%}"
    return text + _memory(found)


def step_line(name: str, way: str, found: dict[str, Any]) -> str:
    what = f"{way}, a step at {found['batch_size']}"
    text = f"{name:<17}{what:<28}{found['seconds_a_step']:8.4f} s an image"
    if found["share_of_floor"] is not None:
        text += f", {found['share_of_floor']:4.0%} of the floor"
    return text + _memory(found)


def _memory(found: dict[str, Any]) -> str:
    if "peak_gb" not in found:
        return ""
    return f", peak {found['peak_gb']:.1f} GB, expected {found['expected_peak_gb']:.1f}"


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _reset(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("--pipelines", nargs="+", default=list(WORK), metavar="NAME")
    flags.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    flags.add_argument("--batch_sizes", nargs="+", type=int, default=list(SIZES), metavar="N")
    flags.add_argument("--images", type=int, default=0, help="of our run; default: 4 batches")
    flags.add_argument("--sleep", type=float, default=0.9, help="of a batch's time, by the judge")
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--tiny", action="store_true", help="small models: only to see that it runs")
    flags.add_argument("--output_dir", type=Path, default=RESULTS)
    args = flags.parse_args(argv)
    hush()
    try:
        for name in args.pipelines:
            if name not in WORK:
                raise UserError(f"There is no '{name}' here: {did_you_mean(name, WORK)}")
        device = choose_device(args.device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    args.output_dir.mkdir(parents=True, exist_ok=True)
    sizes = args.batch_sizes[:2] if args.tiny else args.batch_sizes
    for name in args.pipelines:
        found = measure(name, device, args.tiny, args.ways, sizes, args.images, args.sleep)
        content = json.dumps(found, indent=2) + "\n"
        write_atomically(args.output_dir / f"gpu_{name}.json", content.encode())
        _reset(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
