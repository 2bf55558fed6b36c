"""Runs that are cut short wherever something is written, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import experiment.journal
import experiment.progress
import experiment.searching
import experiment.store
from experiment.lines import LineFile
from tests.graders import brightness
from verifiers.base import BaseVerifier, Item, Score

WRITERS: tuple[tuple[Any, str], ...] = (
    (experiment.store, "write_atomically"),
    (experiment.store.RunStore, "append_rows"),
    (experiment.journal.Journal, "_append"),
    (experiment.progress.Progress, "add"),
    (experiment.searching, "remove_state"),
    (experiment.progress, "remove_journals"),
    (experiment.journal, "remove_journals"),
)


class Killed(BaseException):
    """The process ends here: nothing that runs afterwards may matter."""


@contextmanager
def killed_at(number: int) -> Iterator[list[int]]:
    """The write of this number, from 0, is done in even numbers and not any more in odd ones.

    That is: 2 k kills before the k-th write, 2 k + 1 after it. Yields the count of writes.
    """
    count = [0]

    def watched(write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(*args: Any, **kwargs: Any) -> Any:
            at = count[0]
            count[0] += 1
            if number == 2 * at:
                raise Killed
            done = write(*args, **kwargs)
            if number == 2 * at + 1:
                raise Killed
            return done

        return writing

    with mock.patch.multiple(
        experiment.store, write_atomically=watched(experiment.store.write_atomically)
    ):
        patches = [mock.patch.object(o, n, watched(getattr(o, n))) for o, n in WRITERS[1:]]
        for patch in patches:
            patch.start()
        try:
            yield count
        finally:
            for patch in patches:
                patch.stop()


@dataclass
class Counting(BaseVerifier):
    """Mean brightness; counts over all instances, and may end the process or fail at a call.

    `sign` -1 prefers dark images. at: the call, from 0, that raises `what`. silent_after: images
    that are answered; the others get no score.
    """

    sign: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("brightness",)
    explains: ClassVar[bool] = True
    calls: ClassVar[int] = 0
    images: ClassVar[int] = 0
    at: ClassVar[int] = -1
    what: ClassVar[type[BaseException]] = Killed
    silent_after: ClassVar[int] = 10**9
    told: ClassVar[list[float]] = []

    @classmethod
    def begin(cls, at: int = -1, what: type[BaseException] = Killed) -> None:
        cls.calls, cls.images, cls.at, cls.what, cls.told = 0, 0, at, what, []

    def score(self, items: Sequence[Item]) -> list[Score]:
        Counting.calls += 1
        if Counting.calls - 1 == Counting.at:
            raise Counting.what("the grader fell over")
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Score:
        Counting.images += 1
        if Counting.images > Counting.silent_after:
            return Score.missing("its lips are sealed")
        details = {"model": "eye-1"}
        return Score.of("a look", details=details, brightness=self.sign * brightness(item))

    def chose(self, item: Item) -> None:
        Counting.told.append(brightness(item))


@dataclass
class Counted(Counting):
    """The same, with no ear for what is chosen."""

    chose = BaseVerifier.chose


@dataclass
class Blinking(Counted):
    """Does not answer for images of some prompts. unseen: pairs of a prompt and who is asked, by
    `sign`."""

    unseen: ClassVar[tuple[tuple[str, float], ...]] = ()

    def _one(self, item: Item) -> Score:
        score = super()._one(item)
        blind = (item.prompt, self.sign) in self.unseen
        return Score.missing("503 from the grader") if blind else score


@dataclass
class Settling(Counting):
    """Also wants to see each image as it was late in sampling."""

    @property
    def preview_noise(self) -> float:
        return 0.5

    def _one(self, item: Item) -> Score:
        early = brightness(Item(item.preview, item.prompt))
        return Score.of("two looks", brightness=brightness(item) - early)


@dataclass
class Early(Settling):
    """The same from elsewhere, with no ear for what is chosen; of a draft its brightness."""

    chose = BaseVerifier.chose

    def _one(self, item: Item) -> Score:
        return Counting._one(self, item) if item.preview is None else super()._one(item)

    @property
    def remote(self) -> bool:
        return True


@dataclass
class Broken(BaseVerifier):
    """Fails at every call."""

    metrics: ClassVar[tuple[str, ...]] = ("broken",)

    def score(self, items: Sequence[Item]) -> list[Score]:
        raise ZeroDivisionError("division by zero")


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a journal's lines as a program could that knows its checksums."""
    lines = LineFile(path, "")
    contents = [line for _, line in lines.read()]
    change(contents)
    lines.rewrite(contents)


def content(folder: Path) -> dict[str, Any]:
    """All that a run has left, without times and without its own folder's name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name == "manifest.json":
            found[name] = None
        elif path.name == "candidates.jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = ("seconds", "best_img_path")
        return {key: timeless(v) for key, v in value.items() if key not in hidden}
    return [timeless(v) for v in value] if isinstance(value, list) else value
