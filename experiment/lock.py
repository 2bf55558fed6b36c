"""One process a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import UserError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; refuses while another process does.

    The system lets go of a lock whose owner dies. Where the file system has no locks, or the owner
    was on another machine, the file itself is taken for one: it names process and host.
    """
    path = folder / NAME
    handle = _taken(path)
    try:
        _refuse_owner(path, handle)
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.truncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _taken(path: Path) -> int:
    """A handle on the lock file, locked if the file system can."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise UserError(_refusal(path, owner)) from None
        except OSError:  # no locks here
            return handle
        if _is_there(path, handle):
            return handle
        os.close(handle)  # its owner has just removed it


def _is_there(path: Path, handle: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _refuse_owner(path: Path, handle: int) -> None:
    """Refuse a lock that its owner may still hold although the system does not say so."""
    owner = _owner(handle)
    if not owner:
        return
    if owner.get("host") != socket.gethostname() or _lives_without_lock(handle, owner):
        raise UserError(_refusal(path, owner))


def _lives_without_lock(handle: int, owner: dict[str, Any]) -> bool:
    """Whether the owner, of this host, is alive where the file system has no locks to tell."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        pass
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(owner["pid"]) != os.getpid()


def _owner(handle: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(handle, 1000, 0))
    except ValueError:  # empty, or cut short
        return {}
    return content if isinstance(content, dict) else {}


def _refusal(path: Path, owner: dict[str, Any]) -> str:
    pid, host = owner.get("pid", "unknown"), owner.get("host", "an unknown host")
    return (
        f"Process {pid} on {host} is working in {path.parent}: wait for it, or, if it is gone,"
        f" delete {path}."
    )
