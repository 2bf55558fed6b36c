"""One process a run folder, or a shard of one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiment.stops import Stopped
from utils import UserError

NAME = ".lock"
BEAT = 20.0  # seconds between signs of life
DEAD = 300.0  # seconds without one, after which an owner on another machine counts as gone


_held: dict[int, Path] = {}  # the locks of this process: their paths by handle


class Lost(Stopped):
    """Another process has taken this one's lock over: nothing more may be written."""


class Held(UserError):
    """Another process holds the lock. elsewhere: on another machine, where it may be dead."""

    elsewhere = False


@contextmanager
def locked(folder: Path, name: str = NAME) -> Iterator[None]:
    """Hold the folder's lock of this name; refuses while another process does.

    The system lets go of a lock whose owner dies. Where the file system has no locks, or the owner
    was on another machine, the file itself is taken for one: it names process and host, and its
    owner touches it every `BEAT` seconds.
    """
    path = folder / name
    handle = _taken(path)
    try:
        _refuse_owner(path, handle)
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(_this_process()).encode(), 0)
        _held[handle] = path
        with _beating(path, handle):
            try:
                yield
            finally:
                if _is_mine(path, handle):
                    path.unlink(missing_ok=True)
    finally:
        _held.pop(handle, None)
        os.close(handle)


def refuse_lost() -> None:
    """Raise `Lost` if any lock of this process is another's by now: asked before each write.

    So it may be after a process was suspended for long, or the file system was out of its reach.
    """
    for handle, path in list(_held.items()):
        if not _is_mine(path, handle):
            owner = _named(_owner(handle)) if _is_there(path, handle) else "Another process"
            raise Lost(f"{owner} has taken over {path.parent}: this one writes nothing more there.")


def _is_mine(path: Path, handle: int) -> bool:
    return _is_there(path, handle) and _owner(handle) == _this_process()


@contextmanager
def waited_for(folder: Path, name: str, seconds: float = DEAD + BEAT) -> Iterator[None]:
    """Hold the lock, if it must be after waiting for the process that has it, or has died so."""
    end = time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder, name))
                break
            except Held:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


@contextmanager
def _beating(path: Path, handle: int) -> Iterator[None]:
    """Touch the lock file while this lasts; who finds it taken over asks for the run's end."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            if not _is_mine(path, handle):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(handle)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _taken(path: Path) -> int:
    """A handle on the lock file, locked if the file system can."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise Held(_refusal(path, owner)) from None
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
    elsewhere = owner.get("host") != socket.gethostname()
    if not _silent(path, handle) if elsewhere else _lives_without_lock(handle, owner):
        held = Held(_refusal(path, owner))
        held.elsewhere = elsewhere
        raise held


def _silent(path: Path, handle: int) -> bool:
    """Whether the lock has not been touched for long, by the clock of its file system."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(handle).st_mtime > DEAD


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
    return (
        f"{_named(owner)} is working in {path.parent}: wait for it, or, if it is gone,"
        f" delete {path}."
    )


def _named(owner: dict[str, Any]) -> str:
    return f"Process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
