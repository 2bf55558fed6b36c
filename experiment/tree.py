"""The files below a folder, looked at again only where they may have changed.

A folder's own time tells whether names in it have come or gone. Files that may grow or be replaced
are looked at each time; those that are fixed are not.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

State = tuple[int, int]
"""When a file last changed, in ns, and its size."""

RACY = 2 * 10**9  # ns: a folder that has just changed may change again without showing another time


@dataclass
class _Folder:
    """changed: its own time. seen: when it was listed, in ns both. names: all that is in it."""

    changed: int
    seen: int
    names: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)


class Tree:
    """Whole files only: locks and files being written begin with a dot.

    files: by their names below `top`, as they were at the last look.
    """

    def __init__(self, top: Path) -> None:
        self.files: dict[str, State] = {}
        self._top = top
        self._folders: dict[str, _Folder] = {}
        self._loose: set[str] = set()

    def fix(self, name: str) -> None:
        """This file will not change any more while it is there."""
        self._loose.discard(name)

    def look(self) -> tuple[set[str], set[str]]:
        """Names that are new or have changed since the last look, and names that are gone."""
        gone = self._list()
        for name in gone:
            self.files.pop(name, None)
        touched = set()
        for name in self._loose:
            try:
                state = state_of(self._top / name)
            except FileNotFoundError:  # it has just been removed
                continue
            if self.files.get(name) != state:
                self.files[name] = state
                touched.add(name)
        return touched, gone

    def _list(self) -> set[str]:
        """Bring the names up to date; returns those that are gone."""
        gone: set[str] = set()
        living, open_ = set(), [""]
        while open_:
            folder = open_.pop()
            try:
                known, lost = self._listed(folder)
            except FileNotFoundError:
                continue
            living.add(folder)
            gone |= lost
            open_ += [_start(folder) + name for name in known.folders]
        for folder in self._folders.keys() - living:
            gone |= {_start(folder) + name for name in self._folders.pop(folder).names}
        self._loose -= gone
        return gone

    def _listed(self, folder: str) -> tuple[_Folder, set[str]]:
        """A folder as it is, and the names that it has lost."""
        path, start = self._top / folder, _start(folder)
        changed, known = path.stat().st_mtime_ns, self._folders.get(folder, _Folder(0, 0))
        if known.changed == changed and known.seen - changed > RACY:
            return known, set()
        seen = time.time_ns()
        names = set(os.listdir(path))
        found = _Folder(changed, seen, names, known.folders & names)
        for name in names - known.names:
            if (path / name).is_dir():
                found.folders.add(name)
            elif not name.startswith("."):
                self._loose.add(start + name)
        self._folders[folder] = found
        return found, {start + name for name in known.names - names}


def _start(folder: str) -> str:
    """What a folder's names begin with."""
    return f"{folder}/" if folder else ""


def state_of(path: Path) -> State:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
