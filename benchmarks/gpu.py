"""Full-size pipelines on one GPU: our run, a plain loop, a judge beside it, fp8, memory, idle time.

    python -m benchmarks.gpu --pipelines flux.1-dev --parts plain compiled judged fp8
    python -m benchmarks.gpu --seconds 540            # all of them; no part begins after that
    python -m benchmarks.gpu --tiny --device cpu      # only to see that it runs

Weights are random (`benchmarks/full_size.py`), so pictures mean nothing and times do. The parts of
a pipeline, in the order in which they are measured:

plain: tt-scale-flux's loop, written anew from its description: one image a call, its prompt encoded
    each time, judged when the round is made, saved as PIL does. Its verifier does nothing.
steps: seconds a step of one image and peak memory by batch size, not compiled.
eager: two prompts' searches on the loaded model, all in: encoding, denoising, decoding, a verifier
    that does nothing, PNGs, journal; and its peak of memory beside the plan's.
compiled: the same as engine_args.compile has it. Compiling is told apart, and not counted.
batched: the same in larger batches, of FLUX, whose runs are of single images as by default.
elsewhere: the same while a judge elsewhere sleeps for `--sleep` of the time that a batch takes.
judged: the same with Qwen2.5-VL-7B on this GPU (`benchmarks/vlm.py`), which gives scores alone.
graphs: compiled graphs after steps of smaller batches, without guidance and of a draft.
fp8: a draft by engine_args.profile "fp8".

Where compiling fails, that is told, and what follows is measured as it is, eager.
Beside seconds stand the share of the floor (`benchmarks/floors.py`) and how many times as fast as
`plain` that is. Each part is in the pipeline's JSON file as soon as it is measured, beside those of
earlier calls; `python -m benchmarks.report_gpu` makes tables of them.

Exit codes: 0 all measured and every bar kept; 1 a part failed or was not begun; 2 a flag is wrong;
3 all measured, but a bar is missed (not with --tiny).
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device import graphs, matrix_tflops, reset
from benchmarks.figures import machine, missed, table, unbarred
from benchmarks.floors import PEAK, WORK
from benchmarks.gpu_results import Record, bars
from benchmarks.loaded import SIZES, Bench
from pipelines.loading import choose_device, hush
from utils import UserError, did_you_mean

PARTS = ("plain", "steps", "eager", "compiled", "batched", "elsewhere", "judged", "graphs", "fp8")
COMPILED = PARTS[PARTS.index("compiled") :]
RESULTS = Path("benchmarks/results")
UNMEASURED, MISSED = 1, 3  # exit codes

Measured = Mapping[str, Any]


class Parts:
    """What can be measured of one pipeline, by name."""

    def __init__(self, bench: Bench, images: int, sleep: float, sizes: Sequence[int]) -> None:
        self._bench = bench
        self._images = images or 4 * bench.work.most
        self._sleep = sleep
        self._sizes = sizes
        self._compiling: float | None = None  # seconds
        self._uncompiled: str | None = None  # why not
        self._each: dict[str, float] = {}  # seconds an image of our run, by way

    def measure(self, part: str) -> Measured:
        if part in COMPILED and self._bench.way == "eager":
            self._compile()
            if self._uncompiled is not None and part in ("compiled", "graphs"):
                return {"failed": self._uncompiled}
        ways: Mapping[str, Callable[[], Measured]] = {
            "plain": lambda: self._bench.plain(max(1, self._images // 4)),
            "steps": lambda: {"batches": list(self._bench.batches(self._sizes))},
            "eager": lambda: self._bench.ours(self._images),
            "compiled": lambda: self._bench.ours(self._images),
            "batched": lambda: self._bench.batched(self._images),
            "elsewhere": self._elsewhere,
            "judged": lambda: self._bench.judged(self._images),
            "graphs": self._bench.graphs,
            "fp8": self._bench.fp8,
        }
        found = ways[part]()
        if part in ("eager", "compiled"):
            self._each[self._bench.way] = found["seconds_an_image"]
        if part in ("compiled", "judged", "graphs") and self._bench.way == "compiled":
            found = {"graphs": graphs(), **found, "compile_seconds": self._compiling}
        if part in COMPILED and self._uncompiled is not None:
            found = {**found, "uncompiled": self._uncompiled}
        return found

    def _compile(self) -> None:
        """Compile, or remember why not: trying again would take as long and end as before."""
        if self._uncompiled is None:
            try:
                self._compiling = self._bench.compile()
            except Exception as error:  # whatever a compiler may raise
                self._uncompiled = _told(error)
                traceback.print_exc()

    def _elsewhere(self) -> Measured:
        """A sleep as long as a share of the time that a batch takes, measured if it was not."""
        batch, way = self._bench.work.batch, self._bench.way
        if way not in self._each:
            self._each[way] = self._bench.ours(2 * batch)["seconds_an_image"]
        return self._bench.elsewhere(self._images, self._sleep * self._each[way] * batch)


def lines(part: str, found: Measured) -> Iterator[str]:
    """A part as people read it."""
    if why := found.get("refused") or found.get("failed"):
        yield f"{part}: {why}"
    for each in found.get("batches", ()):
        text = f"a step at {each['batch_size']}".ljust(12) + f"{each['seconds_a_step']:9.4f} s"
        yield f"{part}: {text} an image{_shares(each)}{_memory(each)}"
    if "seconds_an_image" in found:
        text = f"{part} ({found['way']})".ljust(22) + f"{found['seconds_an_image']:8.3f} s an image"
        yield f"{text}{_shares(found)}{_memory(found)}"
    if found.get("compile_seconds") is not None:
        yield f"{part}: compiled in {found['compile_seconds']:.0f} s, {found['graphs']} graphs"
    if "recompilations" in found:
        sizes = ", ".join(map(str, found["batch_sizes"]))
        yield (
            f"{part}: with batches of {sizes}, without guidance and of a draft at most"
            f" {found['recompilations']} recompilations"
        )
    if "uncompiled" in found:
        yield f"{part}: NOT COMPILED, for that failed: {found['uncompiled']}"
    if "judge" in found:
        judge = found["judge"]
        yield (
            f"{part}: the judge alone {judge['seconds_an_image']:.3f} s an image,"
            f" {judge['asked_tokens']} tokens asked, {judge['answered_tokens']} answered"
        )
    if found.get("decoded_again") or found.get("unscored"):
        yield (
            f"{part}: NOT AS REAL: {found.get('decoded_again', 0)} pictures decoded twice,"
            f" {found.get('unscored', 0)} unscored"
        )


def _shares(found: Measured) -> str:
    text = ""
    if found["share_of_floor"] is not None:
        text += f", {found['share_of_floor']:4.0%} of the floor"
    if "times_as_fast" in found:
        text += f", {found['times_as_fast']:.2f}x one at a time"
    if "busy_share" in found:
        text += f", busy {found['busy_share']:.1%}"
    if found.get("device_share") is not None:
        text += f" (NVML {found['device_share']:.1%})"
    return text


def _memory(found: Measured) -> str:
    if "expected_peak_gb" not in found:
        return ""
    return f", peak {found['peak_gb']:.1f} GB, expected {found['expected_peak_gb']:.1f}"


def measure(name: str, args: argparse.Namespace, stamp: Measured, over: Callable[[], bool]) -> int:
    """The parts of a pipeline that are asked for; returns the exit code that they came to."""
    if over():
        print(f"{name}: not begun, for the time is over", flush=True)
        return UNMEASURED
    record = Record(args.output_dir, name, args.tiny)
    started = time.perf_counter()
    bench = Bench.load(name, args.device, args.tiny, args.attention)
    print(f"{name}: loaded in {time.perf_counter() - started:.0f} s", flush=True)
    sizes = args.batch_sizes[:2] if args.tiny else args.batch_sizes
    parts, whole = Parts(bench, args.images, args.sleep, sizes), True
    for part in PARTS:
        if part not in args.parts:
            continue
        if over():
            print(f"{name}: {part} and what follows not begun, for the time is over", flush=True)
            return UNMEASURED
        started = time.perf_counter()
        found = _tried(parts, part)
        whole &= "failed" not in found
        taken = {"took_seconds": time.perf_counter() - started}
        record.add(part, {**found, **taken, "steps": bench.work.steps,
                          "attention": args.attention, "machine": dict(stamp)})  # fmt: skip
        for line in lines(part, record.found["parts"][part]):
            print(f"{name:<17}{line}", flush=True)
    return ended(record.found, whole=whole)


def ended(found: Measured, *, whole: bool) -> int:
    """Print a pipeline's figures, those of earlier calls too; returns the exit code.

    whole: whether all was measured that was asked for.
    """
    held = list(bars(found))
    held = unbarred(held) if found["tiny"] else held
    print(table(f"{found['pipeline']}, all that is measured", held), flush=True)
    if not whole:
        return UNMEASURED
    return MISSED if missed(held) else 0


def _tried(parts: Parts, part: str) -> Measured:
    """A part, or why it failed: what comes after it may not, and time on a GPU is dear."""
    try:
        return parts.measure(part)
    except Exception as error:
        traceback.print_exc()
        return {"failed": _told(error)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("--pipelines", nargs="+", default=list(WORK), metavar="NAME")
    flags.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    flags.add_argument("--batch_sizes", nargs="+", type=int, default=list(SIZES), metavar="N")
    flags.add_argument("--images", type=int, default=0, help="of our run; default: 4 batches")
    flags.add_argument("--sleep", type=float, default=0.9, help="of a batch's time, by the judge")
    flags.add_argument("--attention", default="default", help="as engine_args.attention")
    flags.add_argument("--seconds", type=float, help="after which no part is begun")
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--tiny", action="store_true", help="small models: only to see that it runs")
    flags.add_argument("--output_dir", type=Path, default=RESULTS)
    args = flags.parse_args(argv)
    started = time.perf_counter()
    hush()
    try:
        for name in args.pipelines:
            if name not in WORK:
                raise UserError(f"There is no '{name}' here: {did_you_mean(name, WORK)}")
        args.device = choose_device(args.device)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        tflops = matrix_tflops(args.device)
        stamp = {**machine(args.device), "peak_tflops": PEAK, "matrix_tflops": tflops}
        if tflops is not None:
            print(f"a bf16 matrix product: {tflops:.0f} TFLOP/s; floors go by {PEAK:.0f}")
        done = []
        for name in args.pipelines:
            done.append(
                measure(
                    name, args, stamp,
                    lambda: args.seconds is not None
                    and time.perf_counter() - started > args.seconds,
                )
            )  # fmt: skip
            reset(args.device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return UNMEASURED if UNMEASURED in done else max(done)


if __name__ == "__main__":
    sys.exit(main())
