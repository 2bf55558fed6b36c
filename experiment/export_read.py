"""What an export is made of: the scored images of run folders, as their records tell.

An export should not fail over one bad record among thousands: what is damaged is left out, and
counted and named at the end.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment.late_judges import words
from experiment.records import CANDIDATES, SUMMARY, by_prompt, candidate_files, read_rounds
from utils import UserError

MOST_NAMED = 5
DAMAGED = "left out, damaged"
DEPTH = 4  # <model>/<verifier>/<metric>/<time>: a run's name without the rest of the path

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Sample:
    """A scored image of a run. chosen: whether the run took it for its prompt's best."""

    run: Path
    id: int
    prompt: str
    prompt_index: int
    category: str | None
    round: int
    seed: int
    score: float
    scores: Scores
    judges: Scores
    image: Path
    chosen: bool

    @property
    def run_name(self) -> str:
        return "/".join(self.run.absolute().parts[-DEPTH:])


@dataclass
class Notes:
    """What the user is told of an export: what was left out and why, what is less than usual."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, name: str) -> None:
        self.names[what].append(name)

    def lines(self) -> Iterator[str]:
        """One line for each kind: how many, and the first of them by name."""
        for what, names in self.names.items():
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            yield f"{len(names)} {what}: {', '.join(names[:MOST_NAMED])}{more}"


def samples_of(folders: Sequence[Path], notes: Notes) -> list[Sample]:
    """Every scored image of the runs, by run, prompt and time."""
    samples = [sample for folder in folders for sample in _run(folder, notes)]
    if not samples:
        raise UserError(
            f"There are no scored images in {', '.join(map(str, folders))}: give folders that runs"
            f" have written, with {CANDIDATES} or records of rounds in them."
        )
    return samples


def _run(folder: Path, notes: Notes) -> list[Sample]:
    if not candidate_files(folder):
        return _winners_of_rounds(folder, notes)
    chosen, categories = _outcomes(folder, notes)
    late = _late(folder, notes)
    samples: dict[Path, Sample] = {}
    for name, row in _rows(folder, notes):
        try:
            if row.get("path") is None or row.get("draft"):
                continue  # a preview, a rejected round, or a draft: there is no image to export
            index, path = int(row["prompt_index"]), str(row["path"])
            score = _number(row.get("score"))
            if row["status"] != "ok" or score is None:
                notes.add("left out, without a score", path)
                continue
            sample = Sample(
                run=folder,
                id=int(row["id"]),
                prompt=_text(row["prompt"]),
                prompt_index=index,
                category=categories.get(index),
                round=int(row["round"]),
                seed=int(row["seed"]),
                score=score,
                scores=_scores(row.get("scores")),
                judges={**_scores(row.get("judges")), **late.get(path, {})},
                image=folder / path,
                chosen=path in chosen,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            notes.add(DAMAGED, name)
            continue
        if _is_sound(sample.image, folder, notes):
            samples[sample.image] = sample  # scored again: the last row stands
    return sorted(samples.values(), key=lambda sample: (sample.prompt_index, sample.id))


def _winners_of_rounds(folder: Path, notes: Notes) -> list[Sample]:
    """Of a tree without rows, as tt-scale-flux leaves it: only rounds' winners have a score."""
    rounds = read_rounds(folder, lambda said: notes.add("damaged records", said))
    late = _late(folder, notes)
    samples: list[Sample] = []
    for index, own in enumerate(by_prompt(rounds).values()):
        scored = [each for each in own if math.isfinite(each.score)]
        best = max(scored, key=lambda each: each.score, default=None)
        samples += [
            Sample(
                run=folder,
                id=each.search_round,
                prompt=each.prompt,
                prompt_index=index,
                category=None,
                round=each.search_round,
                seed=each.best_noise_seed,
                score=each.score,
                scores={},
                judges=late.get(each.image_path.name, {}),
                image=each.image_path,
                chosen=each is best,
            )
            for each in scored
            if _is_sound(each.image_path, folder, notes)
        ]
    return samples


def _rows(folder: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The candidates' rows, each with a name by which it can be found."""
    for path in candidate_files(folder):
        # Not splitlines(): a prompt may hold U+2028, which ends a line of text but not a row.
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                row = _object(line)
                if row is None:
                    notes.add(DAMAGED, f"line {number} of {path}")
                else:
                    yield f"line {number} of {path}", row


def _outcomes(folder: Path, notes: Notes) -> tuple[set[str], dict[int, str]]:
    """The images that the run chose, and the prompts' categories by their index.

    An unfinished run has no summary yet: then the rounds' records know the categories.
    """
    chosen: set[str] = set()
    categories: dict[int, str] = {}
    for path in [*sorted(folder.glob("prompt@*.json")), folder / SUMMARY]:
        if not path.is_file():
            continue
        content = _object(path.read_bytes())
        try:
            if content is None:
                raise ValueError
            for entry in content["prompts"] if path.name == SUMMARY else [content]:
                if entry.get("category") is not None:
                    categories[int(entry["prompt_index"])] = str(entry["category"])
                if (entry.get("best") or {}).get("path"):
                    chosen.add(str(entry["best"]["path"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            notes.add(DAMAGED, str(path))
    return chosen, categories


def _late(folder: Path, notes: Notes) -> dict[str, dict[str, Mapping[str, float]]]:
    """By image what judges have said after the fact."""
    late: dict[str, dict[str, Mapping[str, float]]] = {}
    for word in words(folder, lambda name, _: notes.add(DAMAGED, f"{name} of {folder}")):
        late.setdefault(word.path, {}).update(word.scores)
    return late


def _is_sound(path: Path, folder: Path, notes: Notes) -> bool:
    """Whether the record's image is there, in its run's folder, and whole."""
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise UserError(f"{path} is no PNG image: exports are made of images, not of videos.")
    if not path.resolve().is_relative_to(folder.resolve()):
        notes.add("left out, outside the run's folder", str(path))
        return False
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError):  # Pillow's word for a broken PNG is SyntaxError
        notes.add(DAMAGED, str(path))
        return False
    return True


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _scores(value: Any) -> Scores:
    """What verifiers gave, metric by metric; what is no number is left out."""
    return {
        str(name): {
            str(metric): number
            for metric, given in metrics.items()
            if (number := _number(given)) is not None
        }
        for name, metrics in (value or {}).items()
    }


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def metric_names(scores: Iterable[Scores]) -> dict[str, list[str]]:
    """Every verifier with every metric that it gave anywhere, in alphabetical order."""
    names: dict[str, set[str]] = defaultdict(set)
    for each in scores:
        for verifier, metrics in each.items():
            names[verifier] |= metrics.keys()
    return {verifier: sorted(names[verifier]) for verifier in sorted(names) if names[verifier]}


def dealt(samples: Iterable[Sample], most: int) -> list[Sample]:
    """At most so many images of one prompt: every run's best, then every run's second best, ...

    A run's best is the one that it chose, then scores decide.
    """
    runs: dict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        runs[sample.run].append(sample)
    ranked = [
        (rank, number, sample)
        for number, run in enumerate(runs.values())
        for rank, sample in enumerate(sorted(run, key=lambda s: (not s.chosen, -s.score, s.id)))
    ]
    return [sample for _, _, sample in sorted(ranked, key=lambda entry: entry[:2])[:most]]
