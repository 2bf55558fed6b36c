"""Tells experiment trackers of a run: TensorBoard, Weights & Biases, Trackio and others.

What they are told is on disk anyway: one that fails is named once, and the run goes on.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from experiment.config import ExperimentConfig
from experiment.prompts import Prompt
from experiment.rounds import RoundBook, RoundResult, recorded
from experiment.store import RunStore
from experiment.tracker import Sitting, Teller, be_alone
from search.ledger import Cost
from utils import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

MEMORY = "trackers.json"  # in the run's state: what is logged already
APART = 50  # prompts with curves and pictures of their own
WIDEST = 512  # pixels of a logged picture
USER, QUERY = re.compile(r"(?<=://)[^/@\s]+(?=@)"), re.compile(r"(://[^?\s]*\?)\S+")  # of a URL
SECRET = re.compile(r"(^|_)(key|keys|token|secret|password|authorization|cookie)$", re.IGNORECASE)


@dataclass
class Memory:
    """What trackers were told of a run, over all its sittings.

    step: rounds logged so far, of all prompts. rounds: by unfinished prompt, the last one logged.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    step: int = 0
    rounds: dict[str, int] = field(default_factory=dict)


class Trackers:
    """Tells every tracker of rounds as they close and of prompts as they end."""

    def __init__(self, names: Sequence[str], store: RunStore) -> None:
        self._path = store.state / MEMORY
        self._turn = Lock()  # of prompts that are searched for at once
        self._memory = Memory()
        with suppress(FileNotFoundError):
            self._memory = Memory(**json.loads(self._path.read_bytes()))
        self._finished: dict[str, list[float]] = {}
        self._shown: dict[int, int] = {}  # by prompt: the id of the picture logged last
        name = "-".join(store.folder.resolve().parts[-4:])
        sitting = Sitting(store.folder, name, self._memory.id)
        self._tellers = [Teller(tracker, sitting) for tracker in names]

    def begin(self, config: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Open the trackers; a run that is new to them tells its config."""
        if not self._tellers:
            return
        be_alone()
        for teller in self._tellers:
            teller.start()
        if self._memory.step == 0:
            texts = {_name(prompt): prompt.text for prompt in prompts[:APART]}
            parameters = hyperparameters({**config, "prompt_texts": texts})
            self._tell(lambda tracker: tracker.store_init_configuration(parameters))

    def finish(self) -> None:
        self._tell(lambda tracker: tracker.finish())

    def recall(self, summaries: Iterable[Mapping[str, Any]]) -> None:
        """Take in what prompts of earlier sittings came to."""
        for summary in summaries:
            self._add(summary)

    def round_closed(self, book: RoundBook, result: RoundResult, spent: Cost) -> None:
        """Log a round, unless an earlier sitting did. spent: by the prompt so far."""
        with self._turn:
            self._round_closed(book, result, spent)

    def _round_closed(self, book: RoundBook, result: RoundResult, spent: Cost) -> None:
        key = str(book.prompt.index)
        if not self._tellers or result.round <= self._memory.rounds.get(key, 0):
            return
        self._memory.rounds[key] = result.round
        self._memory.step += 1
        self._remember()
        best = book.value(book.best)
        values = {
            "round/best": result.value,
            "round/best_so_far": best,
            f"prompts/{_name(book.prompt)}": best,
            "round/nfe": spent.nfe,
            "round/rows": spent.rows,
            "round/seconds": spent.seconds,
            "round/number": result.round,
            "round/prompt_index": book.prompt.index,
        }
        if result.winner is not None:
            values |= _by_judge("round", recorded(result.winner.judged))
        self._log(values)
        self._log_picture(book)

    def prompt_done(self, summary: Mapping[str, Any]) -> None:
        """Log the means over all prompts that are done."""
        if not self._tellers:
            return
        with self._turn:
            self._memory.rounds.pop(str(summary["prompt_index"]), None)
            self._remember()
            self._add(summary)
            means = {name: math.fsum(each) / len(each) for name, each in self._finished.items()}
            self._log({"finished/prompts": len(self._finished["finished/nfe"]), **means})

    def _add(self, summary: Mapping[str, Any]) -> None:
        best = summary["best"] or {}
        values = {f"finished/{name}": summary[name] for name in ("nfe", "rows", "seconds")}
        values |= {"finished/best": best.get("score")}
        values |= _by_judge("finished", best.get("judges", {}))
        for name, value in _numbers(values).items():
            self._finished.setdefault(name, []).append(value)

    def _log(self, values: Mapping[str, float]) -> None:
        numbers, step = _numbers(values), self._memory.step
        self._tell(lambda tracker: tracker.log(numbers, step=step))

    def _log_picture(self, book: RoundBook) -> None:
        """Log the prompt's best picture, where it is another than after the round before."""
        best, index = book.best, book.prompt.index
        if best is None or best.path is None or self._shown.get(index) == best.id:
            return
        self._shown[index] = best.id
        pixels, step = _pixels(book.media(best)), self._memory.step
        tag = f"pictures/{_name(book.prompt)}"
        for teller in self._tellers:
            teller.show(tag, pixels, step)

    def _tell(self, what: Callable[[Any], object]) -> None:
        for teller in self._tellers:
            teller.tell(what)

    def _remember(self) -> None:
        """Before the trackers are told: what an interruption cuts off is lost, not told twice."""
        self._path.parent.mkdir(exist_ok=True)
        write_atomically(self._path, json.dumps(asdict(self._memory)).encode())


@contextmanager
def tracked(
    names: Sequence[str], store: RunStore, config: ExperimentConfig, prompts: Sequence[Prompt]
) -> Iterator[Trackers]:
    """The trackers of a run, open until it ends in whatever way."""
    trackers = Trackers(names, store)
    trackers.begin(config.resolved(), prompts)
    try:
        yield trackers
    finally:
        trackers.finish()


def hyperparameters(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as plain values by dotted key, without what it keeps secret."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= hyperparameters(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            flat |= hyperparameters({str(at): v for at, v in enumerate(value)}, f"{name}.")
        elif SECRET.search(key) and value is not None:
            flat[name] = "***"
        else:
            flat[name] = _plain(value)
    return flat


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, str):
        return QUERY.sub(r"\1***", USER.sub("***", value))
    return value if isinstance(value, bool | int | float) else json.dumps(value)


def _name(prompt: Prompt) -> str:
    """Where a prompt's curves go: alone, or those of many in one."""
    if prompt.index < APART:
        return f"prompt_{prompt.index:03d}"
    return f"prompts_from_{APART:03d}"


def _by_judge(prefix: str, judged: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"{prefix}/judges/{judge}/{metric}": value
        for judge, aspects in judged.items()
        for metric, value in aspects.items()
    }


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """What can stand in a curve."""
    return {
        name: float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def _pixels(media: Image | Sequence[Image]) -> np.ndarray:
    """uint8 [height, width, 3] of an image, or of a video's middle frame."""
    picture = media[len(media) // 2] if isinstance(media, list) else media
    picture = picture.convert("RGB")  # type: ignore[union-attr]
    picture.thumbnail((WIDEST, WIDEST))
    return np.asarray(picture)
