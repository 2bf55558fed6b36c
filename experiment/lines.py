"""Files of JSON lines that are only ever appended to, and that tell what has become of them.

Each line carries a checksum of itself, and in a chained file of all lines before it, so that a
changed, lost, doubled or misplaced line is found. Files of earlier versions, in which no line has
one, are read and gone on with as they are.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiment.lock import refuse_lost
from utils import UserError, append_whole, settle, write_atomically

_SEAL = re.compile(rb', "crc32": "([0-9a-f]{8})"\}$')
FORMAT = "format"  # a key of lines that have a checksum
MISFITS = (KeyError, IndexError, TypeError, ValueError, AttributeError)  # of what does not fit


class LineFile:
    """One such file. remedy: what else than restoring it may be done where it is damaged."""

    def __init__(self, path: Path, remedy: str, *, chained: bool = True) -> None:
        self.path = path
        self._remedy = remedy
        self._chained = chained
        self._sealed = True
        self._crc = 0  # of all lines so far

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """The lines with their numbers; none if there is no such file.

        A last line that an interruption cut short is cut off; damage anywhere else is an error.
        """
        self._sealed, self._crc = True, 0
        if not self.path.exists():
            return []
        found: list[tuple[int, dict[str, Any]]] = []
        data = self.path.read_bytes()
        *lines, rest = data.split(b"\n")
        self._sealed = not lines or any(map(_SEAL.search, lines))
        whole = 0
        for number, line in enumerate(lines, 1):
            content = self._opened(line)
            if content is None:
                if number < len(lines) or rest:
                    raise UserError(self.damaged(number))
                break
            found.append((number, content))
            whole += len(line) + 1
        if whole < len(data):
            refuse_lost()
            os.truncate(self.path, whole)
        self._sealed |= not found
        return found

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns, or not there where this raises."""
        refuse_lost()
        before = self._crc
        try:
            append_whole(self.path, self._closed(content))
        except BaseException:
            self._crc = before
            raise

    def rewrite(self, contents: Iterable[Mapping[str, Any]]) -> None:
        """Put these lines in place of all; they are on disk when this returns."""
        refuse_lost()
        self._crc = 0
        write_atomically(self.path, b"".join(map(self._closed, contents)))
        settle(self.path.parent)

    def damaged(self, number: int) -> str:
        return f"Line {number} of {self.path} is damaged: restore the file, or {self._remedy}."

    @contextmanager
    def fitting(self, number: int) -> Iterator[None]:
        """Within this block, what does not fit is this line's damage."""
        try:
            yield
        except MISFITS as error:
            raise UserError(self.damaged(number)) from error

    def _closed(self, content: Mapping[str, Any]) -> bytes:
        if not self._sealed:
            return json.dumps(content).encode() + b"\n"
        body = json.dumps({FORMAT: 2, **content}).encode()
        crc = self._next(body)
        return body[:-1] + b', "crc32": "%08x"}\n' % crc

    def _opened(self, line: bytes) -> dict[str, Any] | None:
        """What a line says; None where it is not as it was written."""
        if self._sealed:
            seal = _SEAL.search(line)
            if seal is None:
                return None
            line = line[: seal.start()] + b"}"
            before = self._crc
            if self._next(line) != int(seal[1], 16):
                self._crc = before
                return None
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or (not self._sealed and FORMAT in content):
            return None  # or a line that has lost its checksum
        return content

    def _next(self, body: bytes) -> int:
        self._crc = zlib.crc32(body, self._crc if self._chained else 0)
        return self._crc
