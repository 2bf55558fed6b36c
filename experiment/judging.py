"""Judging after the fact: verifiers score the winners of runs that are over.

What a judge says is written at once to `judged.jsonl` in the run's folder; nothing else there is
touched. A picture that a judge has answered for is not shown to it again, wherever it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment.drawing import Unreadable, read_image, readable
from experiment.judge_targets import Group, Target, groups
from experiment.judges import Judge
from experiment.late_judges import JUDGED, Word, parsed
from experiment.lines import LineFile
from experiment.rounds import recorded, recorded_details
from experiment.rows import Sum
from experiment.statistics import estimate, is_binary
from experiment.video import read_frames
from utils import significant
from verifiers.base import Chosen, Item, weights_of

BATCH = 16  # pictures held and judged at a time
NAMED = 20  # pictures without an answer, beyond which they are only counted
UNANSWERED = 3  # the status of a command that leaves some without an answer
REMEDY = "move it away to have all of it judged anew"

Tell = Callable[[str], None]
Content = tuple[Sum | None, str]  # a picture and its prompt, wherever they stand


class Book:
    """All that is on record in some folders, and where more of it goes."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._files = {f: LineFile(f / JUDGED, REMEDY, chained=False) for f in folders}
        self._words: dict[tuple[str, Path], Word] = {}
        self._answers: dict[tuple[str, Content], Word] = {}
        for folder, file in self._files.items():
            for number, line in file.read():
                with file.fitting(number):
                    self._keep(folder, parsed(line))

    def answer(self, judge: Judge, target: Target) -> Word | None:
        """What the judge has answered for this very picture, here or in another folder."""
        return self._answers.get((judge.key, _content(target)))

    def note(self, folder: Path, word: Word) -> None:
        """Write it down, unless it stands there."""
        before = self._words.get((word.key, folder / word.path))
        if before is None or before.as_line() != word.as_line():  # as lines, where nan is null
            self._files[folder].append(word.as_line())
            self._keep(folder, word)

    def _keep(self, folder: Path, word: Word) -> None:
        self._words[word.key, folder / word.path] = word
        if word.answered:
            self._answers[word.key, (word.sum, word.prompt)] = word


def _content(target: Target) -> Content:
    return target.sum, target.prompt


def judge_folders(
    folders: Sequence[Path], judges: Sequence[Judge], budget: int | None, say: Tell, tell: Tell
) -> int:
    """Judge what won in these folders; `UNANSWERED` if some of it is without an answer, else 0.

    say: takes what was found; tell: warnings.
    """
    found = groups(folders, budget, tell)
    targets = list({target.file: target for group in found for target in group.targets}.values())
    book = Book(sorted({target.folder for target in targets}))
    status = 0
    for judge in judges:
        missing = _judge(judge, targets, book, say)
        for group in found:
            for line in _summary(judge, group, book):
                say(line)
        if missing:
            _tell_missing(judge, missing, tell)
            status = UNANSWERED
    return status


def _judge(judge: Judge, targets: Sequence[Target], book: Book, say: Tell) -> list[str]:
    """Ask for what was never answered; which pictures have no answer now, and why."""
    new: dict[Content, list[Target]] = {}  # one picture may stand in several places
    for target in targets:
        if target.sum is None or book.answer(judge, target) is None:
            new.setdefault(_content(target), []).append(target)
    asked = [places[0] for content, places in new.items() if content[0] is not None]
    say(f"{judge.name}: {len(targets) - sum(map(len, new.values()))} of {len(targets)} on record")
    why = {
        place.file: "it cannot be read"
        for (picture, _), places in new.items()
        for place in places
        if picture is None
    }
    for target, reason in _ask(judge, asked, book) if asked else ():
        why |= {place.file: reason for place in new[_content(target)]}
    for target in targets:
        if target.file not in why and (word := book.answer(judge, target)) is not None:
            book.note(target.folder, word := _at(judge, target, word))
            if math.isnan(word.score):
                why[target.file] = _reason(word)
    return [f"{path}: {reason}" for path, reason in why.items()]


def _ask(judge: Judge, targets: Sequence[Target], book: Book) -> Iterator[tuple[Target, str]]:
    """Show pictures to the judge and write down what it says; yields those without an answer."""
    verifier = _ready(judge.verifier)
    for batch in _batches(targets):
        shown = [(target, item) for target, item in batch if isinstance(item, Item)]
        yield from ((target, item) for target, item in batch if isinstance(item, str))
        scores = verifier.score([item for _, item in shown]) if shown else []
        for (target, _), score in zip(shown, scores, strict=True):
            word = Word(
                path=target.path,
                prompt=target.prompt,
                judge=judge.name,
                asked=judge.asked,
                metric=judge.metric,
                score=score.value,
                status=score.status,
                scores=recorded({judge.name: score}),
                explanation=score.explanation,
                details=recorded_details(score),
                sum=target.sum,
            )
            book.note(target.folder, word)
            if not word.answered:
                yield target, _reason(word)
    verifier.offload()


def _reason(word: Word) -> str:
    return f"{word.status}, {word.explanation}".rstrip(", .")


def _ready(verifier: Chosen) -> Chosen:
    """The verifier with its weights loaded, on the best device there is."""
    from pipelines.loading import choose_device, hush

    hush()
    verifier.load("cpu" if verifier.remote else choose_device("auto"))
    return verifier


def _batches(targets: Sequence[Target]) -> Iterator[list[tuple[Target, Item | str]]]:
    """What is to be seen, or why it cannot be, so much at a time as may be held; videos singly."""
    batch: list[tuple[Target, Item | str]] = []
    for target in targets:
        try:
            media = _seen(target.file)
            batch.append((target, Item(media, target.prompt, label=target.label)))
        except Unreadable as error:
            media = None
            batch.append((target, str(error).rstrip(".")))
        if len(batch) == BATCH or isinstance(media, list):
            yield batch
            batch = []
    if batch:
        yield batch


def _seen(path: Path) -> Any:
    """An image, or the frames of a video."""
    if path.suffix != ".mp4":
        return read_image(path)
    with readable(path):
        return read_frames(path)


def _at(judge: Judge, target: Target, word: Word) -> Word:
    """The same word beside this picture, by the metric that is chosen today."""
    said = word.scores.get(word.judge, {})
    weights = weights_of(judge.args.metric)
    score = sum(weight * said.get(name, math.nan) for name, weight in weights.items())
    return replace(word, path=target.path, judge=judge.name, metric=judge.metric, score=score)


def _summary(judge: Judge, group: Group, book: Book) -> Iterator[str]:
    """Means over prompts, of a group and of each of its categories."""
    categories = sorted({target.category for target in group.targets} - {""})
    yield f"{group.folder}: {_mean(judge, group.targets, book)} {group.of}"
    for category in categories if len(categories) > 1 else ():
        own = [target for target in group.targets if target.category == category]
        yield f"{group.folder}, {category}: {_mean(judge, own, book)} {group.of}"


def _mean(judge: Judge, targets: Sequence[Target], book: Book) -> str:
    by_prompt: dict[str, list[float]] = {}
    for target in targets:
        word = book.answer(judge, target)
        if word is not None and not math.isnan(word.score):
            by_prompt.setdefault(target.prompt, []).append(word.score)
    share = all(map(is_binary, by_prompt.values()))
    mean = estimate([sum(each) / len(each) for each in by_prompt.values()], binary=share)
    interval = f" [{significant(mean.low)}, {significant(mean.high)}]"
    scored = sum(map(len, by_prompt.values()))
    return (
        f"{judge.metric} {significant(mean.mean)}{interval if mean.bounded else ''},"
        f" {scored} of {len(targets)}"
    )


def _tell_missing(judge: Judge, missing: Sequence[str], tell: Tell) -> None:
    tell(f"warning: {len(missing)} without a score by {judge.name}:")
    for line in missing[:NAMED]:
        tell(f"warning:   {line}")
    if len(missing) > NAMED:
        tell(f"warning:   and {len(missing) - NAMED} more")
