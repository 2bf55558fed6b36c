"""Peak memory and seconds an image of six full-size pipelines, for each way of offloading.

    python -m benchmarks.memory                      # all of them, on a GPU
    python -m benchmarks.memory --tiny --device cpu  # only to see that it runs

Weights are random (`benchmarks/full_size.py`), so pictures mean nothing and times do. Each pipeline
is built anew for each placement and makes two rounds of one batch: the first, with a prompt to be
encoded and kernels to be chosen, is told apart from the second. Expected is what
`pipelines.memory` says before the run, measured what torch allocated at most.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import PIPELINES, Pipeline
from experiment.manifest import device_name, git_revision
from pipelines.denoiser import Denoiser
from pipelines.loading import choose_device, hush
from pipelines.memory import GB, Needs, Placement, needs_of
from pipelines.placement import Residence
from pipelines.quantization import store_in_fp8
from utils import UserError, did_you_mean, write_atomically

PLACEMENTS = {
    "none": Placement(),
    "none, slicing": Placement(vae="slicing"),
    "none, tiling": Placement(vae="tiling"),
    "none, text encoders leave": Placement(vae="slicing", text_leaves=True),
    "model": Placement("model", "slicing"),
    "group": Placement("group", "slicing"),
    "sequential": Placement("sequential", "slicing"),
}
ROUNDS = 2
PROMPT = "a red circle left of a blue square"
RESULTS = Path("benchmarks/results")


def measure(
    pipeline: Pipeline, placement: Placement, device: str, batch: int, steps: int, tiny: bool,
    fp8: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One pipeline in one placement: two rounds of a batch."""
    pipe = pipeline.make(tiny, device)
    if fp8:
        store_in_fp8(pipe, pipe.dtype)
    arguments = {**pipeline.arguments(tiny), "num_inference_steps": steps}
    needs = needs_of(pipe, arguments, batch)
    denoiser = Denoiser(pipe, arguments, Residence(pipe, device, placement))
    _reset(device)
    seconds = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        _round(denoiser, [number * batch + i for i in range(batch)])
        seconds.append((time.perf_counter() - started) / batch)
    return {
        "placement": str(placement),
        "fp8": fp8,
        "batch_size": batch,
        "steps": steps,
        "seconds_per_image": seconds,
        "peak_gb": _peak(device),
        **expected(needs, placement),
    }


def expected(needs: Needs, placement: Placement) -> dict[str, Any]:
    """What was foreseen, in GB."""
    return {
        "expected_peak_gb": needs.peak(placement) / GB,
        "weights_gb": {part.name: part.weights / GB for part in needs.parts},
        "denoising_gb": needs.denoising / GB,
        "decoding_gb": needs.decoded(placement.vae) / GB,
    }


def _round(denoiser: Denoiser, seeds: Sequence[int]) -> None:
    """A batch from noise to pictures, in the calls that a search makes."""
    drawn = denoiser.draw(PROMPT, seeds)
    steps = denoiser.steps(PROMPT, len(seeds))
    done = denoiser.denoise(PROMPT, drawn.latents, seeds, drawn.step, steps)
    denoiser.decode(PROMPT, done.latents, seeds, steps)


def _reset(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> float | None:
    """The most that was allocated, in GB; None where torch does not count."""
    return torch.cuda.max_memory_allocated(device) / GB if device.startswith("cuda") else None


def report(name: str, found: dict[str, Any]) -> str:
    """A measurement as people read it."""
    peak = found["peak_gb"]
    measured = "peak not counted" if peak is None else f"peak {peak:6.2f} GB"
    return (
        f"{name:<14}{found['placement']:<42}{measured}, expected"
        f" {found['expected_peak_gb']:6.2f} GB, {found['seconds_per_image'][-1]:7.2f} s an image"
    )


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("--pipelines", nargs="+", default=list(PIPELINES), metavar="NAME")
    flags.add_argument("--placements", nargs="+", default=list(PLACEMENTS), metavar="NAME")
    flags.add_argument("--batch_size", type=int, default=4, help="videos are made one at a time")
    flags.add_argument("--steps", type=int, default=10)
    flags.add_argument("--fp8", action="store_true", help="denoisers stored in 8-bit floats")
    flags.add_argument("--device", default="auto")
    flags.add_argument("--tiny", action="store_true", help="small models: only to see that it runs")
    flags.add_argument("--output_dir", type=Path, default=RESULTS)
    args = flags.parse_args(argv)
    hush()
    try:
        for names, known in ((args.pipelines, PIPELINES), (args.placements, PLACEMENTS)):
            for name in names:
                if name not in known:
                    raise UserError(f"There is no '{name}' here: {did_you_mean(name, known)}")
        device = choose_device(args.device)
        if device == "cpu" and "sequential" in args.placements:
            args.placements.remove("sequential")  # accelerate cannot do it there
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.pipelines:
        pipeline = PIPELINES[name]
        batch = 1 if "num_frames" in pipeline.call_args else args.batch_size
        runs = []
        for placement in args.placements:
            found = measure(
                pipeline, PLACEMENTS[placement], device, batch, args.steps, args.tiny, args.fp8
            )
            print(report(name, found), flush=True)
            runs.append(found)
        machine = {"device": device_name(device), "torch": torch.__version__}
        whole = {"pipeline": name, "tiny": args.tiny, **machine, "git_revision": git_revision(),
                 "runs": runs}  # fmt: skip
        path = args.output_dir / f"memory_{name}{'_fp8' if args.fp8 else ''}.json"
        write_atomically(path, (json.dumps(whole, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
