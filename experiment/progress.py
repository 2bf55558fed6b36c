"""Which of a run's prompts are done: `state/done.jsonl`, there until all of them are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from experiment.journal import pictures_named, remove_journal
from experiment.pictures import from_tensors, to_tensors
from experiment.prompts import Prompt
from experiment.records import mend_lines
from experiment.store import RunStore
from utils import UserError

DONE = "done.jsonl"


class Progress:
    """The prompts that are done, in a folder that is cleared of what the others left behind.

    batch_size: the run's, which it may have had to lower on the way. summaries: by prompt.
    """

    def __init__(self, store: RunStore, prompts: Sequence[Prompt], batch_size: int) -> None:
        self._store = store
        self._path = store.state / DONE
        self.batch_size = batch_size
        self.summaries: dict[int, dict[str, Any]] = {}
        for line in done_lines(store, prompts):
            self.summaries[line["summary"]["prompt_index"]] = line["summary"]
            self.batch_size = min(self.batch_size, line["batch_size"])
        clear(store, {p.index: p.stem for p in prompts if p.index in self.summaries})

    def add(self, summary: dict[str, Any], batch_size: int) -> None:
        """A prompt is done; what its search needs to go on may be removed."""
        line = json.dumps({"summary": summary, "batch_size": batch_size}) + "\n"
        with open(self._path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.summaries[summary["prompt_index"]] = summary

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
            return from_tensors(self._store.read_tensors(_chosen(index)), 1)[0]
        return self._store.read_media(best["path"])


def done_lines(store: RunStore, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What is recorded of prompts that are done; refuses records of other prompts."""
    texts = {prompt.index: prompt.text for prompt in prompts}
    lines = [line for _, line in mend_lines(store.state / DONE)]
    for summary in (line["summary"] for line in lines):
        if texts.get(summary["prompt_index"]) != summary["prompt"]:
            raise UserError(
                f"{store.folder} holds results of other prompts: restore those that the run"
                " began with, or start a new run."
            )
    return lines


def remove_state(store: RunStore) -> None:
    """The run is finished, and its summary says so."""
    shutil.rmtree(store.state, ignore_errors=True)


def clear(store: RunStore, done: Mapping[int, str]) -> None:
    """Remove what unfinished prompts left, save what their journals name; it is written again.

    done: by index, the stems of the prompts that are done.
    """
    for index in done:
        remove_journal(store, index)
    store.keep_rows(done.keys())
    store.keep_files(set(done.values()), pictures_named(store))


def _chosen(index: int) -> str:
    return f"chosen{index}.safetensors"
