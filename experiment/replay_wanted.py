"""Which recorded candidate is meant: by its id, its seed, or its picture's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.records import CANDIDATES, parse_name
from utils import UserError

Row = Mapping[str, Any]
SHOWN = 3  # prompts that a message tells the numbers of
LONGEST = 40  # characters of a prompt there


def wanted(rows: Sequence[Row], candidate: str) -> Row:
    """The row that is meant.

    candidate: "ID", or "PROMPT:ID" in a run over several prompts, which are counted from 0; a seed;
    or the name of its image. A candidate that has several rows is meant as it was finished.
    """
    if parse_name(Path(candidate)) is not None:
        return _last(
            [row for row in rows if row.get("path") == Path(candidate).name], candidate, rows
        )
    prompt, _, number = candidate.rpartition(":")
    mine = [row for row in rows if prompt in ("", str(row["prompt_index"]))]
    by_id = [row for row in mine if str(row["id"]) == number]
    if len({row["prompt_index"] for row in by_id}) > 1:
        raise UserError(
            f"Each of the run's prompts has a candidate {number}: say which prompt, counted from 0,"
            f" as --candidate PROMPT:{number} ({_numbered(rows)}), or give the image's file name."
        )
    return by_id[0] if by_id else _last([r for r in mine if str(r["seed"]) == number], number, rows)


def _last(found: Sequence[Row], candidate: str, rows: Sequence[Row]) -> Row:
    if found:
        return max(found, key=lambda row: (not row.get("draft"), row["step"], row["id"]))
    ids = {row["prompt_index"]: row["id"] for row in rows}
    most = max(ids.values(), default=0)
    raise UserError(
        f"The run has no candidate '{candidate}': give an id from 0 to {most} (the # of the report,"
        f" 'id' in {CANDIDATES}), after the prompt's number and a colon where there are several"
        f" ({_numbered(rows)}); or a seed, or an image's file name."
    )


def _numbered(rows: Sequence[Row]) -> str:
    """The first of the prompts with their numbers."""
    texts = {row["prompt_index"]: " ".join(row["prompt"].split()) for row in rows}
    shown = [
        f"{index} is '{text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}'"
        for index, text in sorted(texts.items())[:SHOWN]
    ]
    return ", ".join(shown) + (", ..." if len(texts) > SHOWN else "")
