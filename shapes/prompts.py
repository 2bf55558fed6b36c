"""The benchmark's prompts, spread over the kinds of scene: `python -m shapes.prompts` writes them.

One prompt a line: the caption, a tab, the kind.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from shapes.world import KINDS, draw_scene

NUMBER, SEED = 200, 2026
FILE = Path(__file__).with_name("prompts.txt")


def draw_prompts(number: int = NUMBER, seed: int = SEED) -> list[tuple[str, str]]:
    """Different captions with their kinds, the kinds taking turns: any first few are mixed."""
    rng = random.Random(seed)
    kinds = list(KINDS)
    wanted = {kind: len(range(at, number, len(kinds))) for at, kind in enumerate(kinds)}
    captions: dict[str, dict[str, None]] = {kind: {} for kind in kinds}
    while any(len(captions[kind]) < wanted[kind] for kind in kinds):
        scene = draw_scene(rng)
        if len(captions[scene.kind]) < wanted[scene.kind]:
            captions[scene.kind][scene.caption] = None
    queues = {kind: iter(captions[kind]) for kind in kinds}
    turns = (kinds[at % len(kinds)] for at in range(number))
    return [(next(queues[kind]), kind) for kind in turns]


def as_text(prompts: list[tuple[str, str]]) -> str:
    """The content of a prompts file."""
    return "".join(f"{caption}\t{kind}\n" for caption, kind in prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    args.out.write_text(as_text(draw_prompts(args.number, args.seed)), encoding="utf-8")


if __name__ == "__main__":
    main()
