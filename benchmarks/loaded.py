"""A full-size pipeline on its device, and what can be timed of it: see `benchmarks.gpu`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import vlm
from benchmarks.busy import Busy
from benchmarks.device import fresh_compiler, graphs, peak_gb, recompilations, reset, wait
from benchmarks.floors import PEAK, WORK, Work
from benchmarks.full_size import PIPELINES, Pipeline
from benchmarks.judge import Sleeping
from benchmarks.plain import one_at_a_time
from experiment.config import parse_config
from experiment.plan import Plan
from experiment.records import read_candidates
from experiment.runner import Experiment, plan
from experiment.store import RunStore
from pipelines.compiling import compile_denoisers, undo
from pipelines.denoiser import Denoiser
from pipelines.made import Decoded
from pipelines.memory import GB, Placement, needs_of
from pipelines.memory_errors import free, out_of_memory
from pipelines.parts import denoisers
from pipelines.placement import settle
from utils import UserError
from verifiers.base import Chosen

PROMPTS = ("a red circle left of a blue square", "a green ring above a yellow star")
SIZES = (1, 2, 4, 8, 16)
UNGUIDED = 0.1  # of the guidance scale: below 1 for all that take two rows by it
REPEATS = 3  # of a step, whose median is told
SLEEPING = {"name": "benchmarks.judge:Sleeping"}
QWEN = {"name": "benchmarks.vlm:RandomQwen", **vlm.OPTIONS}


@dataclass
class Bench:
    """A pipeline on its device, once in our denoiser and once as diffusers made it."""

    name: str
    device: str
    tiny: bool
    pipe: Any
    denoiser: Denoiser
    arguments: dict[str, Any]
    work: Work
    way: str = "eager"  # or compiled
    runs: int = 0  # each has prompts of its own, for those are remembered

    @classmethod
    def load(cls, name: str, device: str, tiny: bool, attention: str = "default") -> Bench:
        pipeline, work = PIPELINES[name], WORK[name]
        if tiny:
            work = work.small()
        fresh_compiler()
        pipe = pipeline.make(tiny, device, stays=True)
        arguments = {**pipeline.arguments(tiny), "num_inference_steps": work.steps}
        residence = settle(pipe, device, arguments, work.batch, offload="none")
        encode = pipe.encode_prompt
        denoiser = Denoiser(pipe, arguments, residence)
        object.__setattr__(pipe, "plain_encode", encode)
        _attend(denoiser, attention)
        return cls(name, device, tiny, pipe, denoiser, arguments, work)

    @property
    def pipeline(self) -> Pipeline:
        return PIPELINES[self.name]

    @property
    def placement(self) -> Placement:
        assert self.denoiser.residence is not None
        return self.denoiser.residence.placement

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
        steps = self.denoiser.steps(PROMPTS[0])
        rows = steps * self.denoiser.rows_each(PROMPTS[0])
        return {**self._told(taken / images, rows), "images": images, "way": "eager"}

    def ours(self, images: int) -> dict[str, Any]:
        """Our run with a verifier that does nothing: seconds an image, and the peak of memory."""
        verifier = Chosen(Sleeping(), "sleeping", "brightness")
        reset(self.device)
        others = self._others()
        found = self._run(images, verifier, SLEEPING)
        return {**found, **self._memory(self.work.batch, others)}

    def batched(self, images: int) -> dict[str, Any]:
        """The same at the other number of images at once, if one is to be measured."""
        if self.work.more is None:
            return {"refused": f"batches of {self.work.batch} alone are asked for"}
        own = self.work
        self.work = replace(own, batch=self.work.more)
        try:
            return self.ours(images)
        finally:
            self.work = own

    def elsewhere(self, images: int, pause: float) -> dict[str, Any]:
        """Our run with a judge elsewhere that takes so many seconds a batch."""
        verifier = Chosen(Sleeping(pause), "sleeping", "brightness")
        return {**self._run(images, verifier, SLEEPING), "sleep": pause}

    def judged(self, images: int) -> dict[str, Any]:
        """Our run with Qwen2.5-VL on the same device, which judges while nothing is denoised."""
        started = time.perf_counter()
        judge = vlm.judge(self.device, self.tiny)
        wait(self.device)
        loading = time.perf_counter() - started
        size = (self.arguments["width"], self.arguments["height"])
        alone = vlm.alone(judge, size, lambda: wait(self.device))
        reset(self.device)
        found = self._run(images, judge, QWEN, [judge.verifier.model])  # type: ignore[attr-defined]
        peak = {"peak_gb": peak_gb(self.device)} if self.device.startswith("cuda") else {}
        return {**found, **peak, "judge": {**alone, "loading_seconds": loading}}

    def _run(
        self,
        images: int,
        verifier: Chosen,
        verifier_args: Mapping[str, Any],
        judges: Sequence[torch.nn.Module] = (),
    ) -> dict[str, Any]:
        """Two prompts' searches, all in: encoding, denoising, decoding, judging, PNGs, journal."""
        batch = self.work.batch
        self._warm()
        self.runs += 1
        with tempfile.TemporaryDirectory() as root, self._decodings() as decoded:
            planned = self._planned(Path(root, "model"), images, verifier_args)
            store = RunStore.create(root, planned.config)
            run = Experiment(planned.config, self.denoiser, verifier, {}, store, planned, batch)
            wait(self.device)
            with Busy(self.pipe, judges) as busy, contextlib.redirect_stdout(io.StringIO()):
                started = time.perf_counter()
                run.run()
                taken = time.perf_counter() - started
            rows = read_candidates(store.folder)
        return {
            **self._told(taken / len(rows), sum(row.rows for row in rows) / len(rows)),
            "images": len(rows),
            "batch_size": batch,
            "way": self.way,
            "unscored": sum(row.status != "ok" for row in rows),
            # A decoder that overflows is asked twice, which random weights must not be charged for.
            "decoded_again": sum(sum(each.again) for each in decoded),
            **busy.told(),
        }

    def _warm(self) -> None:
        """Kernels are chosen: a step of a batch, and its decoding."""
        seeds = tuple(range(self.work.batch))
        self.denoiser.warm_up(PROMPTS[0], len(seeds))
        latents = self.denoiser.draw(PROMPTS[0], seeds).latents
        steps = self.denoiser.steps(PROMPTS[0], len(seeds))
        self.denoiser.decode(PROMPTS[0], latents, seeds, steps)

    @contextlib.contextmanager
    def _decodings(self) -> Iterator[list[Decoded]]:
        """Within this block, what the denoiser decodes is noted."""
        noted: list[Decoded] = []
        decode = self.denoiser.decode

        def noting(*args: Any, **kwargs: Any) -> Decoded:
            noted.append(decode(*args, **kwargs))
            return noted[-1]

        self.denoiser.__dict__["decode"] = noting
        try:
            yield noted
        finally:
            del self.denoiser.__dict__["decode"]

    def _others(self) -> float:
        """GB on the device beside the pipeline's weights, before anything is made."""
        if not self.device.startswith("cuda"):
            return 0.0
        weights = needs_of(self.pipe, self.arguments, 1).weights
        return (torch.cuda.memory_allocated(self.device) - weights) / GB

    def _memory(self, batch: int, others: float) -> dict[str, float]:
        """The peak since it was last set back and the plan's estimate, where torch counts it.

        others: GB that were there before, and are no part of the plan.
        """
        if not self.device.startswith("cuda"):
            return {}
        expected = needs_of(self.pipe, self.arguments, batch).peak(self.placement) / GB
        return {
            "peak_gb": peak_gb(self.device) - others,
            "expected_peak_gb": expected,
            "others_gb": others,
        }

    def batches(self, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Seconds a step of one image and peak memory, until a batch does not fit."""
        for size in sizes:
            reset(self.device)
            others = self._others()
            try:
                seconds, rows, again = self._step(size)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                free()
                return
            floor = None if self.tiny else rows * self.work.row / PEAK
            yield {
                "batch_size": size,
                "way": self.way,
                "seconds_a_step": seconds,
                "share_of_floor": None if floor is None else floor / seconds,
                "decoded_again": again,
                **self._memory(size, others),
            }

    def _step(self, size: int) -> tuple[float, float, int]:
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
        decoded = self.denoiser.decode(
            PROMPTS[0], done.clean, seeds, self.denoiser.steps(PROMPTS[0])
        )
        return statistics.median(taken[1:]) / size, done.rows / size, sum(decoded.again)

    def graphs(self) -> dict[str, Any]:
        """Graphs that the shapes of a run take: smaller batches, guidance that is off, a draft."""
        started = time.perf_counter()
        sizes = [size for size in reversed(SIZES) if size <= self.work.most]
        for size in sizes:
            for guidance in self._guidances():
                self._first_step(size, guidance)
        with self.denoiser.drafting(max(1, self.work.steps // 2)):
            self._first_step(self.work.batch, 1.0)
        wait(self.device)
        return {
            "way": self.way,
            "batch_sizes": sizes,
            "graphs": graphs(),
            "recompilations": recompilations(),
            "taking_seconds": time.perf_counter() - started,
        }

    def _guidances(self) -> tuple[float, ...]:
        """Factors on guidance: the second leaves a classifier-free one without its second row."""
        try:
            self._first_step(self.work.batch, UNGUIDED)
        except UserError:  # a distilled model
            return (1.0,)
        return (1.0, UNGUIDED)

    def _first_step(self, size: int, guidance: float) -> None:
        self.denoiser.denoise(*self._beginning(size), guidance=guidance)

    def _beginning(self, size: int) -> tuple[str, torch.Tensor, Sequence[int], int, int]:
        """What a batch's first step takes."""
        seeds = tuple(range(size))
        drawn = self.denoiser.draw(PROMPTS[0], seeds)
        return PROMPTS[0], drawn.latents, seeds, drawn.step, drawn.step + 1

    def fp8(self) -> dict[str, Any]:
        """Seconds of a draft by the profile `fp8`, from its noise to its picture."""
        if self.device.startswith("cuda") and importlib.util.find_spec("torchao") is None:
            return {"refused": "fp8 products need torchao: pip install torchao"}
        started = time.perf_counter()
        before = graphs()
        self.denoiser.use_profile("fp8")
        try:
            if self.way == "compiled":
                self._compile(self.denoiser.twins)
            with self.denoiser.drafting(self.work.steps):
                self.denoiser.warm_up(PROMPTS[0], self.work.batch)
                wait(self.device)
                ready = time.perf_counter() - started
                seconds, rows = self._draft()
            return {
                **self._told(seconds, rows),
                "batch_size": self.work.batch,
                "way": self.way,
                "ready_seconds": ready,
                "quantized_layers": sum(map(_quantized, self.denoiser.copies)),
                "graphs": graphs() - before,
            }
        finally:
            self.denoiser.use_profile("exact")
            reset(self.device)

    def _draft(self) -> tuple[float, float]:
        """Seconds and rows of an image of a batch."""
        batch, prompt = self.work.batch, PROMPTS[0]
        seeds, total = tuple(range(batch)), self.denoiser.steps(prompt, batch)
        wait(self.device)
        started = time.perf_counter()
        drawn = self.denoiser.draw(prompt, seeds)
        done = self.denoiser.denoise(prompt, drawn.latents, seeds, drawn.step, total)
        self.denoiser.decode(prompt, done.clean, seeds, total)
        wait(self.device)
        return (time.perf_counter() - started) / batch, done.rows / batch

    def compile(self) -> float:
        """Seconds that compiling takes, for the batch size of the runs."""
        started = time.perf_counter()
        parts = denoisers(self.pipe)
        try:
            self._compile(parts)
            self.denoiser.warm_up(PROMPTS[0], self.work.batch)
        except BaseException:
            undo(parts)
            raise
        wait(self.device)
        self.way = "compiled"
        return time.perf_counter() - started

    def _compile(self, parts: Sequence[torch.nn.Module]) -> None:
        compile_denoisers(parts, backend="eager" if self.tiny else "inductor")

    def _told(self, seconds: float, rows: float) -> dict[str, Any]:
        """Seconds an image beside the floor of so many rows."""
        floor = None if self.tiny else self.work.floor(rows)
        share = None if floor is None else floor / seconds
        return {"seconds_an_image": seconds, "floor": floor, "share_of_floor": share}

    def _planned(self, folder: Path, images: int, verifier: Mapping[str, Any]) -> Plan:
        """Two prompts, each with half of the images in rounds of a batch."""
        folder.mkdir()
        self.pipeline.write(folder, tiny=self.tiny)
        rounds = max(1, images // (2 * self.work.batch))
        prompts = folder / "prompts.txt"
        prompts.write_text("\n".join(f"{self.runs}: {text}" for text in PROMPTS))
        search = {"search_method": "benchmarks.loop:Filled", "size": self.work.batch}
        return plan(
            parse_config(
                {
                    "pretrained_model_name_or_path": str(folder),
                    "torch_dtype": "fp32" if self.device == "cpu" else self.pipeline.dtype,
                    "pipeline_call_args": self.arguments,
                    "search_args": {**search, "search_rounds": rounds},
                    "verifier_args": dict(verifier),
                    "prompts": str(prompts),
                    "num_prompts": "all",
                    "engine_args": {"device": self.device, "prompts_at_once": 2},
                }
            )
        )


def _attend(denoiser: Any, attention: str) -> None:
    """The attention of our runs; the plain loop keeps torch's own."""
    if attention == "default":
        return
    if not hasattr(denoiser, "use_attention"):
        raise UserError("Denoisers have no choice of attention here: leave out --attention.")
    denoiser.use_attention(attention)


def _quantized(model: torch.nn.Module) -> int:
    """Layers whose weights are kept in fewer bits, as a tensor of their own kind or as fp8."""
    weights = (getattr(layer, "weight", None) for layer in model.modules())
    return sum(
        hasattr(w, "__tensor_flatten__") or getattr(w, "dtype", None) == torch.float8_e4m3fn
        for w in weights
    )
