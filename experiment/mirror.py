"""Runs in object storage: searched in a folder here, copied to a URL as they go.

Object stores have no appending, renaming or locks, on which a run stands. So a run stands on a
folder of this machine, and any fsspec URL has a copy of it that is at every moment one from which
the run can go on: what a file names is copied before the file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from experiment.config import ExperimentConfig
from experiment.records import STATE, SUMMARY
from experiment.stops import Stopped
from experiment.store import runs_of
from utils import UserError

EVERY = 10.0  # seconds between copies
ENDS = (SUMMARY, f"{STATE}/done.jsonl", f"{STATE}/shards/*.json")  # name prompts that are done
ROWS = ("*.jsonl",)  # name files


def is_url(root: str) -> bool:
    return "://" in root


class Mirror:
    """A folder here and its copy at a URL; the names below are relative to both."""

    def __init__(self, url: str, local: Path) -> None:
        self.url = url.rstrip("/")
        self.local = local
        self._files, root = _file_system(url)
        self._root = root.rstrip("/")
        self._copied: dict[str, tuple[int, int]] = {}
        self.whole = False  # whether all that is here has been copied at the end

    def below(self, folder: Path) -> str:
        """The URL of a folder within the one here."""
        return f"{self.url}/{folder.relative_to(self.local).as_posix()}"

    def names(self, below: str = "") -> list[str]:
        """The files at the URL."""
        self._files.invalidate_cache()
        top = f"{self._root}/{below}".rstrip("/")
        found = self._files.find(top) if self._files.exists(top) else []
        return [self._relative(path) for path in found]

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copy here what is not here yet, or of another size."""
        for name in filter(wanted, self.names()):
            path, there = self.local / name, f"{self._root}/{name}"
            if not path.exists() or path.stat().st_size != self._files.size(there):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(there, str(path))
            self._copied[name] = _state(path)

    def push(self) -> None:
        """Copy what is new or has changed, and remove what is gone.

        Files that name others are read before the others are listed, and copied after them. What
        is gone was gone before it all began, so what is known to be done is copied by then.
        """
        gone = self._copied.keys() - self._here().keys()
        ends, rows = self._read(ENDS), self._read(ROWS)
        for name, state in self._here().items():
            if not _any(name, (*ENDS, *ROWS)) and self._copied.get(name) != state:
                self._put(name, state)
        for name, (state, data) in {**rows, **ends}.items():
            if self._copied.get(name) != state and (self.local / name).exists():
                self._make_room(name)
                self._files.pipe_file(f"{self._root}/{name}", data)
                self._copied[name] = state
        for name in sorted(gone):
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm_file(f"{self._root}/{name}")
            del self._copied[name]
        self._remove_empty({str(p) for name in gone for p in PurePosixPath(name).parents} - {"."})

    def _remove_empty(self, folders: set[str]) -> None:
        """Remove folders without files, at URLs that know such."""
        self._files.invalidate_cache()
        for folder in sorted(folders, key=len, reverse=True):
            path = f"{self._root}/{folder}"
            if self._files.isdir(path) and not self._files.ls(path):
                self._files.rmdir(path)

    def _here(self) -> dict[str, tuple[int, int]]:
        """The files here, whole ones only; locks and files being written begin with a dot."""
        found = {}
        for path in self.local.rglob("*"):
            if not path.name.startswith(".") and path.is_file():
                try:
                    found[path.relative_to(self.local).as_posix()] = _state(path)
                except FileNotFoundError:  # it has just been removed
                    continue
        return found

    def _read(self, patterns: tuple[str, ...]) -> dict[str, tuple[tuple[int, int], bytes]]:
        found = {}
        for name, state in self._here().items():
            first = next(p for p in (*ENDS, *ROWS, "*") if _any(name, (p,)))
            if first in patterns and self._copied.get(name) != state:
                try:
                    found[name] = state, (self.local / name).read_bytes()
                except FileNotFoundError:
                    continue
        return found

    def _put(self, name: str, state: tuple[int, int]) -> None:
        try:
            self._make_room(name)
            self._files.put_file(str(self.local / name), f"{self._root}/{name}")
        except FileNotFoundError:
            if (self.local / name).exists():
                raise
            return
        self._copied[name] = state

    def _make_room(self, name: str) -> None:
        self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/")


@contextmanager
def mirroring(mirror: Mirror, every: float = EVERY) -> Iterator[None]:
    """Copy the folder now and then, and once more at the end."""
    ended = threading.Event()

    def copy() -> None:
        while not ended.wait(every):
            try:
                mirror.push()
            except Exception as error:  # each store has its own; the next turn tries again
                print(f"Not copied to {mirror.url} yet: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            mirror.push()
            mirror.whole = True
        except Exception as error:
            raise Stopped(
                f"The results cannot be copied to {mirror.url} ({error}): they are in"
                f" {mirror.local}."
            ) from error


@dataclass(frozen=True)
class Place:
    """Where runs are written here, and what copies them to where they are wanted."""

    root: str
    mirror: Mirror | None = None


@contextmanager
def output_place(
    config: ExperimentConfig, root: str, resume: str | None, run_name: str | None
) -> Iterator[Place]:
    """The output folder; for a URL a folder here that is copied there, with what goes on in it."""
    if not is_url(root):
        yield Place(root)
        return
    if resume not in (None, "auto"):
        raise UserError("A run at a URL goes on by --resume auto, or by its --run_name.")
    local = Path(tempfile.mkdtemp(prefix="run_"))
    mirror = Mirror(root, local)
    runs = runs_of("", config).as_posix()
    wanted = {run_name} if run_name else _unfinished(mirror.names(runs), runs) if resume else set()
    mirror.pull(lambda name: name.startswith(tuple(f"{runs}/{run}/" for run in wanted)))
    print(f"Results are copied to {mirror.url}", flush=True)
    try:
        with mirroring(mirror):
            yield Place(str(local), mirror)
    except (Stopped, KeyboardInterrupt):
        if mirror.whole:
            print(f"To resume from {root}: the same words with --resume auto.", file=sys.stderr)
        raise
    finally:
        if mirror.whole:
            shutil.rmtree(local)


def _unfinished(names: list[str], runs: str) -> set[str | None]:
    """The runs that are not done, by the files they have."""
    parts = [name.removeprefix(f"{runs}/").split("/", 1) for name in names]
    each: dict[str, set[str]] = {}
    for run, *inner in parts:
        each.setdefault(run, set()).update(inner)
    return {
        run
        for run, inner in each.items()
        if SUMMARY not in inner or any(name.startswith(f"{STATE}/") for name in inner)
    }


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"'{url}' needs another package: {error}.") from error
    except ValueError as error:
        raise UserError(f"'{url}' is no place to write to: {error}.") from error
    return files, root


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name below a run, or a run's own, is of these."""
    return any(fnmatch(name, p) or fnmatch(name, f"*/{p}") for p in patterns)
