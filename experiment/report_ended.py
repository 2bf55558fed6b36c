"""What a run itself says of its prompts: which are done, what it chose, which failed and why.

A finished run says so in `summary.json`, a comparison's line by line in `winners.jsonl`. One that
goes on, or was killed, says it in `state/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from experiment.late_judges import words
from experiment.records import SHARDS, STATE, SUMMARY
from experiment.report_files import Files
from experiment.report_numbers import as_named, as_whole
from experiment.report_run import Named

WINNERS = "winners.jsonl"
MANIFEST = "manifest.json"  # every run of ours writes one as it begins
DONE = f"{STATE}/done.jsonl"
UNFIT = (KeyError, TypeError, AttributeError, ValueError)
TRACEBACK = re.compile(r"prompt(\d+)\.failed\.txt")


@dataclass(frozen=True)
class Ended:
    """A prompt that the run is done with. best: its winner's id; judged: the judges' word on that.

    failed: why, if it has.
    """

    text: str
    category: str = ""
    best: int | None = None
    judged: Mapping[Named, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Endings:
    """By their numbers, the prompts that a run is done with.

    unfinished: whether it was to go on. judged: by path, what a comparison's judges said of it, and
    those that were asked later.
    """

    prompts: Mapping[int, Ended]
    judged: Mapping[str, Mapping[Named, float]]
    unfinished: bool


def read_endings(files: Files) -> Endings:
    """What is known; later words count for more than earlier ones."""
    prompts = dict(_tracebacks(files))
    summed_up = _summary(files)
    prompts |= summed_up or {}
    judged: dict[str, Mapping[Named, float]] = {}
    for number, line in files.lines(WINNERS):
        try:
            for winner in line["winners"]:
                if winner["path"] is not None:
                    judged[winner["path"]] = as_named({"": winner["scores"]})
            prompts |= _noted(line)
        except UNFIT:
            files.leave_out(f"{WINNERS}, line {number}", "not a prompt's winners")
    for word in words(files.folder, files.leave_out):
        judged[word.path] = {**judged.get(word.path, {}), **as_named(word.scores)}
    prompts |= _state(files)
    begun = MANIFEST in files.names or STATE in files.names
    return Endings(prompts, judged, unfinished=begun and summed_up is None)


def _summary(files: Files) -> dict[int, Ended] | None:
    """None where there is none that can be read: the run is not finished, or was damaged."""
    content = files.object(SUMMARY) if SUMMARY in files.names else None
    if content is None:
        return None
    found: dict[int, Ended] = {}
    try:
        for index, entry in enumerate(content["prompts"]):
            found[as_whole(entry.get("prompt_index", index))] = _ended(entry)
    except UNFIT:
        files.leave_out(SUMMARY, "not a run's summary")
        return found or None
    return found


def _state(files: Files) -> dict[int, Ended]:
    """What a run that goes on, alone or in several processes, has noted so far."""
    found: dict[int, Ended] = {}
    shards = sorted((files.folder / STATE / SHARDS).glob("prompt*.json"))
    for name in [*(f"{STATE}/{SHARDS}/{path.name}" for path in shards), DONE]:
        for number, line in files.lines(name):
            try:
                found |= _noted(line)
            except UNFIT:
                files.leave_out(f"{name}, line {number}", "not a prompt that is done")
    return found


def _noted(line: Any) -> dict[int, Ended]:
    """The prompt that a line sums up; none where it says not which."""
    entry = line.get("summary") or {}
    return {as_whole(entry["prompt_index"]): _ended(entry)} if "prompt_index" in entry else {}


def _ended(entry: Mapping[str, Any]) -> Ended:
    best = entry["best"] or {}
    return Ended(
        text=str(entry["prompt"]),
        category=str(entry.get("category") or ""),
        best=as_whole(best["id"]) if best else None,
        judged=as_named(best.get("judges")),
        failed=str(entry.get("failed") or ""),
    )


def _tracebacks(files: Files) -> Iterator[tuple[int, Ended]]:
    """Prompts that failed in a run which was stopped before it could sum up."""
    for path in sorted((files.folder / STATE).glob("prompt*.failed.txt")):
        match = TRACEBACK.fullmatch(path.name)
        if match is None:
            continue
        journal = f"{STATE}/prompt{match[1]}.jsonl"
        head = next(files.lines(journal), (0, None))[1]
        text = head.get("prompt") if isinstance(head, dict) else None
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            continue
        reason = next((line for line in reversed(lines) if line.strip()), "")
        if isinstance(text, str):
            yield int(match[1]), Ended(text, failed=reason.strip() or "it failed")
