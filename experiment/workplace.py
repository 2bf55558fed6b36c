"""Folders of this machine in which workers work, and which go with them."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PREFIX = "worker_"
ALIVE = ".alive"  # locked by the system for as long as the worker lives, in whatever container


def own_folder() -> tuple[Path, Callable[[], None]]:
    """A new one for this process, and what removes it, at the latest as the process ends.

    Those of dead processes, which could not clean up, are removed.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_dead(path):
            shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    alive = (folder / f"{ALIVE}.part").open("w")
    with contextlib.suppress(OSError):  # where there are no locks, nobody takes it for dead
        fcntl.flock(alive, fcntl.LOCK_EX)
    os.rename(alive.name, folder / ALIVE)  # locked before anybody sees it

    def leave() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        alive.close()

    atexit.register(leave)
    return folder, leave


def _is_dead(folder: Path) -> bool:
    """Whether nobody holds the folder's lock; one that has none is being made, or no worker's."""
    try:
        with (folder / ALIVE).open("r+") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
