"""Which of a run's prompts are done: `state/done.jsonl`, there until all of them are."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.journal import pictures_named, remove_journals
from experiment.lines import LineFile
from experiment.pictures import from_tensors, to_tensors
from experiment.prompts import Prompt
from experiment.rows import Sum, as_sum
from experiment.store import RunStore
from utils import UserError, settle

DONE = "done.jsonl"
REMEDY = f"delete its prompt's line of state/{DONE} to search for that prompt anew"


class Progress:
    """The prompts that are done, in a folder that is cleared of what the others left behind.

    batch_size: the run's, which it may have had to lower on the way. singly: whether it has come
    to decode pictures one by one. summaries: by prompt.
    """

    def __init__(self, store: RunStore, prompts: Sequence[Prompt], batch_size: int) -> None:
        self._store = store
        self._lines = done_file(store)
        self.batch_size = batch_size
        self.singly = False
        self.summaries: dict[int, dict[str, Any]] = {}
        self.rows: dict[int, Sum | None] = {}  # sums of the prompts' rows, where they are known
        self._files: dict[str, Sum] = {}
        self._read(prompts)
        self._clear(prompts)

    def add(
        self, prompt: Prompt, summary: dict[str, Any], batch_size: int, singly: bool = False
    ) -> None:
        """A prompt is done; what its search needs to go on may be removed."""
        files, rows = self._store.written(prompt)
        settle(self._store.folder)  # the line must not outlive a power cut that they do not
        self._note(
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

    def _note(self, line: Mapping[str, Any]) -> None:
        self._lines.append(line)

    def _read(self, prompts: Sequence[Prompt]) -> None:
        for line in done_lines(self._store, prompts, self._lines).values():
            self._take(line)

    def _take(self, line: DoneLine) -> None:
        """Keep what is recorded of a prompt."""
        self._files |= line.files
        self.rows[line.index] = line.rows
        self.batch_size = min(self.batch_size, line.batch_size)
        self.singly |= line.singly
        self.summaries[line.index] = line.summary

    def _clear(self, prompts: Sequence[Prompt]) -> None:
        """Check what is done, and remove what the other prompts left."""
        refuse_changed(self._store, self._files)
        clear(self._store, {p.index: p.stem for p in prompts if p.index in self.rows}, self.rows)

    def keep_chosen(self, index: int, media: Any) -> None:
        """Keep a prompt's chosen video to the last bit, for verifiers that judge whole sets."""
        if isinstance(media, list):
            self._store.write_tensors(_chosen(index), to_tensors([media]))
            settle(self._store.state)

    def chosen(self, index: int) -> Any:
        """A prompt's chosen image or video; None if it has none."""
        best = self.summaries[index]["best"]
        if best is None:
            return None
        if (self._store.state / _chosen(index)).exists():
            return from_tensors(self._store.read_tensors(_chosen(index), None, REMEDY), 1)[0]
        self._store.check(best["path"], self._files.get(best["path"]), REMEDY)
        return self._store.read_media(best["path"])


@dataclass(frozen=True)
class DoneLine:
    """What is recorded of a prompt that is done.

    files: sums of its pictures and records, where they are known. rows: the sum of its rows.
    content: all of it, as JSON.
    """

    index: int
    prompt: str
    summary: dict[str, Any]
    batch_size: int
    singly: bool
    files: dict[str, Sum]
    rows: Sum | None
    content: Mapping[str, Any]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> DoneLine:
        """What a line says; raises one of `MISFITS` where it is none of these."""
        summary = content["summary"]
        sums = {name: as_sum(value) for name, value in content.get("files", {}).items()}
        return cls(
            int(summary["prompt_index"]),
            summary["prompt"],
            summary,
            int(content["batch_size"]),
            bool(content.get("singly")),
            {name: known for name, known in sums.items() if known is not None},
            as_sum(content.get("rows")),
            content,
        )

    @property
    def failed(self) -> bool:
        return "failed" in self.summary


def done_file(store: RunStore) -> LineFile:
    return LineFile(
        store.state / DONE, "delete that line to search for its prompt anew", chained=False
    )


def done_lines(
    store: RunStore, prompts: Sequence[Prompt] | None, file: LineFile | None = None
) -> dict[int, DoneLine]:
    """What is recorded of prompts that are done, by index; refuses records of other prompts.

    prompts: all of the run's; None: not looked at. file: to read from, where it is to be added to.
    """
    file = file or done_file(store)
    found = {}
    for number, content in file.read():
        with file.fitting(number):
            line = DoneLine.of(content)
            found[line.index] = line
    if prompts is not None:
        refuse_others(store, prompts, found.values())
    return found


def refuse_others(store: RunStore, prompts: Sequence[Prompt], lines: Iterable[DoneLine]) -> None:
    """Refuse what was done for other prompts than these."""
    texts = {prompt.index: prompt.text for prompt in prompts}
    for line in lines:
        if texts.get(line.index) != line.prompt:
            raise UserError(
                f"{store.folder} holds results of other prompts: restore those that the run"
                " began with, or start a new run."
            )


def refuse_changed(store: RunStore, files: Mapping[str, Sum]) -> None:
    """Refuse prompts that are done, if their files are not as they were written.

    Pictures are told by their size alone: a long run has more of them than can be read again.
    """
    for name, expected in files.items():
        path = store.folder / name
        if name.endswith(".json") or not path.is_file() or path.stat().st_size != expected[0]:
            store.check(name, expected, REMEDY)


def remove_state(store: RunStore) -> None:
    """The run is finished, and its summary says so, also after a power cut."""
    settle(store.folder)
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
