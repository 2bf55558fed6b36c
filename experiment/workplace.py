"""Folders of this machine in which workers work, and which go with them."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "worker_"
ALIVE = ".alive"  # locked by the system for as long as the worker lives, in whatever container


class Workplace:
    """A new folder for this process, which goes with it.

    Those of dead processes, which could not clean up, are removed.
    """

    def __init__(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if _is_dead(path):
                shutil.rmtree(path, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._alive = (self.folder / f"{ALIVE}.part").open("w")
        with contextlib.suppress(OSError):  # where there are no locks, nobody takes it for dead
            fcntl.flock(self._alive, fcntl.LOCK_EX)
        os.rename(self._alive.name, self.folder / ALIVE)  # locked before anybody sees it
        atexit.register(self.leave)

    def leave(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self) -> None:
        """It holds what is nowhere else: it stays."""
        atexit.unregister(self.leave)
        (self.folder / ALIVE).unlink(missing_ok=True)


def _is_dead(folder: Path) -> bool:
    """Whether nobody holds the folder's lock; one that has none is being made, or no worker's."""
    try:
        with (folder / ALIVE).open("r+") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
