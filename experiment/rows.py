"""The rows of `candidates.jsonl` as bytes: which prompt each is of, and whether they are whole."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import UserError

Sum = tuple[int, int]  # size in bytes, CRC-32
# The first of this name is the row's own: within a text, quotation marks are escaped.
_PROMPT = re.compile(rb'"prompt_index": (\d+)[,}]')


def sum_of(data: bytes, before: Sum = (0, 0)) -> Sum:
    """The sum of some bytes, or of those and what stood before them."""
    size, crc = before
    return size + len(data), zlib.crc32(data, crc)


def as_sum(value: Any) -> Sum | None:
    """A sum as JSON holds it; None where an earlier version kept none."""
    if value is None:
        return None
    size, crc = value
    return int(size), int(crc)


def kept_rows(path: Path, data: bytes, done: Mapping[int, Sum | None]) -> bytes:
    """Of a file's rows those of these prompts: in the prompts' order, otherwise as they stand.

    done: by index, the sum of a prompt's rows; None where it is not known. A last row that was cut
    short belongs to a prompt that is not done; damage in rows that are kept is an error.
    """
    rows: dict[int, list[tuple[int, bytes]]] = {index: [] for index in sorted(done)}
    *lines, _ = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        match = _PROMPT.search(line)
        if match is None and number < len(lines):
            raise UserError(_damaged(path, number))
        if match is not None and int(match[1]) in rows:
            rows[int(match[1])].append((number, line + b"\n"))
    for index, own in rows.items():
        _refuse_changed(path, index, own, done[index])
    return b"".join(line for own in rows.values() for _, line in own)


def _refuse_changed(
    path: Path, index: int, rows: Sequence[tuple[int, bytes]], expected: Sum | None
) -> None:
    if expected is not None and sum_of(b"".join(line for _, line in rows)) == expected:
        return
    for number, line in rows:
        if not _is_row(line):
            raise UserError(_damaged(path, number))
    if expected is not None:
        raise UserError(
            f"The rows of prompt {index} in {path} have been changed: restore the file, or start a"
            " new run."
        )


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _damaged(path: Path, number: int) -> str:
    return f"Line {number} of {path} is damaged: restore the file, or start a new run."
