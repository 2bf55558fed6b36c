"""Which of a run's prompts are done: `state/done.jsonl`, there until all of them are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from experiment.journal import pictures_named, remove_journals
from experiment.lines import LineFile
from experiment.pictures import from_tensors, to_tensors
from experiment.prompts import Prompt
from experiment.rows import Sum, as_sum
from experiment.store import RunStore
from utils import UserError

DONE = "done.jsonl"
REMEDY = f"delete its prompt's line of state/{DONE} to search for that prompt anew"


class Progress:
    """The prompts that are done, in a folder that is cleared of what the others left behind.

    batch_size: the run's, which it may have had to lower on the way. singly: whether it has come
    to decode pictures one by one. summaries: by prompt.
    """

    def __init__(self, store: RunStore, prompts: Sequence[Prompt], batch_size: int) -> None:
        self._store = store
        self._lines = LineFile(
            store.state / DONE, "delete that line to search for its prompt anew", chained=False
        )
        self.batch_size = batch_size
        self.singly = False
        self.summaries: dict[int, dict[str, Any]] = {}
        self.rows: dict[int, Sum | None] = {}  # sums of the prompts' rows, where they are known
        self._files: dict[str, Sum] = {}
        texts = {prompt.index: prompt.text for prompt in prompts}
        for number, line in self._lines.read():
            with self._lines.fitting(number):
                self._take(line, texts)
        self._refuse_changed()
        clear(store, {p.index: p.stem for p in prompts if p.index in self.rows}, self.rows)

    def add(
        self, prompt: Prompt, summary: dict[str, Any], batch_size: int, singly: bool = False
    ) -> None:
        """A prompt is done; what its search needs to go on may be removed."""
        files, rows = self._store.written(prompt)
        self._lines.append(
            {
                "summary": summary,
                "batch_size": batch_size,
                "singly": singly,
                "files": files,
                "rows": rows,
            }
        )
        self.summaries[prompt.index] = summary
        self.rows[prompt.index] = rows

    def _take(self, line: Mapping[str, Any], texts: Mapping[int, str]) -> None:
        """Keep what a line says of a prompt."""
        summary = line["summary"]
        index = summary["prompt_index"]
        if texts.get(index) != summary["prompt"]:
            raise UserError(
                f"{self._store.folder} holds results of other prompts: restore those that the run"
                " began with, or start a new run."
            )
        sums = {name: as_sum(value) for name, value in line.get("files", {}).items()}
        self._files |= {name: known for name, known in sums.items() if known is not None}
        self.rows[index] = as_sum(line.get("rows"))
        self.batch_size = int(line["batch_size"])
        self.singly |= bool(line.get("singly"))
        self.summaries[index] = summary

    def _refuse_changed(self) -> None:
        """Refuse prompts that are done, if their files are not as they were written.

        Pictures are told by their size alone: a long run has more of them than can be read again.
        """
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self._store.folder)}
        for name, expected in self._files.items():
            if sizes.get(name) != expected[0] or name.endswith(".json"):
                self._store.check(name, expected, REMEDY)

    def keep_chosen(self, index: int, media: Any) -> None:
        """Keep a prompt's chosen video to the last bit, for verifiers that judge whole sets."""
        if isinstance(media, list):
            self._store.write_tensors(_chosen(index), to_tensors([media]))

    def chosen(self, index: int) -> Any:
        """A prompt's chosen image or video; None if it has none."""
        best = self.summaries[index]["best"]
        if best is None:
            return None
        if (self._store.state / _chosen(index)).exists():
            return from_tensors(self._store.read_tensors(_chosen(index), None, REMEDY), 1)[0]
        self._store.check(best["path"], self._files.get(best["path"]), REMEDY)
        return self._store.read_media(best["path"])


def remove_state(store: RunStore) -> None:
    """The run is finished, and its summary says so."""
    shutil.rmtree(store.state, ignore_errors=True)


def clear(store: RunStore, done: Mapping[int, str], rows: Mapping[int, Sum | None]) -> None:
    """Remove what unfinished prompts left, save what their journals name; it is written again.

    By index, the stems of the prompts that are done, and the sums of their rows.
    """
    remove_journals(store, done.keys())
    store.keep_rows({index: rows.get(index) for index in done})
    store.keep_files(set(done.values()), pictures_named(store))


def _chosen(index: int) -> str:
    return f"chosen{index}.safetensors"
