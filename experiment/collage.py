"""Pictures of a run: the best of each round side by side, and all candidates of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass
class Ended:
    """What a prompt's rows tell of its rounds.

    scored: by round, whether any of its finished images has a score. best: the run's choice.
    """

    scored: dict[int, bool] = field(default_factory=dict)
    best: CandidateRecord | None = None


def pictures(
    folder: Path, *, per_round: bool = False, tell: Callable[[str], None] | None = None
) -> Iterator[Picture]:
    """One collage for each prompt of a run folder; with `per_round` also a grid for each round.

    A prompt's videos are shown twice: as a video of them all, and by keyframes. `tell` is told of
    records that cannot be read, which are left out.
    """
    rounds = read_rounds(folder, tell)
    images = [*result_files(folder, ".png"), *result_files(folder, ".mp4")]
    keys = {record.key for record in rounds} | {image.key for image in images}
    names = _distinct_names(sorted(keys))
    best = _chosen(folder, tell)
    ended = _ended(folder, best, tell)
    for key, records in by_prompt(rounds).items():
        collage = _collage(folder, names[key], records, best, ended.get(key, Ended()))
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


def _ended(
    folder: Path, best: Collection[str], tell: Callable[[str], None] | None
) -> dict[PromptKey, Ended]:
    """By prompt the rounds that came to an end; none where there are no rows to tell."""
    try:
        rows = read_candidates(folder)
    except UserError as error:
        if tell is None:
            raise
        tell(f"Rounds that were rejected are not marked: {error}")
        return {}
    # Of a rejected round no picture is kept, so a prompt's rows tell its files' names together.
    keys = {row.prompt_index: file.key for row in rows
            if row.path is not None and (file := parse_name(folder / row.path))}  # fmt: skip
    found: dict[PromptKey, Ended] = {}
    for row in rows:
        if row.prompt_index in keys and row.step == row.steps and not row.draft:
            ended = found.setdefault(keys[row.prompt_index], Ended())
            ended.scored[row.round] = ended.scored.get(row.round, False) or row.status == "ok"
            ended.best = row if row.path in best else ended.best
    return found


def _without_record(records: Sequence[RoundRecord], scored: dict[int, bool]) -> str:
    """The rounds that left no record, and why; empty where there are none."""
    left = sorted(scored.keys() - {record.search_round for record in records})
    told = []
    for why, numbers in (
        ("rejected (none beat its pivot)", [number for number in left if scored[number]]),
        ("without a score", [number for number in left if not scored[number]]),
    ):
        if numbers:
            which = ", ".join(f"i={number}" for number in numbers)
            told.append(f"{which} {why}")
    return "".join(f"; {each}" for each in told)


def _collage(
    folder: Path,
    name: str,
    records: Sequence[RoundRecord],
    best: Collection[str],
    ended: Ended,
) -> Picture:
    tiles = _best_of_rounds(folder, records, best, ended.best)
    rows = math.ceil(len(tiles) / LONGEST_ROW)
    return Picture(
        name=f"collage_{name}_i@{records[0].search_round}-{records[-1].search_round}.png",
        caption=_caption(records[0].prompt, records[0].key),
        note=drawable(
            f"{_metric(records[0])} of the best of each round"
            + _without_record(records, ended.scored)
        ),
        tiles=tiles,
        columns=math.ceil(len(tiles) / rows),
    )


def _best_of_rounds(
    folder: Path,
    records: Sequence[RoundRecord],
    best: Collection[str],
    chosen: CandidateRecord | None,
) -> tuple[Tile, ...]:
    """The rounds' best in order; the run's own choice among them, also if it is the pivot of a
    round that was rejected."""
    shown = {record.image_path.name for record in records}
    apart = chosen if chosen is not None and chosen.path not in shown else None
    winner = None if apart is not None else _best_of(records, best)
    tiles = [
        (
            record.search_round,
            Tile(
                path=record.image_path,
                label=f"i={record.search_round}  {significant(record.score)}",
                framed=record is winner,
            ),
        )
        for record in records
    ]
    if apart is not None and apart.path is not None:
        label = f"i={apart.round}  {significant(apart.score)}"
        tiles.append((apart.round, Tile(folder / apart.path, label, framed=True)))
    return tuple(tile for _, tile in sorted(tiles, key=lambda each: each[0]))


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
    sizes = {(record.key, record.search_round): record.num_noises for record in rounds}
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
                    f"round {number}: seed and {_metric(known.get(key))},"
                    f" {_size(len(candidates), sizes.get((key, number), 0))}"
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


def _size(shown: int, pool: int) -> str:
    """How many candidates there are; of a pool that was extended, how many of it are new."""
    return f"{shown} new of {pool}" if pool > shown else f"n={shown}"


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
