"""Exports in parquet, images inside: all images, and pairs of a better and a worse one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from experiment.export_folders import rows_of
from experiment.export_read import Notes, Sample
from utils import UserError, digest

FILE = "data/train-00000-of-00001.parquet"  # by its name the hub and `datasets` know the split
ROWS_AT_ONCE = 64  # images of so many rows are in memory
IMAGE = {"_type": "Image"}  # how `datasets` notes in a file that a column holds pictures
QUESTION = (
    'Which of these two images shows the following better? "{}" Answer with "first" or "second".'
)


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt in the order in which they are shown."""

    first: Sample
    second: Sample

    @property
    def first_is_better(self) -> bool:
        return self.first.score > self.second.score


def pairs_of(samples: Iterable[Sample], margin: float) -> list[Pair]:
    """Each prompt's best with its worst, second best with second worst, and so on, as long as
    their scores are further apart than the margin.

    So no image stands in two pairs, and none decides for a whole prompt. Scores compare within a
    run and a prompt only. Which of the two comes first is drawn by their names, else a reader could
    learn to say always the same.
    """
    prompts: dict[tuple[Path, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        prompts[sample.run, sample.prompt_index].append(sample)
    pairs = []
    for group in prompts.values():
        ranked = sorted(group, key=lambda sample: (-sample.score, sample.id))
        for better, worse in islice(zip(ranked, reversed(ranked), strict=True), len(ranked) // 2):
            if better.score - worse.score > margin:
                key = f"{better.prompt}\x1f{better.seed}\x1f{worse.seed}"
                first = int(digest(key)[0], 16) < 8
                pairs.append(Pair(better, worse) if first else Pair(worse, better))
    return pairs


def all_images(samples: Sequence[Sample], folder: Path, notes: Notes) -> None:
    """One row an image, with what is recorded of it."""
    rows = rows_of(samples)
    columns: dict[str, Any] = {"image": _image(), **{n: _type(v) for n, v in _widest(rows).items()}}
    filled = (
        {"image": _encoded(sample, f"{number:06d}"), **row}
        for number, (sample, row) in enumerate(zip(samples, rows, strict=True))
    )
    _write(folder / FILE, columns, {"image": IMAGE}, filled)


def preferences(pairs: Sequence[Pair], folder: Path) -> None:
    """Pick-a-Pic's columns, which diffusers' scripts for Diffusion-DPO read: encoded images as
    plain bytes, and label_0 1 where jpg_0 is the better one."""
    import pyarrow as pa

    columns = {
        "jpg_0": pa.binary(), "jpg_1": pa.binary(), "label_0": pa.float64(),
        "label_1": pa.float64(), "caption": pa.string(), "score_0": pa.float64(),
        "score_1": pa.float64(), "seed_0": pa.int64(), "seed_1": pa.int64(),
        "category": pa.string(), "run": pa.string(),
    }  # fmt: skip
    rows = (
        {
            "jpg_0": pair.first.image.read_bytes(),
            "jpg_1": pair.second.image.read_bytes(),
            "label_0": float(pair.first_is_better),
            "label_1": float(not pair.first_is_better),
            "caption": pair.first.prompt,
            "score_0": pair.first.score,
            "score_1": pair.second.score,
            "seed_0": pair.first.seed,
            "seed_1": pair.second.seed,
            "category": pair.first.category,
            "run": pair.first.run_name,
        }
        for pair in pairs
    )
    _write(folder / FILE, columns, {}, rows)


def preferences_trl(pairs: Sequence[Pair], folder: Path) -> None:
    """TRL's columns for vision-language models: both images and a question, the right answer and
    the wrong one; a judge can be trained by it."""
    import pyarrow as pa

    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    talk = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
    columns = {"images": pa.list_(_image()), "prompt": talk, "chosen": talk, "rejected": talk}
    rows = (
        {
            "images": [_encoded(pair.first, "first"), _encoded(pair.second, "second")],
            "prompt": _said("user", QUESTION.format(pair.first.prompt), images=2),
            "chosen": _said("assistant", "first" if pair.first_is_better else "second"),
            "rejected": _said("assistant", "second" if pair.first_is_better else "first"),
        }
        for pair in pairs
    )
    _write(folder / FILE, columns, {"images": [IMAGE]}, rows)


def _said(role: str, text: str, images: int = 0) -> list[dict[str, Any]]:
    shown = [{"type": "image", "text": None}] * images
    return [{"role": role, "content": [*shown, {"type": "text", "text": text}]}]


def _encoded(sample: Sample, name: str) -> dict[str, Any]:
    return {"bytes": sample.image.read_bytes(), "path": f"{name}.png"}


def _image() -> Any:
    import pyarrow as pa

    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _widest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each column a value that is not null."""
    return {name: next(row[name] for row in rows if row[name] is not None) for name in rows[0]}


def _type(value: Any) -> Any:
    """The column type of a value; numbers of verifiers may be missing from this very one."""
    import pyarrow as pa

    if isinstance(value, dict):
        return pa.struct([(name, _type(inner)) for name, inner in value.items()])
    if isinstance(value, bool):
        return pa.bool_()
    return {str: pa.string(), int: pa.int64()}.get(type(value), pa.float64())


def _write(
    path: Path,
    columns: Mapping[str, Any],
    pictures: Mapping[str, Any],
    rows: Iterator[dict[str, Any]],
) -> None:
    """A parquet file of these columns, written a few rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    noted = {"huggingface": json.dumps({"info": {"features": pictures}})} if pictures else None
    schema = pa.schema(list(columns.items()), metadata=noted)
    path.parent.mkdir()
    written = 0
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            written += len(some)
    if not written:
        raise UserError("No two images of a prompt are further apart than --margin: lower it.")
