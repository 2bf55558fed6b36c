"""A full-size pipeline on its device, and what can be timed of it: see `benchmarks.gpu`."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.busy import Busy
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
from pipelines.memory import GB, Placement, needs_of
from pipelines.memory_errors import free, out_of_memory
from pipelines.placement import Residence
from verifiers.base import Chosen

PROMPTS = ("a red circle left of a blue square", "a green ring above a yellow star")
PLACEMENT = Placement(vae="slicing")
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
            reset(self.device)
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
            reset(self.device)
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
            wait(self.device)
            started = time.perf_counter()
            done = self.denoiser.denoise(
                PROMPTS[0], drawn.latents, seeds, drawn.step, drawn.step + 1
            )
            wait(self.device)
            taken.append(time.perf_counter() - started)
        self.denoiser.decode(PROMPTS[0], done.clean, seeds, self.denoiser.steps(PROMPTS[0]))
        return statistics.median(taken[1:]) / size, done.rows / size

    def drafts(self, profile: str) -> dict[str, Any]:
        """Seconds a draft of a batch takes by a profile, from its noise to its picture."""
        batch, steps = self.work.batch, self.work.steps
        seeds, prompt = tuple(range(batch)), PROMPTS[0]
        drawn = self.denoiser.draw(prompt, seeds)
        taken = []
        with self.denoiser.drafting(steps):
            for _ in range(2):  # the first compiles, or chooses kernels
                wait(self.device)
                started = time.perf_counter()
                total = self.denoiser.steps(prompt, batch)
                done = self.denoiser.denoise(prompt, drawn.latents, seeds, drawn.step, total)
                self.denoiser.decode(prompt, done.clean, seeds, total)
                wait(self.device)
                taken.append(time.perf_counter() - started)
        told = self._told(taken[-1] / batch, done.rows / batch)
        return {**told, "profile": profile, "batch_size": batch}

    def use_profile(self, profile: str, *, compiled: bool = False) -> None:
        self.denoiser.use_profile(profile)
        self.denoiser.try_profile(PROMPTS[0])
        if compiled:
            self._compile(self.denoiser.twins)

    def compile(self) -> float:
        """Seconds that compiling takes, for the batch size of the runs."""
        started = time.perf_counter()
        self._compile(denoisers(self.pipe))
        self.denoiser.warm_up(PROMPTS[0], self.work.batch)
        wait(self.device)
        return time.perf_counter() - started

    def _compile(self, parts: Sequence[torch.nn.Module]) -> None:
        compile_denoisers(parts, backend="eager" if self.tiny else "inductor")

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


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reset(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
