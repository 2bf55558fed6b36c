"""What an unfinished prompt has been answered so far, so that an interruption loses none of it.

Each answered batch is appended to `state/prompt<index>.jsonl`, after the files that its line names.
A prompt that was interrupted is searched again from its start, and answered from these lines as
long as they last: the search asks the same again, for all its randomness is keyed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from experiment.answers import ANSWER, Answers, as_json, from_json
from experiment.batches import Answered, Made, Moved, Preview
from experiment.lines import LineFile
from experiment.overlap import side_by_side
from experiment.pictures import from_tensors, to_tensors
from experiment.prompts import Prompt
from experiment.rows import as_sum
from experiment.stops import SILENT
from experiment.store import RunStore
from pipelines.made import Decoded
from search.core import Candidates, Rollout
from search.ledger import Cost
from utils import UserError
from verifiers.base import NO_ANSWER, Memory, Score

REMEDY = "delete that prompt's journal in state/ to search for it anew"


@dataclass(frozen=True)
class Shrunk:
    """That batches hold no more than `size` candidates from here on.

    lost: batches of before that were made, or tried, in vain.
    """

    size: int
    lost: int = 0


class Journal:
    """One prompt's journal: replays what is in it, then takes what is new.

    batch_size: of the run as the prompt's search began.
    """

    def __init__(self, store: RunStore, prompt: Prompt, batch_size: int) -> None:
        self._store = store
        self._prompt = prompt
        self._lines = _lines(store.state / f"prompt{prompt.index}.jsonl")
        self._written = 0  # files of tensors so far
        self._replay: deque[tuple[int, dict[str, Any]]] = deque()
        self._made: dict[str, dict[str, Any]] = {}
        self._judged: dict[tuple[int, str], Score] = {}
        self._answers = Answers(self._lines.append)  # names no files whose names were to be settled
        self._elapsed, self._since = 0.0, time.monotonic()
        self.batch_size = batch_size
        store.state.mkdir(exist_ok=True)
        if lines := self._lines.read():
            self._open(lines)
        else:
            self._append({"kind": "prompt", "prompt": prompt.text, "batch_size": batch_size})

    def clock(self) -> float:
        """Seconds worked on the prompt in all sittings; stands still while it is replayed."""
        if self._replay:
            return self._elapsed
        return self._elapsed + time.monotonic() - self._since

    def recall(self, rollout: Rollout, start: Candidates) -> Answered | None:
        """The answer to this batch, if it was given before; refuses a journal of another search."""
        if not self._replay:
            return None
        number, line = self._replay[0]
        with self._lines.fitting(number):
            self._refuse_other(number, line["asked"], _asked(rollout, start))
            answered = self._recalled(rollout, start, line)
            self._elapsed, self._since = line["elapsed"], time.monotonic()
        self._pop()
        self._written += 1
        return answered

    def _recalled(self, rollout: Rollout, start: Candidates, line: Mapping[str, Any]) -> Answered:
        tensors = self._read_tensors(line)
        sums = line.get("sums", {})  # earlier versions kept none
        for path in line["paths"]:
            if path is not None:
                self._store.check_media(path, as_sum(sums.get(path)), REMEDY)
        placed = _placed(tensors, line, start)
        return Answered(
            _moved(rollout, start, placed),
            placed.get("gradient"),
            [from_json(content) for content in line["scores"]],
            from_tensors(tensors, len(start)),
            Cost(**line["cost"]),
            line.get("batch_size", len(start)),  # earlier versions kept none
            line["paths"],
            line.get("singly", False),
            line.get("apart", False),
        )

    def _read_tensors(self, line: Mapping[str, Any]) -> dict[str, Tensor]:
        name = line["tensors"]
        return self._store.read_tensors(name, as_sum(line.get("sums", {}).get(name)), REMEDY)

    def append(
        self, rollout: Rollout, start: Candidates, answered: Answered, rounds: Sequence[int]
    ) -> Answered:
        """Keep a new answer: pictures first, then latents, then the line that names them all.

        rounds: each candidate's.
        """
        name = f"prompt{self._prompt.index}_{self._written}.safetensors"
        tensors = _tensors(answered.moved, answered.gradient)
        devices = {key: tensor.device.type for key, tensor in tensors.items()}
        write = partial(self._write_media, rollout)
        paths = side_by_side(write, rounds, start.seeds, answered.media)
        tensors |= to_tensors(answered.media, paths)
        sums = {path: self._store.media_sum(path) for path in paths if path is not None}
        sums[name] = self._store.write_tensors(name, tensors)
        self._append(
            {
                "kind": "batch",
                "asked": _asked(rollout, start),
                "scores": [as_json(score) for score in answered.scores],
                "cost": asdict(answered.cost),
                "batch_size": answered.batch_size,
                "apart": answered.apart,
                "tensors": name,
                "devices": devices,
                "paths": paths,
                "singly": answered.singly,
                "sums": sums,
                "elapsed": self.clock(),
            }
        )
        self._written += 1
        self._answers.forget(_asked(rollout, start))
        if (line := self._made.pop(_key(rollout, start), None)) is not None:
            (self._store.state / line["tensors"]).unlink(missing_ok=True)
        return replace(answered, paths=paths)

    def keep_made(self, rollout: Rollout, made: Made) -> None:
        """Keep a batch that is decoded and still to be judged."""
        key = _key(rollout, made.start)
        if key in self._made:
            return
        assert made.decoded is not None
        decoded, finite = made.decoded
        name = f"prompt{self._prompt.index}_{self._written}_{len(self._made)}.safetensors"
        tensors = _tensors(made.moved.candidates, None)
        line = {
            "kind": "made",
            "asked": _asked(rollout, made.start),
            "tensors": name,
            "devices": {key: tensor.device.type for key, tensor in tensors.items()},
            "rows": [made.moved.rows, made.before.rows],
            "flags": [finite, decoded.filtered, decoded.sound, decoded.again],
            "seconds": made.seconds,
            "singly": made.singly,
        }
        tensors |= to_tensors(decoded.media)
        tensors |= {f"before.{k}": v for k, v in to_tensors(made.before.media).items()}
        line["sums"] = {name: self._store.write_tensors(name, tensors)}
        self._append(line)
        self._made[key] = line

    def made(self, rollout: Rollout, start: Candidates) -> Made | None:
        """This batch, if it was made before and only its scores are missing."""
        line = self._made.get(_key(rollout, start))
        if line is None:
            return None
        tensors = self._read_tensors(line)
        moved = _moved(rollout, start, _placed(tensors, line, start))
        before = {k.removeprefix("before."): v for k, v in tensors.items() if "before." in k}
        previews = from_tensors(before, len(start)) if before else ()
        self._elapsed += line["seconds"]
        finite, *flags = line["flags"]
        rows, before_rows = line["rows"]
        return Made(
            start,
            Moved(moved, moved.latents, rows),
            Preview(previews, before_rows),
            (Decoded(from_tensors(tensors, len(start)), *flags), finite),
            line["seconds"],
            line.get("singly", False),
            len(start),  # prompts that share batches put none by
        )

    def _write_media(self, rollout: Rollout, round: int, seed: int, media: Any) -> str | None:
        """A picture whose round cannot be rejected any more goes where it will stay."""
        if media is None or rollout.rejectable:
            return None
        return self._store.write_media(self._prompt, round, seed, media)

    def shrunk(self) -> Shrunk | None:
        """How the search went on from here, if its batches had to become smaller."""
        found = None
        while self._replay and self._replay[0][1]["kind"] == "batch_size":
            line = self._replay[0][1]
            lost = line.get("lost", 0)  # earlier versions kept none
            found = Shrunk(int(line["size"]), lost + (found.lost if found else 0))
            self._pop()
        return found

    def shrink(self, shrunk: Shrunk) -> None:
        """From here on batches are no larger."""
        self._append({"kind": "batch_size", **asdict(shrunk)})

    def word(self, id: int, judge: str, ask: Callable[[Memory], Score]) -> Score:
        """A judge's word on a round's winner, which it gives once.

        ask: is handed what was answered where several make up the judge. Who does not answer is
        asked again by the next sitting.
        """
        known = self._judged.get((id, judge))
        if known is not None:
            return known
        score = ask(self._answers.memory({"id": id, "judge": judge}))
        if score.status not in SILENT:
            self._judged[id, judge] = score
            self._append({"kind": "judged", "id": id, "judge": judge, "score": as_json(score)})
        return score

    def memory(self, rollout: Rollout, start: Candidates, at: int) -> Memory:
        """What is answered of one of a batch's candidates before the others are."""
        return self._answers.memory(_asked(rollout, start), at)

    def drop_unanswered(self) -> None:
        """Forget the last batches in which no image was answered: they are to be asked again."""
        lines = [line for _, line in self._lines.read()]
        batches = [i for i, line in enumerate(lines) if line["kind"] == "batch"]
        answered = max((i for i in batches if _answered(lines[i])), default=-1)
        first = next((i for i in batches if i > answered and lines[i]["asked"]["score"]), None)
        self._lines.rewrite(
            line
            for i, line in enumerate(lines)
            if first is None or i < first or line["kind"] in ("judged", ANSWER)
        )

    def remove(self) -> None:
        """The prompt is done, and that is on record."""
        remove_journals(self._store, {self._prompt.index})

    def _open(self, lines: Sequence[tuple[int, dict[str, Any]]]) -> None:
        (number, first), *others = lines
        if first.get("prompt") != self._prompt.text:
            raise UserError(
                f"{self._lines.path} is the journal of another prompt: restore the prompts that"
                " the run began with, or start a new run."
            )
        with self._lines.fitting(number):
            self.batch_size = int(first["batch_size"])
        for number, line in others:
            with self._lines.fitting(number):
                self._take(number, line)

    def _take(self, number: int, line: dict[str, Any]) -> None:
        """Keep a line of an earlier sitting for when it is asked for."""
        kind = line["kind"]
        if kind == "judged":
            self._judged[line["id"], line["judge"]] = from_json(line["score"])
        elif kind == ANSWER:
            self._answers.take(line)
        elif kind == "made":
            if (self._store.state / line["tensors"]).exists():
                self._made[json.dumps(line["asked"])] = line
        else:
            self._replay.append((number, line))
            self._made.pop(json.dumps(line.get("asked")), None)
            self._answers.forget(line.get("asked"))

    def _pop(self) -> None:
        self._replay.popleft()
        self._since = time.monotonic()

    def _refuse_other(self, number: int, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for key, value in now.items():
            if then.get(key) != value:
                raise UserError(
                    f"Line {number} of {self._lines.path} answers {key} {then.get(key)}, but the"
                    f" search now asks for {key} {value}: the code or the machine has changed; go"
                    " on with the old one, or delete that file to search for this prompt anew."
                )

    def _append(self, line: Mapping[str, Any]) -> None:
        """Add a line; the files that it names outlive a power cut before it does."""
        self._store.settle_names()
        self._lines.append(line)


def _lines(path: Path) -> LineFile:
    return LineFile(path, "delete it to search for its prompt anew")


def remove_journals(store: RunStore, indices: Collection[int]) -> None:
    """Remove all that was kept for prompts that are done."""
    for path in store.state.glob("prompt*"):
        match = re.match(r"prompt(\d+)[_.]", path.name)
        if match is not None and int(match[1]) in indices:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or gone
        store.state.rmdir()


def pictures_named(store: RunStore, indices: Iterable[int] | None = None) -> set[str]:
    """The pictures in the run folder that journals name: of these prompts, or of all."""
    if indices is None:
        paths = list(store.state.glob("prompt*.jsonl"))
    else:
        paths = [store.state / f"prompt{index}.jsonl" for index in indices]
    named: set[str] = set()
    for path in paths:
        lines = _lines(path)
        for number, line in lines.read():
            with lines.fitting(number):
                named |= {path for path in line.get("paths", ()) if path is not None}
    return named


def _asked(rollout: Rollout, start: Candidates) -> dict[str, Any]:
    """What a batch is known by."""
    return {
        "seeds": list(start.seeds),
        "step": start.step,
        "until": rollout.until,
        "guidance": rollout.guidance,
        "draft": rollout.draft,
        "score": rollout.score,
        "gradient": rollout.gradient,
        "rejectable": rollout.rejectable,
    }


def _key(rollout: Rollout, start: Candidates) -> str:
    return json.dumps(_asked(rollout, start))


def _tensors(moved: Candidates, gradient: Tensor | None) -> dict[str, Tensor]:
    """What is kept of a batch beside its pictures."""
    all_of_it = {
        "latents": moved.latents, "noise_scale": moved.noise_scale, "gradient": gradient
    }  # fmt: skip
    return {name: tensor for name, tensor in all_of_it.items() if tensor is not None}


def _placed(
    tensors: Mapping[str, Tensor], line: Mapping[str, Any], start: Candidates
) -> dict[str, Tensor]:
    """Tensors where they were: on the CPU, or else where the candidates are."""
    there = start.latents.device
    return {
        name: tensors[name] if device == "cpu" else tensors[name].to(there)
        for name, device in line["devices"].items()
    }


def _moved(rollout: Rollout, start: Candidates, placed: Mapping[str, Tensor]) -> Candidates:
    return replace(
        start,
        latents=placed["latents"],
        step=rollout.until,
        noise_scale=placed.get("noise_scale"),
    )


def _answered(line: Mapping[str, Any]) -> bool:
    """Whether a verifier was asked, and answered for one image at least."""
    return bool(line["asked"]["score"]) and any(
        score["status"] not in NO_ANSWER for score in line["scores"]
    )
