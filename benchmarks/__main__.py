"""What the project costs and claims on a CPU, in one command.

    python -m benchmarks       # all of it: minutes, on a machine that does nothing else
    python -m benchmarks overhead search --repeats 9 --json bench.json

Parts: overhead (of the loop, a candidate), pictures (PNG and journal), startup (--help, a plan),
search (a whole search beside plain loops), judge (a judge elsewhere that takes its time), parallel
(two processes beside one, where there are two cores).
Figures are medians over the repeats, with the least and the most. Exit codes: 0; 1 a bar is missed
(not with --quick); 2 a flag is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from utils import UserError, did_you_mean, write_atomically

PARTS = ("overhead", "pictures", "startup", "search", "judge", "parallel")
BUSY = 0.5  # load a core, above which figures are the neighbours' as much as ours


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser("python -m benchmarks", None, __doc__, formatter_class=raw)
    flags.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--json", type=Path, help="write everything measured there")
    flags.add_argument("--quick", action="store_true", help="only to see that it runs")
    args = flags.parse_args(argv)
    try:
        for part in args.parts:
            if part not in PARTS:
                raise UserError(f"There is no part '{part}': {did_you_mean(part, PARTS)}")
        if args.repeats < 1:
            raise UserError("--repeats must be at least 1.")
        found, short = measure(args.parts or PARTS, 1 if args.quick else args.repeats, args.quick)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json is not None:
        write_atomically(args.json, (json.dumps(found, indent=2) + "\n").encode())
    if short:
        print(f"Bars missed: {'; '.join(short)}.", file=sys.stderr)
    return 1 if short else 0


def measure(parts: Sequence[str], repeats: int, quick: bool) -> tuple[dict[str, object], list[str]]:
    """Run the parts and print each as it is done; returns everything, and whose bars are missed."""
    from benchmarks.figures import machine, missed, table, unbarred

    before = machine()
    load = before["load_average"][0] / (os.cpu_count() or 1)
    if load > BUSY:
        print(f"Other work is running here ({load:.1f} a core): measure again when it is not.\n")
    done: dict[str, object] = {}
    short: list[str] = []
    for part in parts:
        started = time.perf_counter()
        figures = import_module(f"benchmarks.{part}").figures(repeats, quick)
        figures = unbarred(figures) if quick else figures
        print(table(f"{part}, {time.perf_counter() - started:.0f} s", figures), flush=True)
        done[part] = [each.recorded() for each in figures]
        short += [f"{part}, {name}" for name in missed(figures)]
    return {"machine": before, "repeats": repeats, "quick": quick, "parts": done}, short


if __name__ == "__main__":
    sys.exit(main())
