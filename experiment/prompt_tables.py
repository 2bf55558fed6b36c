"""Tables of prompts: CSV, TSV, JSON, JSONL and parquet files, and what `datasets` reads.

A table knows its columns before it reads a row, so that of a dataset with pictures in it only the
prompts are read, and only as many as a run takes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.packages import refuse_missing
from utils import UserError, did_you_mean

Pair = tuple[str, str | None]  # a prompt and its category
Row = Mapping[str, Any]

PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption")
CATEGORY = "category"


@dataclass(frozen=True)
class Table:
    """Rows with named columns.

    name: as the user knows it. columns: all of them. textual: those that hold texts. rows: reads
    these columns of every row, one row after the other.
    """

    name: str
    columns: tuple[str, ...]
    textual: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterable[Row]]

    def prompts(self, column: str | None = None, category: str = CATEGORY) -> Iterator[Pair]:
        """The prompts in order, blank ones left out."""
        if not self.columns:
            return
        prompt, group = self.prompt_column(column), self._named(category)
        for number, row in enumerate(self.rows([name for name in (prompt, group) if name]), 1):
            text = row.get(prompt)
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"Row {number} of '{self.name}' has no text in the column '{prompt}': set"
                    f" prompts_column to one of {', '.join(self.columns)}."
                )
            if text and text.strip():
                kind = row.get(group) if group else None
                yield text.strip(), None if kind is None else str(kind).strip() or None

    def prompt_column(self, wanted: str | None) -> str:
        """The column that is asked for; unset, the one that its name or its type gives away."""
        if wanted is not None:
            if found := self._named(wanted):
                return found
            raise UserError(
                f"'{self.name}' has no column '{wanted}': {did_you_mean(wanted, self.columns)}"
            )
        for name in PROMPT_COLUMNS:
            if found := self._named(name):
                return found
        texts = [name for name in self.textual if name.lower() != CATEGORY]
        if len(texts) == 1:
            return texts[0]
        raise UserError(
            f"'{self.name}' does not say which column holds the prompts: set prompts_column to one"
            f" of {', '.join(self.columns)}."
        )

    def _named(self, wanted: str) -> str | None:
        """The column of this name; upper and lower case count only where several differ by it."""
        same = [name for name in self.columns if name.lower() == wanted.lower()]
        return wanted if wanted in same else next(iter(same), None)


def read_table(path: Path) -> Table:
    """The table in a file; what is wrong with it is said in one sentence."""
    try:
        return READERS[path.suffix.lower()](path)
    # Bad UTF-8 and bad JSON are ValueErrors, JSON that is nested too deeply is the last.
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"The prompt file '{path}' cannot be read: {reason}.") from error


def _comma_separated(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _listed(path, list(csv.DictReader(file)))


def _tab_separated(path: Path) -> Table:
    """Most writers quote no field of a TSV, so a quotation mark may be a prompt's own first."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = list(csv.DictReader(file, delimiter="\t", strict=True))
        except csv.Error:
            file.seek(0)
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return _listed(path, rows)


def _json_lines(path: Path) -> Table:
    # Not splitlines(): a prompt may hold U+2028, which is no end of a line in a file.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
    return _listed(path, rows)


def _json(path: Path) -> Table:
    """A list of objects, or an object of objects by their ids."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    rows = list(content.values()) if isinstance(content, dict) else content
    return _listed(path, rows)


def _listed(path: Path, rows: Any) -> Table:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("each row must be an object with named columns")
    columns = tuple(dict.fromkeys(name for row in rows for name in row if name is not None))
    textual = tuple(name for name in columns if _is_text([row.get(name) for row in rows]))
    return Table(str(path), columns, textual, lambda _: rows)


def _is_text(values: Iterable[Any]) -> bool:
    """Whether the values are texts and not all of them numbers, which CSV writes as texts too."""
    known = [value for value in values if value not in (None, "")]
    return all(isinstance(value, str) for value in known) and not all(map(_is_number, known))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> Table:
    refuse_missing(f"The prompt file '{path}'", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    textual = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(columns)):
                yield from batch.to_pylist()

    return Table(str(path), tuple(schema.names), tuple(textual), rows)


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
