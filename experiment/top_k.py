"""The best images of each prompt beside one another, with their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from experiment.drawing import Picture, Tile
from experiment.lettering import OMITTED, drawable
from experiment.report_measures import Told
from experiment.report_run import Candidate, Searched
from utils import path_part, significant

LONGEST_ROW = 8


def top_pictures(run: Told, k: int) -> Iterator[Picture]:
    """A picture for each prompt that has a scored image, the best first and framed.

    Of tt-scale-flux's trees only the rounds' winners have scores, so these are what is ranked.
    """
    taken: set[str] = set()
    for searched in run.run.searched:
        best = top(searched, k)
        if not best:
            continue
        slug, _, digest = searched.stem.removeprefix("prompt@").rpartition("_hash@")
        # File systems that ignore case would overwrite one with another.
        name = slug if slug.casefold() not in taken else f"{slug}_hash@{digest}"
        taken.add(slug.casefold())
        rows = math.ceil(len(best) / LONGEST_ROW)
        yield Picture(
            name=f"top_{path_part(name)}_{k}.png",
            caption=_caption(searched, digest),
            note=drawable(f"the best {len(best)} by {run.metric}"),
            tiles=tuple(
                Tile(_path(run, each), significant(each.score), framed=each is best[0])
                for each in best
            ),
            columns=math.ceil(len(best) / rows),
        )


def top(searched: Searched, k: int) -> list[Candidate]:
    """The finished candidates with the highest scores, the run's own choice first."""
    images: dict[str, Candidate] = {}  # one that was scored again has two rows: the last one stands
    for each in searched.candidates:
        if each.finished and each.path and not math.isnan(each.score):
            images[each.path] = each
    chosen = searched.best.id if searched.best else None
    order = sorted(images.values(), key=lambda each: (each.id != chosen, -each.score, each.id))
    return order[:k]


def _path(run: Told, candidate: Candidate) -> Path:
    assert candidate.path is not None
    return run.run.folder / candidate.path


def _caption(searched: Searched, digest: str) -> str:
    """What the font can show of a prompt; with its hash where that is not all."""
    shown = drawable(searched.text)
    return f"{shown} (hash {digest})" if OMITTED in shown else shown
