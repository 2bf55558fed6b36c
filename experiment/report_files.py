"""The JSON of a run folder, as far as it can be read; what cannot be is noted by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiment.report_run import LeftOut


class Files:
    """One folder being read. names: of what is in it. left_out: what could not be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = frozenset(path.name for path in folder.iterdir())
        self.left_out: list[LeftOut] = []

    def leave_out(self, name: str, why: str) -> None:
        self.left_out.append(LeftOut(name, why))

    def object(self, name: str) -> dict[str, Any] | None:
        """A file's JSON object; None, and left out, where it holds none."""
        try:
            content = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self.leave_out(name, f"it cannot be read ({_short(error)})")
            return None
        if not isinstance(content, dict):
            self.leave_out(name, "it holds no JSON object")
            return None
        return content

    def lines(self, name: str) -> Iterator[tuple[int, Any]]:
        """What stands on each line of a file, and the line's number; nothing if it is missing."""
        if not (self.folder / name).exists():
            return
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            self.leave_out(name, f"it cannot be read ({_short(error)})")
            return
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                self.leave_out(f"{name}, line {number}", "it is damaged or was cut short")


def _short(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without its path, for a page may be sent to others
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
