"""How often the bundled models are right: the first image, the verifier's best of 16, any of 16.

    python -m benchmarks.shapes --config configs/shapes_flux.json --num_prompts 48

A nested random search of 16 images a prompt, judged by the oracle from the images on disk.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from experiment.config import load_config
from experiment.records import CandidateRecord, read_candidates
from experiment.runner import run
from shapes.oracle import judge
from utils import UserError

ROUNDS = 4  # 2 ** 4 images
OVERRIDES: dict[str, Any] = {
    "search_args": {"search_method": "random", "search_rounds": ROUNDS, "pool": "nested"},
    "judges": [],
    "prompt": None,
}


@dataclass(frozen=True)
class Right:
    """What the oracle says of one prompt's images."""

    first: bool
    best: bool
    any: bool


def measure(config_path: str, num_prompts: int | str, output_dir: str) -> list[Right]:
    """Search for each prompt, then judge its images."""
    config = load_config(config_path, {**OVERRIDES, "num_prompts": num_prompts})
    folder = run(config, output_dir).folder
    by_prompt: dict[int, list[CandidateRecord]] = {}
    for row in read_candidates(folder):
        by_prompt.setdefault(row.prompt_index, []).append(row)
    return [_judged(folder, rows) for _, rows in sorted(by_prompt.items())]


def _judged(folder: Path, rows: Sequence[CandidateRecord]) -> Right:
    right = {}
    for row in rows:
        assert row.path is not None
        with Image.open(folder / row.path) as image:
            right[row.id] = judge(image, row.prompt).right
    best = max(rows, key=lambda row: (row.score, -row.id))
    return Right(right[0], right[best.id], any(right.values()))


def share(hits: Sequence[bool], draws: int = 2000) -> str:
    """A share in percent with its 95 % bootstrap interval over prompts."""
    rng = random.Random(0)
    means = sorted(sum(rng.choices(hits, k=len(hits))) / len(hits) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws)]
    return f"{sum(hits) / len(hits):5.0%}  [{low:.0%}, {high:.0%}]"


def report(found: Sequence[Right]) -> str:
    lines = [
        ("first image right", [right.first for right in found]),
        ("best of 16 by the verifier right", [right.best for right in found]),
        ("any of 16 right", [right.any for right in found]),
    ]
    return "\n".join(f"{name:<36}{share(hits)}" for name, hits in lines)


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    flags.add_argument("--config", default="configs/shapes_flux.json")
    flags.add_argument("--num_prompts", default="48", help="a number, or all")
    flags.add_argument("--output_dir", help="keep the images here")
    args = flags.parse_args(argv)
    number = args.num_prompts if args.num_prompts == "all" else int(args.num_prompts)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(args.config, number, args.output_dir or scratch)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{args.config}, {len(found)} prompts\n{report(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
