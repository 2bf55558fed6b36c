"""Pictures of a run: the best of each round side by side, and all candidates of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from experiment.drawing import Picture, Tile
from experiment.lettering import OMITTED, drawable
from experiment.records import (
    CandidateRecord,
    PromptKey,
    ResultFile,
    RoundRecord,
    by_prompt,
    parse_name,
    read_best,
    read_candidates,
    read_rounds,
    result_files,
)
from experiment.video_collage import contact_sheet, film
from utils import UserError, significant

LONGEST_ROW = 8


def pictures(
    folder: Path, *, per_round: bool = False, tell: Callable[[str], None] | None = None
) -> Iterator[Picture]:
    """One collage a prompt of a run folder; with `per_round` also a grid for each round.

    A prompt's videos are shown twice: as a video of them all, and by keyframes. `tell` is told of
    records that cannot be read, which are left out.
    """
    rounds = read_rounds(folder, tell)
    images = [*result_files(folder, ".png"), *result_files(folder, ".mp4")]
    keys = {record.key for record in rounds} | {image.key for image in images}
    names = _distinct_names(sorted(keys))
    best = _chosen(folder, tell)
    for key, records in by_prompt(rounds).items():
        collage = _collage(names[key], records, best)
        if any(tile.path.suffix == ".mp4" for tile in collage.tiles):
            yield film(collage)
            yield contact_sheet(collage)
        else:
            yield collage
    if per_round:
        yield from _round_grids(folder, names, rounds, images)


def _chosen(folder: Path, tell: Callable[[str], None] | None) -> Collection[str]:
    try:
        return read_best(folder)
    except UserError as error:
        if tell is None:
            raise
        tell(f"The best are taken by their scores: {error}")
        return ()


def _collage(name: str, records: Sequence[RoundRecord], best: Collection[str]) -> Picture:
    winner = _best_of(records, best)
    rows = math.ceil(len(records) / LONGEST_ROW)
    return Picture(
        name=f"collage_{name}_i@{records[0].search_round}-{records[-1].search_round}.png",
        caption=_caption(records[0].prompt, records[0].key),
        note=drawable(f"{_metric(records[0])} of the best of each round"),
        tiles=tuple(
            Tile(
                path=record.image_path,
                label=f"i={record.search_round}  {significant(record.score)}",
                framed=record is winner,
            )
            for record in records
        ),
        columns=math.ceil(len(records) / rows),
    )


def _round_grids(
    folder: Path,
    names: dict[PromptKey, str],
    rounds: Sequence[RoundRecord],
    images: Sequence[ResultFile],
) -> Iterator[Picture]:
    """All candidates of a round that have an image, in the order in which they were drawn.

    tt-scale-flux writes no rows of candidates: there only the winner's score is known.
    """
    # A candidate that was scored again has several rows; the last one stands.
    rows = {row.path: row for row in read_candidates(folder) if row.path is not None}
    recorded = [parse_name(folder / path) for path in rows]
    winners = {record.image_path.name: record for record in rounds}
    known = {record.key: record for record in rounds}
    files = {file.path.name: file for file in [*recorded, *images] if file is not None}

    for key, of_prompt in by_prompt(files.values()).items():
        by_round: dict[int, list[ResultFile]] = {}
        for file in of_prompt:
            by_round.setdefault(file.search_round, []).append(file)
        for number, candidates in sorted(by_round.items()):
            yield Picture(
                name=f"round_{names.get(key, f'{key.slug}_hash@{key.hash}')}_i@{number}.png",
                caption=_caption(_prompt_of(key, known), key),
                note=drawable(
                    f"round {number}: seed and {_metric(known.get(key))}, n={len(candidates)}"
                ),
                tiles=tuple(
                    Tile(
                        path=file.path,
                        label=f"{file.seed}  {_verdict(file.path.name, rows, winners)}".rstrip(),
                        framed=file.path.name in winners,
                    )
                    for file in candidates
                ),
                columns=math.ceil(math.sqrt(len(candidates))),
                labels_below=True,
            )


def _distinct_names(keys: Sequence[PromptKey]) -> dict[PromptKey, str]:
    """The slugs, and the hash too where an earlier prompt of the folder has the same slug."""
    names: dict[PromptKey, str] = {}
    taken = set()
    for key in keys:
        slug = key.slug.casefold()  # file systems that ignore case would overwrite one with another
        names[key] = f"{key.slug}_hash@{key.hash}" if slug in taken else key.slug
        taken.add(slug)
    return names


def _best_of(records: Sequence[RoundRecord], best: Collection[str]) -> RoundRecord | None:
    """The round that the run chose in the end, else the first with the highest score."""
    for record in records:
        if record.image_path.name in best:
            return record
    scored = [record for record in records if not math.isnan(record.score)]
    return max(scored, key=lambda record: record.score, default=None)


def _prompt_of(key: PromptKey, known: dict[PromptKey, RoundRecord]) -> str:
    return known[key].prompt if key in known else key.slug.replace("_", " ")


def _verdict(name: str, rows: dict[str, CandidateRecord], winners: dict[str, RoundRecord]) -> str:
    """A candidate's score, or what became of it; nothing where nothing is known."""
    if name in rows:
        row = rows[name]
        return significant(row.score) if row.status == "ok" else row.status
    return significant(winners[name].score) if name in winners else ""


def _metric(record: RoundRecord | None) -> str:
    return (record.choice_of_metric if record is not None else "") or "score"


def _caption(prompt: str, key: PromptKey) -> str:
    """What the font can show of a prompt; with its hash where that is not all."""
    shown = drawable(prompt)
    return f"{shown} (hash {key.hash})" if OMITTED in shown else shown
