"""Runs in object storage: searched in a folder here, copied to a URL as they go.

Object stores have no appending, renaming or locks, on which a run stands. So a run stands on a
folder of this machine, and any fsspec URL has a copy of it that is at every moment one from which
the run can go on: what a file names is copied before the file.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from experiment.config import ExperimentConfig, ExportArgs
from experiment.listeners import listeners
from experiment.progress import done_lines
from experiment.records import STATE, SUMMARY
from experiment.shard_files import ShardStore
from experiment.stops import Stopped
from experiment.store import runs_of
from experiment.tree import State, Tree, state_of
from utils import UserError

EVERY = 10.0  # seconds between copies
ENDS = (SUMMARY, f"{STATE}/done.jsonl", f"{STATE}/shards/*.json")  # name prompts that are done
ROWS = ("*.jsonl",)  # name files
OTHERS: tuple[str, ...] = ()
REST = 9  # times as long as it took to copy, until the next time: files that grow are sent whole


def is_url(root: str) -> bool:
    return "://" in root


class Mirror:
    """A folder here and its copy at a URL; the names below are relative to both.

    but: names that only others copy.
    """

    def __init__(self, url: str, local: Path, but: Sequence[str] = ()) -> None:
        self.url = url.rstrip("/")
        self.local = local
        self._files, root = _file_system(url)
        self._root = root.rstrip("/")
        self._but = frozenset(but)
        self._tree = Tree(local)
        self._copied: dict[str, State] = {}
        self._fresh: set[str] = set()  # to be copied
        self._gone: set[str] = set()  # to be removed there
        self._hollow: set[str] = set()  # of which only name and size are here
        self._turn = threading.RLock()
        self.whole = False  # whether all that is here has been copied at the end

    def below(self, folder: Path) -> str:
        """The URL of a folder within the one here."""
        return f"{self.url}/{folder.relative_to(self.local).as_posix()}"

    def names(self, start: str = "") -> list[str]:
        """The files at the URL whose names begin so."""
        return list(self._sizes(start))

    def _sizes(self, start: str) -> dict[str, int]:
        """Files at the URL whose names begin so, and their sizes, asking for no others."""
        self._files.invalidate_cache()
        folder, _, prefix = start.rpartition("/")
        only = {"prefix": prefix} if prefix and _finds_by_prefix(self._files) else {}
        try:
            found = self._files.find(f"{self._root}/{folder}".rstrip("/"), detail=True, **only)
        except FileNotFoundError:
            return {}
        sizes = {self._relative(path): info.get("size") for path, info in found.items()}
        return {name: size for name, size in sizes.items() if name.startswith(start)}

    def pull(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        starts: Sequence[str] = ("",),
        hollow: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Copy here what is not here yet, or of another size.

        starts: how the names begin among which to look. hollow: of which it is enough to know that
        they are there, and how large they are.
        """
        with self._turn:
            there = {n: size for start in starts for n, size in self._sizes(start).items()}
            found = {name: size for name, size in there.items() if wanted(name)}
            missing = []
            for name, size in found.items():
                path = self.local / name
                known = path.exists() and path.stat().st_size == size
                if known and (name not in self._hollow or hollow(name)):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if hollow(name):
                    with path.open("wb") as file:
                        file.truncate(size)
                    self._hollow.add(name)
                else:
                    missing.append(name)
            self._fetch(missing)
            for name in found:
                self._copied[name] = state_of(self.local / name)
            self._look()  # what of it goes from now on goes there too

    def _fetch(self, names: list[str]) -> None:
        """At once, where the URL's file system can."""
        if names:
            there = [f"{self._root}/{name}" for name in names]
            self._files.get(there, [str(self.local / name) for name in names])
        self._hollow -= set(names)

    def push(self) -> None:
        """Copy what is new or has changed, and remove what is gone.

        Files that name others are read before the others are listed, and copied after them. What
        is gone was gone before it all began, so what is known to be done is copied by then.
        """
        with self._turn:
            self._look()
            gone = set(self._gone)
            ends, rows = self._read(ENDS), self._read(ROWS)
            for name in self._to_copy(OTHERS):
                self._put(name)
            for name, (state, data) in {**rows, **ends}.items():
                if (self.local / name).exists():
                    self._make_room(name)
                    self._files.pipe_file(f"{self._root}/{name}", data)
                    self._copy_made(name, state)
            for name in sorted(gone & self._gone):
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{name}")
                self._copied.pop(name, None)
                self._gone.discard(name)
            self._remove_empty({str(p) for n in gone for p in PurePosixPath(n).parents} - {"."})

    def drop(self, starts: tuple[str, ...]) -> None:
        """Remove here what has been copied and begins so; at the URL it stays."""
        with self._turn:
            for name in [name for name in self._copied if name.startswith(starts)]:
                (self.local / name).unlink(missing_ok=True)
                del self._copied[name]
                self._hollow.discard(name)

    def drop_hollow(self) -> bool:
        """Leave nothing here that looks like a file and is none; whether there was such."""
        some = bool(self._hollow)
        self.drop(tuple(self._hollow))
        return some

    def _look(self) -> None:
        """What there is to copy and to remove by now."""
        touched, gone = self._tree.look()
        self._fresh |= touched
        self._fresh -= gone
        self._gone |= {name for name in gone if name in self._copied}
        self._gone = {name for name in self._gone if name not in self._tree.files}
        for name in [n for n in self._fresh if self._copied.get(n) == self._tree.files[n]]:
            self._fresh.discard(name)
            if name in self._hollow:
                self._tree.fix(name)

    def _to_copy(self, kind: tuple[str, ...]) -> list[str]:
        self._look()
        return sorted(name for name in self._fresh - self._but if _kind(name) is kind)

    def _read(self, kind: tuple[str, ...]) -> dict[str, tuple[State, bytes]]:
        found = {}
        for name in self._to_copy(kind):
            with contextlib.suppress(FileNotFoundError):
                found[name] = self._tree.files[name], (self.local / name).read_bytes()
        return found

    def _put(self, name: str) -> None:
        state = self._tree.files[name]
        try:
            self._make_room(name)
            self._files.put_file(str(self.local / name), f"{self._root}/{name}")
        except FileNotFoundError:
            if (self.local / name).exists():
                raise
            return
        self._copy_made(name, state)
        if is_made(name):
            self._tree.fix(name)

    def _copy_made(self, name: str, state: State) -> None:
        self._copied[name] = state
        self._fresh.discard(name)

    def _make_room(self, name: str) -> None:
        self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)

    def _remove_empty(self, folders: set[str]) -> None:
        """Remove folders without files, at URLs that know such."""
        if not folders:
            return
        self._files.invalidate_cache()
        for folder in sorted(folders, key=len, reverse=True):
            path = f"{self._root}/{folder}"
            if self._files.isdir(path) and not self._files.ls(path):
                self._files.rmdir(path)

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/")


def is_made(name: str) -> bool:
    """Whether it is a picture or a record of a round: written once."""
    return re.match(r"prompt@.*_i@", name.rpartition("/")[2]) is not None


def _kind(name: str) -> tuple[str, ...]:
    return next((kind for kind in (ENDS, ROWS) if _any(name, kind)), OTHERS)


def _finds_by_prefix(files: Any) -> bool:
    """Whether the file system itself lists names that begin so, as object stores do."""
    return "prefix" in inspect.signature(files.find).parameters


@contextmanager
def mirroring(mirror: Mirror, every: float = EVERY) -> Iterator[None]:
    """Copy the folder now and then, and once more at the end."""
    mirror.whole, ended = False, threading.Event()

    def copy() -> None:
        pause = every
        while not ended.wait(pause):
            began = time.monotonic()
            try:
                mirror.push()
            except Exception as error:  # each store has its own; the next turn tries again
                print(f"Not copied to {mirror.url} yet: {error}", file=sys.stderr, flush=True)
            pause = max(every, REST * (time.monotonic() - began))

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
            but = ", save pictures of before, which are there" if mirror.drop_hollow() else ""
            raise Stopped(
                f"The results cannot be copied to {mirror.url} ({error}): they are in"
                f" {mirror.local}{but}."
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
    wanted = {run_name} if run_name else set()
    if resume and not run_name:
        wanted = _unfinished(mirror.names(f"{runs}/"), runs)
    for run in wanted:
        _fetch_run(mirror, f"{runs}/{run}/", config)
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


def _fetch_run(mirror: Mirror, top: str, config: ExperimentConfig) -> None:
    """Fetch what a run needs to go on: of pictures of prompts that are done only how large they
    are, unless a verifier is shown them again."""
    mirror.pull(lambda name: not is_made(name), [top])
    done = set() if listeners(config) else {top + name for name in _done(mirror.local / top)}
    mirror.pull(is_made, [top], hollow=done.__contains__)


def _done(folder: Path) -> set[str]:
    """Pictures of prompts that are done; records of rounds are read again, and are none."""
    store = ShardStore(folder, ExportArgs())
    lines = [*done_lines(store, None).values(), *store.results().values()]
    names = {name for line in lines if not line.failed for name in line.files}
    return {name for name in names if not name.endswith(".json")}


def _unfinished(names: list[str], runs: str) -> set[str]:
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


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name below a run, or a run's own, is of these."""
    return any(fnmatch(name, p) or fnmatch(name, f"*/{p}") for p in patterns)
