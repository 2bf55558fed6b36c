"""Markdown tables of what `benchmarks.gpu` measured, and what it did not yet.

    python -m benchmarks.report_gpu benchmarks/results            # print them
    python -m benchmarks.report_gpu FOLDER ... --into docs/performance.md

Folders and files are read in this order: where two calls measured the same part, the later one
counts. `--into` replaces what stands between the two marks of a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, significant
from benchmarks.floors import WORK
from benchmarks.gpu_results import (
    BUSY,
    EXACT,
    OFF,
    RECOMPILATIONS,
    SECONDS_EXACT,
    SECONDS_FP8,
    TIMES_AS_FAST,
    bars,
    measured,
    read_all,
)
from utils import UserError, write_atomically

UNKNOWN = "not yet measured"
BEGIN, END = "<!-- gpu figures: begin -->", "<!-- gpu figures: end -->"
RESULTS = Path("benchmarks/results")
HEAD = ("pipeline", "one at a time", "ours, eager", "ours, compiled", "as fast as singly",
        "with Qwen beside", "fp8 draft", "peak, expected")  # fmt: skip

Results = Mapping[str, Mapping[str, Any]]


def tables(results: Results) -> str:
    """What was measured where, its bars, and seconds an image of each pipeline."""
    return "\n\n".join([_where(results), _barred(results), _seconds(results), _steps(results)])


def _where(results: Results) -> str:
    machines = [part["machine"] for found in results.values() for part in found["parts"].values()]
    if not machines:
        return "Nothing has been measured on a GPU yet."
    said = "; ".join(sorted({_machine(machine) for machine in machines}))
    if any(found["tiny"] for found in results.values()):
        return f"Small models, only to see that it runs, on {said}: no figure here says anything."
    return f"Measured on {said}."


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "diffusers"))
    revision = (machine["git_revision"] or "an unknown revision")[:12]
    product = machine["matrix_tflops"]
    speed = "" if product is None else f", a bf16 matrix product at {product:.0f} TFLOP/s"
    return f"{machine['device']} ({versions}, {revision}{speed})"


def _barred(results: Results) -> str:
    """Every bar, beside what was measured."""
    rows = []
    for name in WORK:
        found = results.get(name, {"pipeline": name, "tiny": False, "parts": {}})
        held = {figure.name: figure for figure in bars(found) if figure.bar is not None}
        for wanted, bar in _wanted(name):
            each = held.get(wanted)
            shown = UNKNOWN if each is None else f"{_value(each)}{_verdict(each, found)}"
            rows.append((wanted, bar, shown))
    return _table(("what", "bar", "measured"), rows)


def _wanted(name: str) -> list[tuple[str, str]]:
    """The names of a pipeline's barred figures, and the bars as people read them."""
    wanted = []
    if name in SECONDS_EXACT:
        wanted.append((f"{name}, exact", f"at most {SECONDS_EXACT[name]} s an image"))
    if name in SECONDS_FP8:
        wanted.append((f"{name}, fp8 drafts", f"at most {SECONDS_FP8[name]} s an image"))
    if name in TIMES_AS_FAST:
        wanted.append((f"{name}, as fast as one at a time", f"at least {TIMES_AS_FAST[name]} x"))
    busy = f"at least {BUSY:.0%} of the denoising phase"
    wanted.append((f"{name}, busy under Qwen and PNGs", busy))
    wanted.append((f"{name}, peak of memory off the plan's", f"at most {OFF:.0%}"))
    wanted.append((f"{name}, recompilations", f"at most {RECOMPILATIONS}"))
    return wanted


def _value(each: Figure) -> str:
    note = f" ({each.note})" if each.note else ""
    if each.unit in ("of it", "of the time"):
        return f"{each.median:.1%}{note}"
    number = f"{each.median:.0f}" if each.unit == "graphs" else significant(each.median)
    return f"{number}{'' if each.unit == 'graphs' else ' ' + each.unit}{note}"


def _verdict(figure: Figure, found: Mapping[str, Any]) -> str:
    return "" if found["tiny"] else f", {'pass' if figure.holds else 'MISS'}"


def _seconds(results: Results) -> str:
    rows = []
    for name in WORK:
        parts = results.get(name, {}).get("parts", {})
        exact: Mapping[str, Any] = next((parts[way] for way in EXACT if measured(parts, way)), {})
        judged = parts.get("judged", {})
        rows.append((
            name,
            *(_each(parts, part) for part in ("plain", "eager")),
            _each(parts, "compiled") + _larger(parts),
            f"{exact['times_as_fast']:.2f} x" if "times_as_fast" in exact else UNKNOWN,
            _judged(judged) if measured(parts, "judged") else _each(parts, "judged"),
            _each(parts, "fp8"),
            f"{exact['peak_gb']:.1f}, {exact['expected_peak_gb']:.1f} GB"
            if "peak_gb" in exact else UNKNOWN,
        ))  # fmt: skip
    return "Seconds an image, all in, and of its floor:\n\n" + _table(HEAD, rows)


def _each(parts: Mapping[str, Any], part: str) -> str:
    found = parts.get(part, {})
    if not measured(parts, part):
        return found.get("refused") or found.get("failed") or UNKNOWN
    share = found["share_of_floor"]
    return f"{found['seconds_an_image']:.3f}" + ("" if share is None else f" ({share:.0%})")


def _larger(parts: Mapping[str, Any]) -> str:
    """The same in larger batches, where that was measured."""
    if not measured(parts, "batched"):
        return ""
    return f"; {parts['batched']['batch_size']} at a time {_each(parts, 'batched')}"


def _judged(found: Mapping[str, Any]) -> str:
    text = f"{found['seconds_an_image']:.3f}, busy {found['busy_share']:.1%}"
    if found["device_share"] is not None:
        text += f" (NVML {found['device_share']:.1%})"
    return f"{text}; Qwen alone {found['judge']['seconds_an_image']:.3f}"


def _steps(results: Results) -> str:
    """Seconds of a step of one image by batch size, eager."""
    sizes = sorted({
        each["batch_size"]
        for found in results.values()
        for each in found["parts"].get("steps", {}).get("batches", ())
    })  # fmt: skip
    rows = []
    for name in WORK:
        batches = results.get(name, {}).get("parts", {}).get("steps", {}).get("batches", ())
        by_size = {each["batch_size"]: each for each in batches}
        rows.append((name, *(_step(by_size.get(size)) for size in sizes or [1])))
    head = ("pipeline", *(f"batch {size}" for size in sizes or [1]))
    return "Seconds of a step of one image, eager, by batch size:\n\n" + _table(head, rows)


def _step(each: Mapping[str, Any] | None) -> str:
    if each is None:
        return UNKNOWN
    share = each["share_of_floor"]
    return f"{each['seconds_a_step']:.4f}" + ("" if share is None else f" ({share:.0%})")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |"
                     for line in lines)  # fmt: skip


def put_between(path: Path, text: str) -> None:
    """Replace what stands between the marks."""
    whole = path.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path} has no '{BEGIN}' with '{END}' behind it: put them in.")
    write_atomically(path, f"{before}{begin}\n\n{text}\n\n{end}{after}".encode())


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("paths", nargs="*", type=Path, default=[RESULTS], metavar="PATH")
    flags.add_argument("--into", type=Path, help="a file with the two marks")
    args = flags.parse_args(argv)
    try:
        text = tables(read_all(args.paths))
        if args.into is not None:
            put_between(args.into, text)
        else:
            print(text)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
