"""What a long run costs beside its model: memory over thousands of prompts, and the way back in.

    python -m benchmarks.soak                # 2,000 prompts on a pipeline that costs nothing
    python -m benchmarks.soak --scan 100000  # rows of a run that is read, and gone on with

The first prints the process's memory in use as the prompts go by, and its slope; the second how
many seconds of one core readers take for that many candidates, and a resume for what it does before
its first batch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.still import still_checkpoint
from experiment.config import ExperimentConfig, parse_config
from experiment.plan import Plan
from experiment.progress import Progress
from experiment.prompts import Prompt
from experiment.records import read_candidates
from experiment.runner import load, plan
from experiment.runs import listed_runs
from experiment.searching import Experiment
from experiment.store import RunStore

WARM_UP = 0.25  # of the prompts: caches fill, the allocator settles
PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Soaked:
    """Megabytes in use after each prompt, and seconds of one core that each took."""

    megabytes: Sequence[float]
    seconds: Sequence[float]

    @property
    def slope(self) -> float:
        """Kilobytes a prompt, by least squares after the warm-up."""
        settled = self.megabytes[int(len(self.megabytes) * WARM_UP) :]
        return float(np.polyfit(np.arange(len(settled)), settled, 1)[0] * 1000)

    def __str__(self) -> str:
        n = len(self.megabytes)
        shown = [self.megabytes[min(n - 1, n * share // 4)] for share in range(5)]
        rows = "  ".join(f"{value:.0f}" for value in shown)
        first, last = (np.median(part) * 1e3 for part in (self.seconds[:100], self.seconds[-100:]))
        return (
            f"prompts          {n}\n"
            f"MB in use        {rows}  (at the start, at each quarter)\n"
            f"slope            {self.slope:+.2f} KB a prompt after the first quarter\n"
            f"ms a prompt      {first:.1f} among the first hundred, {last:.1f} among the last"
        )


def soak(folder: Path, prompts: int) -> Soaked:
    """Search for so many prompts, four images each."""
    config, planned = _planned(folder, prompts)
    engine = load(config, planned)
    store = RunStore.create(str(folder), config)
    run = Experiment(config, engine.denoiser, engine.verifier, {}, store, planned, 4)
    megabytes: list[float] = []
    ends = [time.process_time()]
    done = run._done

    def watched(*args: Any) -> None:
        done(*args)
        megabytes.append(_in_use())
        ends.append(time.process_time())

    run._done = watched  # type: ignore[assignment, method-assign]
    with contextlib.redirect_stdout(io.StringIO()):
        run.run()
    return Soaked(megabytes, np.diff(ends).tolist())


def scan(folder: Path, rows: int, prompts: int) -> list[tuple[str, float]]:
    """Seconds that each reader takes for a run of so many rows, and a resume to find its way."""
    config, planned = _planned(folder, prompts)
    store = RunStore.create(str(folder), config)
    store.write_json("config.json", config.resolved())
    _fill(store, planned.prompts, rows // prompts)
    return [
        ("read candidates.jsonl", _timed(lambda: read_candidates(store.folder))),
        ("list the run", _timed(lambda: listed_runs(str(folder)))),
        (
            "resume: check what is done",
            _timed(
                lambda: Progress(RunStore(store.folder, config.export), planned.prompts, 4),
            ),
        ),
    ]


def _fill(store: RunStore, prompts: Sequence[Prompt], each: int) -> None:
    """Rows, round records and progress as if all prompts but the last were done."""
    progress = Progress(store, prompts, 4)
    store.state.mkdir()
    for prompt in prompts[:-1]:
        store.append_rows([_row(prompt, i) for i in range(each)])
        store.write_round(prompt, 1, prompt.index, {"prompt": prompt.text, "best_score": 1.0})
        progress.add(prompt, {"prompt": prompt.text, "prompt_index": prompt.index}, 4)


def _row(prompt: Prompt, i: int) -> dict[str, Any]:
    return {
        "id": i,
        "prompt": prompt.text,
        "prompt_index": prompt.index,
        "round": 1 + i // 4,
        "step": 4,
        "steps": 4,
        "seed": 1_000_003 * i,
        "recipe": {"op": "draw", "index": i},
        "parents": [],
        "status": "ok",
        "score": i / 7,
        "scores": {"clip": {"clip_score": i / 7}},
        "judges": {},
        "explanation": "what a grader has to say of an image, in a sentence or two " * 3,
        "details": {},
        "guidance": 1.0,
        "draft": False,
        "nfe": 4,
        "rows": 4,
        "batch_size": 4,
        "seconds": 0.123456,
        "path": f"{prompt.stem}_i@{1 + i // 4}_s@{1_000_003 * i}.png",
    }


def _planned(folder: Path, prompts: int) -> tuple[ExperimentConfig, Plan]:
    path = folder / "prompts.txt"
    path.write_text("".join(f"prompt number {i}\n" for i in range(prompts)))
    config = parse_config(
        {
            **still_checkpoint(folder / "still"),
            "pipeline_call_args": {"num_inference_steps": 4},
            "verifier_args": {"name": "contrast"},
            "search_args": {"search_method": "random", "search_rounds": 2, "pool": "nested"},
            "prompts": str(path),
            "num_prompts": "all",
            "batch_size_for_img_gen": 4,
        }
    )
    return config, plan(config)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one core, whatever else the machine does."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _in_use() -> float:
    """Megabytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--scan", type=int, metavar="ROWS", help="time readers on so many rows")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.scan is not None:
            times = scan(Path(folder), args.scan, args.prompts)
            print("\n".join(f"{name:<28}{seconds:.2f} s" for name, seconds in times))
            figures: dict[str, Any] = dict(times)
        else:
            soaked = soak(Path(folder), args.prompts)
            print(soaked)
            figures = {"megabytes": soaked.megabytes, "slope_kb": soaked.slope}
    if args.json is not None:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
