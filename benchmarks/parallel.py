"""How much faster several processes are than one: the same run by each, on as many cores.

    python -m benchmarks.parallel --json parallel.json     # 2 processes of one thread, 16 prompts

Both are `main.py` as a user starts it, on one thread a process, taking turns. `search` counts from
the moment the first process has loaded its model to the run's end, and so counts against several
processes that others load more slowly; `whole` also counts Python, imports and loading, which
every process pays. All runs must leave the same bytes, times aside; a difference is an error.
As a part of `python -m benchmarks` it is two processes over four prompts, three turns at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, figure
from utils import ROOT, UserError, write_atomically

CONFIG = "configs/shapes_flux.json"
BAR = 1.8  # times the speed of one process, by two
TURNS = 3  # as a part: each is minutes
TIMES = ("seconds", "best_img_path")  # what differs between equal runs: times, the folder's name


def figures(repeats: int, quick: bool) -> list[Figure]:
    """Ratios of seconds, one process to two; nothing where two would share a core."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    if (cores := len(affinity(0)) if affinity else os.cpu_count() or 1) < 2:
        print(f"parallel: left out, for two processes need two cores and there is {cores}.")
        return []
    found = measure(_words(CONFIG, 2 if quick else 4, quick), 2, min(repeats, TURNS))
    one, two = found["seconds"]["1"], found["seconds"]["2"]
    ratios = {
        part: [a[part] / b[part] for a, b in zip(one, two, strict=True)]
        for part in found["speedup"]
    }
    return [
        figure("one process / two, search", "x", ratios["search"], bar=BAR, side="least"),
        figure("one process / two, whole command", "x", ratios["whole"]),
    ]


def run_once(words: Sequence[str], root: Path, processes: int) -> tuple[Path, dict[str, float]]:
    """One run by so many processes; its folder, and the seconds it took."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    shared = [sys.executable, "main.py", *words, "--output_dir", str(root), "--run_name", "run"]
    count = ["--num_shards", str(processes), "--shard_index"]
    began, started = time.time(), time.perf_counter()
    with ExitStack() as stack:
        logs = [stack.enter_context(open(root / f"{i}.log", "w+")) for i in range(processes)]
        children = [
            subprocess.Popen([*shared, *count, str(index)], cwd=ROOT, env=environ,
                             stdout=log, stderr=subprocess.STDOUT)
            for index, log in enumerate(logs)
        ]  # fmt: skip
        for child, log in zip(children, logs, strict=True):
            if code := child.wait():
                log.seek(0)
                raise UserError(f"A process ended with code {code}: {log.read()[-2000:]}")
    whole = time.perf_counter() - started
    (summary,) = root.rglob("summary.json")
    loaded = (summary.parent / "manifest.json").stat().st_mtime
    return summary.parent, {
        "whole": whole,
        "load": loaded - began,
        "search": summary.stat().st_mtime - loaded,
    }


def results(folder: Path) -> dict[str, Any]:
    """All that a run has left, times aside."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.name != "manifest.json":
            found[path.name] = _timeless(json.loads(path.read_bytes()))
        elif path.suffix == ".jsonl":
            lines = path.read_bytes().splitlines()
            found[path.name] = [_timeless(json.loads(line)) for line in lines]
        elif path.is_file() and path.name != "manifest.json":
            found[path.name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(v) for key, v in value.items() if key not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def measure(words: Sequence[str], processes: int, repeats: int) -> dict[str, Any]:
    """One process and several in turn."""
    taken: dict[int, list[dict[str, float]]] = {1: [], processes: []}
    first: dict[str, Any] | None = None
    before = os.getloadavg()
    for _ in range(repeats):
        for count, found in taken.items():
            with tempfile.TemporaryDirectory() as root:
                folder, seconds = run_once(words, Path(root), count)
                found.append(seconds)
                left = results(folder)
            first = first or left
            if left != first:
                differing = [n for n in first.keys() | left.keys() if first.get(n) != left.get(n)]
                raise UserError(f"{count} processes left other bytes: {', '.join(differing[:5])}.")
    medians = {
        count: {part: statistics.median(each[part] for each in found) for part in found[0]}
        for count, found in taken.items()
    }
    return {
        "processes": processes, "cores": os.cpu_count(), "repeats": repeats, "words": list(words),
        "seconds": {str(count): found for count, found in taken.items()},
        "medians": {str(count): found for count, found in medians.items()},
        "speedup": {p: medians[1][p] / medians[processes][p] for p in ("search", "whole")},
        "load_average": {"before": before, "after": os.getloadavg()},
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    count = found["processes"]
    lines = [
        f"{count} processes beside 1, one thread each, {found['cores']} cores, load average"
        f" {found['load_average']['before'][0]:.2f} at the start; medians of {found['repeats']}",
        f"{'seconds':12}{'load':>10}{'search':>10}{'whole':>10}",
    ]
    for name, part in found["medians"].items():
        times = "".join(f"{part[key]:10.2f}" for key in ("load", "search", "whole"))
        lines.append(f"{name + ' process' + 'es' * (name != '1'):12}{times}")
    speedup = found["speedup"]
    lines.append(f"{'speedup':22}{speedup['search']:10.2f}{speedup['whole']:10.2f}")
    lines.append("the same bytes: yes")
    return "\n".join(lines)


def _words(config: str, prompts: int, quick: bool) -> list[str]:
    """The flags of a run."""
    words = ["--pipeline_config_path", config, "--num_prompts", str(prompts)]
    if quick:
        words += ["--set", "search_args.search_rounds=1",
                  "--set", "pipeline_call_args.num_inference_steps=2"]  # fmt: skip
    return words


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("--config", default=CONFIG)
    flags.add_argument("--processes", type=int, default=2)
    flags.add_argument("--prompts", type=int, default=16)
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--json", type=Path, help="write everything measured there")
    flags.add_argument("--quick", action="store_true", help="only to see that it runs")
    args = flags.parse_args(argv)
    prompts = args.processes if args.quick else args.prompts
    words = _words(args.config, prompts, args.quick)
    try:
        if args.processes < 2 or args.repeats < 1 or prompts < args.processes:
            raise UserError("--processes must be at least 2, --prompts as many, --repeats 1.")
        found = measure(words, args.processes, 1 if args.quick else args.repeats)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    if args.json is not None:
        write_atomically(args.json, (json.dumps(found, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
