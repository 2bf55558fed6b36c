"""A run folder that several processes write, and how their parts become one run's.

A prompt belongs to one process at a time, and so does every file that is named after it. Pictures,
records and journals are where a process alone would put them. What a process alone would add to a
file of the whole run waits in files of the prompt's own:

    state/shards/prompt<index>.jsonl   its rows of candidates.jsonl
    state/shards/prompt<index>.json    its part of summary.json, when it is done or has failed

Who finds that the last prompt is done makes the run's files of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiment.journal import pictures_named
from experiment.lines import LineFile
from experiment.lock import BEAT, DEAD, Held, locked, waited_for
from experiment.lock import NAME as LOCK
from experiment.outcome import summed_up
from experiment.progress import (
    DoneLine,
    Progress,
    done_file,
    done_lines,
    refuse_changed,
    refuse_others,
    remove_state,
)
from experiment.prompts import Prompt
from experiment.records import CANDIDATES, SHARDS
from experiment.rows import Sum, kept_rows
from experiment.searching import Experiment
from experiment.store import RunStore
from utils import settle, write_atomically

GATE = ".gate"  # held for moments: by who begins, and by who merges


class ShardStore(RunStore):
    """A run folder in which rows wait in a file of their prompt's own."""

    @property
    def shards(self) -> Path:
        return self.state / SHARDS

    def rows_path(self, index: int) -> Path:
        return self.shards / f"prompt{index}.jsonl"

    def keep_rows(self, done: Mapping[int, Sum | None]) -> None:
        """Rows are put in order when all prompts are done."""

    def result_path(self, index: int) -> Path:
        return self.shards / f"prompt{index}.json"

    def write_result(self, content: Mapping[str, Any]) -> None:
        """What `Progress` notes of a prompt: from now on it is done, or has failed."""
        path = self.result_path(content["summary"]["prompt_index"])
        _result_file(path).rewrite([content])

    def write_failed(self, summary: Mapping[str, Any], batch_size: int) -> None:
        self.write_result({"summary": summary, "batch_size": batch_size})

    def results(self, indices: Iterable[int] | None = None) -> dict[int, DoneLine]:
        """What has been written so far of these prompts, or of all, by their numbers."""
        found = {}
        if indices is None:
            paths = list(self.shards.glob("prompt*.json"))
        else:
            paths = [self.result_path(index) for index in indices]
        for path in paths:
            file = _result_file(path)
            for number, content in file.read():
                with file.fitting(number):
                    line = DoneLine.of(content)
                    found[line.index] = line
        return found


def _result_file(path: Path) -> LineFile:
    return LineFile(path, "delete it to search for its prompt anew", chained=False)


class ShardProgress(Progress):
    """Which of one process's prompts are done; what the others left is not its to clear away."""

    _store: ShardStore

    def _read(self, prompts: Sequence[Prompt]) -> None:
        """Of one's own prompts only: what another's memory was too small for concerns nobody."""
        mine = {prompt.index for prompt in prompts}
        before = [line for i, line in done_lines(self._store, None).items() if i in mine]
        for line in [*before, *self._store.results(mine).values()]:
            if not line.failed:
                self._take(line)
            self.batch_size = min(self.batch_size, line.batch_size)
            self.singly |= line.singly

    def _clear(self, prompts: Sequence[Prompt]) -> None:
        """That was done with the gate held."""

    def _note(self, line: Mapping[str, Any]) -> None:
        self._store.write_result(line)


class ShardExperiment(Experiment):
    """A search for some of a run's prompts; `merge` sums up when all are done."""

    store: ShardStore

    def _opened(self) -> Progress:
        return ShardProgress(self.store, self.planned.prompts, self.batch_size)

    def _end(self, summaries: Mapping[int, dict[str, Any]]) -> None:
        failed = [summary for summary in summaries.values() if "failed" in summary]
        for summary in failed:
            self.store.write_failed(summary, self.batch_size)
        self.failed = len(failed)


class HandedProgress(ShardProgress):
    """Of prompts that somebody hands out who knows that they are not done."""

    def _read(self, prompts: Sequence[Prompt]) -> None:
        """However many others are done."""


class HandedExperiment(ShardExperiment):
    """A search for prompts that were handed to this process."""

    def _opened(self) -> Progress:
        progress = HandedProgress(self.store, self.planned.prompts, self.batch_size)
        progress.singly = self.denoiser.singly  # as it came to for the prompts before
        return progress


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the run folder to oneself; refuses while any process works in it."""

    def enter(held: ExitStack) -> None:
        with waited_for(folder, GATE):
            _refuse_living(folder.glob(".shard*.lock"))
            held.enter_context(locked(folder))

    with _patiently(enter):
        yield


@contextmanager
def _patiently(enter: Callable[[ExitStack], None]) -> Iterator[None]:
    """Within this block the locks are held that `enter` takes.

    An owner on another machine that has died, as this process's own may have before a scheduler
    moved it here, is waited for until its silence says so.
    """
    with ExitStack() as held:
        end = time.monotonic() + DEAD + 2 * BEAT
        while True:
            try:
                enter(held)
                break
            except Held as error:
                if not error.elsewhere or time.monotonic() > end:
                    raise
                print(f"{error} Looking again for {DEAD / 60:.0f} minutes.", flush=True)
                time.sleep(BEAT)
        yield


def _refuse_living(locks: Iterable[Path]) -> None:
    """Refuse if one of these locks has a living owner; those of dead ones go."""
    for path in locks:
        with locked(path.parent, path.name):
            pass


@contextmanager
def sharing(folder: Path, index: int, count: int) -> Iterator[None]:
    """Be this shard of the run; refuses while another process is, or processes of another count."""

    def enter(held: ExitStack) -> None:
        with waited_for(folder, GATE):
            others = folder.glob(".shard*.lock")
            unlike = [p for p in others if not p.name.endswith(f"of{count}.lock")]
            _refuse_living([folder / LOCK, *unlike])
            held.enter_context(locked(folder, f".shard{index}of{count}.lock"))

    with _patiently(enter):
        yield


def clear_shard(store: ShardStore, prompts: Sequence[Prompt], mine: Sequence[Prompt]) -> list[int]:
    """Remove what these prompts left unfinished, save what journals name; returns their numbers.

    Checks that what the run has done was done for its prompts, and that the files of these are as
    they were written. Call it with the gate held.
    """
    before = done_lines(store, prompts)
    RunStore.keep_rows(store, {index: line.rows for index, line in before.items()})
    store.shards.mkdir(parents=True, exist_ok=True)
    results = store.results()
    refuse_others(store, prompts, results.values())
    done = {index: line for index, line in results.items() if not line.failed} | before
    for prompt in mine:
        if prompt.index in done:
            refuse_changed(store, done[prompt.index].files)
    left = [prompt for prompt in mine if prompt.index not in done]
    clear_prompts(store, left)
    return [prompt.index for prompt in left]


def clear_prompts(store: ShardStore, left: Sequence[Prompt]) -> None:
    """Remove what these prompts, which nobody is searching for, left unfinished."""
    _forget(store, left)
    named = pictures_named(store, [prompt.index for prompt in left])
    stems = {prompt.stem for prompt in left}
    for path in store.folder.glob("prompt@*_i@*"):
        if path.name.rsplit("_i@", 1)[0] in stems and path.name not in named:
            path.unlink()


def clear_handed(store: ShardStore, prompt: Prompt, *, alone: bool) -> None:
    """The same for a prompt of a run that was cleared as it began: only a lost worker, whose
    journal came before its pictures, has left some since.

    alone: the folder is this process's own, and small.
    """
    if alone or (store.state / f"prompt{prompt.index}.jsonl").exists():
        clear_prompts(store, [prompt])
    else:
        _forget(store, [prompt])


def _forget(store: ShardStore, left: Sequence[Prompt]) -> None:
    for prompt in left:
        store.written(prompt)  # which this process may have tried before
        store.result_path(prompt.index).unlink(missing_ok=True)
        store.rows_path(prompt.index).unlink(missing_ok=True)


def merge(store: ShardStore, prompts: Sequence[Prompt]) -> int | None:
    """Make one run of it, if all prompts are done or have failed; returns how many failed.

    None while some are still to be done. Call it with the gate held.
    """
    lines = store.results() | done_lines(store, prompts)
    if any(prompt.index not in lines for prompt in prompts):
        return None
    gather(store, prompts)
    store.drop_parts()  # nobody else is writing any more
    content = summed_up(prompts, {index: line.summary for index, line in lines.items()})
    store.write_summary(content)
    shutil.rmtree(store.shards, ignore_errors=True)
    failed = sum("failed" in summary for summary in content["prompts"])
    if not failed:
        remove_state(store)
    return failed


def gather(store: RunStore, prompts: Sequence[Prompt]) -> None:
    """Put what is done, and what has failed, where a process alone would have put it.

    May be cut short anywhere and done again. The prompts' own files stay.
    """
    shards = ShardStore(store.folder, store.export)
    results = shards.results()
    if not results:
        return
    before = done_lines(store, prompts)
    path = store.folder / CANDIDATES
    new = sorted(results.keys() - before.keys())
    rows = [_rows(shards.rows_path(index), {index: results[index]}) for index in new]
    lines = results | before
    sums = {index: line.rows for index, line in lines.items()}
    write_atomically(path, kept_rows(path, b"".join([_rows(path, before), *rows]), sums))
    settle(store.folder)
    done_file(store).rewrite(lines[i].content for i in sorted(lines) if not lines[i].failed)


def _rows(path: Path, lines: Mapping[int, DoneLine]) -> bytes:
    """The rows of these prompts in a file; refuses changed ones."""
    data = path.read_bytes() if path.exists() else b""
    return kept_rows(path, data, {index: line.rows for index, line in lines.items()})


def take_over(store: RunStore, prompts: Sequence[Prompt]) -> None:
    """Go on alone with what several processes began."""
    gather(store, prompts)
    shutil.rmtree(ShardStore(store.folder, store.export).shards, ignore_errors=True)
