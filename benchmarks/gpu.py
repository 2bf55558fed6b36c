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
drafts: seconds a draft takes by `engine_args.profile`: cached where eager, fp8 where compiled.
batches: seconds a step of one image, and peak memory, by batch size.

Beside seconds stands the share of the floor (`benchmarks/floors.py`), beside peaks what the plan
foresees. Everything goes into one JSON file a pipeline.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import machine
from benchmarks.floors import PEAK, WORK
from benchmarks.loaded import Bench, reset
from pipelines.loading import choose_device, hush
from utils import UserError, did_you_mean, write_atomically

WAYS = ("eager", "compiled")
SIZES = (1, 2, 4, 8, 16)
RESULTS = Path("benchmarks/results")


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
        made["drafts"] = dict(drafts(bench, way))
        found[way] = made
        for part in ("ours", "judged elsewhere"):
            print(line(name, f"{way}, {part}", made[part]), flush=True)
        for profile, each in made["drafts"].items():
            print(line(name, f"{way}, drafts: {profile}", each), flush=True)
        for each in made["batches"]:
            print(step_line(name, way, each), flush=True)
    return {
        "pipeline": name, "tiny": tiny, "steps": bench.work.steps, "peak_tflops": PEAK,
        "machine": machine(device), **found,
    }  # fmt: skip


def drafts(bench: Bench, way: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Drafts by the profiles that go with eager denoisers, or with compiled ones."""
    profile = "cached" if way == "eager" else "fp8"
    try:
        bench.use_profile(profile, compiled=way == "compiled")
    except UserError as error:  # a model without a cache
        yield profile, {"refused": str(error)}
    else:
        yield profile, bench.drafts(profile)
    bench.use_profile("exact")


def line(name: str, what: str, found: dict[str, Any]) -> str:
    """A measurement as people read it."""
    if "refused" in found:
        return f"{name:<17}{what:<28}{found['refused']}"
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
        reset(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
