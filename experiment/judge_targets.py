"""What is judged after the fact: winners of runs and comparisons, and all images of benchmarks.

Benchmarks are folders in GenEval's or T2I-CompBench's layout, as `--export` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment.export_folders import METADATA, SAMPLES
from experiment.paper_read import Comparison, comparison_runs, read_comparison
from experiment.paper_table import joint_budget
from experiment.report_read import read_run
from experiment.rows import Sum, sum_of
from utils import UserError

PICTURES = (".png", ".jpg", ".jpeg")
Tell = Any  # takes a message


@dataclass(frozen=True)
class Target:
    """An image or a video to be judged. folder: where the word on it goes; path: relative to that.

    label: the class asked for, where the run's own call names it. category: a benchmark's.
    """

    folder: Path
    path: str
    prompt: str
    label: str | None = None
    category: str = ""

    @property
    def file(self) -> Path:
        return self.folder / self.path

    @cached_property
    def sum(self) -> Sum | None:
        """None where the file cannot be read."""
        try:
            return sum_of(self.file.read_bytes())
        except OSError:
            return None


@dataclass(frozen=True)
class Group:
    """What one of the named folders has to be judged. of: what its pictures are called."""

    folder: Path
    targets: tuple[Target, ...]
    of: str


def groups(folders: Sequence[Path], budget: int | None, tell: Tell) -> list[Group]:
    """What is to be judged in each of the folders.

    budget: in comparisons, the winners within so many NFE; unset: at the budget of their table,
    and the runs' own.
    """
    compared = {f: read_comparison(f, tell) for f in folders if comparison_runs(f)}
    if budget is not None and len(compared) < len(folders):
        raise UserError("--budget is of comparisons: a run's winners are judged as they are.")
    shared = _shared_budget(list(compared.values()), budget)
    found: list[Group] = []
    for folder in folders:
        if folder in compared:
            found += _of_comparison(compared[folder], shared, whole=budget is None)
        elif own := tuple(_of_benchmark(folder)):
            found.append(Group(folder, own, "images"))
        else:
            found.append(Group(folder, tuple(_of_run(folder)), "winners"))
    if empty := [group.folder for group in found if not group.targets]:
        raise UserError(f"There is nothing to judge in {empty[0]}: no image of it has a score.")
    return found


def _of_run(folder: Path) -> Iterator[Target]:
    run = read_run(folder)
    label = _label(run.config)
    for searched in run.searched:
        if searched.best is not None and searched.best.path is not None:
            yield Target(folder, searched.best.path, searched.text, label)


def _shared_budget(comparisons: Sequence[Comparison], asked: int | None) -> int | None:
    """At which their table stands; None where they have none yet."""
    try:
        return joint_budget(comparisons, asked) if comparisons else None
    except UserError:
        if asked is not None:
            raise
        return None


def _of_comparison(comparison: Comparison, budget: int | None, *, whole: bool) -> list[Group]:
    """Of each run the winners within the budget, and each prompt's first image once.

    That is what plain sampling gives, the same by every method. whole: also what each run itself
    has chosen at its largest budget.
    """
    runs: dict[Path, dict[str, Target]] = {}
    firsts: dict[tuple[str, int], Target] = {}
    for method in comparison.methods:
        label = _label(method.config)
        for (prompt, _), choice in method.choices.get(budget or 0, {}).items():
            if choice.image is not None:
                target = Target(choice.image.parent, choice.image.name, prompt, label)
                runs.setdefault(target.folder, {})[target.path] = target
        for key, choice in method.firsts.items():
            if choice.image is not None and key not in firsts:
                firsts[key] = Target(choice.image.parent, choice.image.name, key[0], label)
    for run in comparison_runs(comparison.folder) if whole else ():
        for target in _of_run(run):
            runs.setdefault(run, {})[target.path] = target
    found = [Group(run, tuple(targets.values()), "winners") for run, targets in runs.items()]
    if firsts:
        found.append(Group(comparison.folder, tuple(firsts.values()), "first images"))
    return found


def _label(config: Mapping[str, Any]) -> str | None:
    """The class that a run's call names, else None: then the prompt names it."""
    call = config.get("pipeline_call_args")
    given = call.get("class_labels") if isinstance(call, Mapping) else None
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return str(given) if isinstance(given, str | int) else None


def _of_benchmark(folder: Path) -> Iterator[Target]:
    """All images below folders named `samples`; none where the folder is no benchmark's."""
    for samples in sorted([folder / SAMPLES, *folder.glob(f"*/{SAMPLES}")]):
        known = _metadata(samples.parent / METADATA)
        for path in sorted(samples.glob("*")):
            if path.suffix.lower() not in PICTURES:
                continue
            place = path.relative_to(folder).as_posix()
            if known is not None:
                prompt, category = known
            else:  # T2I-CompBench's scorers read the prompt off the name
                prompt = path.stem.partition("_")[0]
                category = samples.parent.name if samples.parent != folder else ""
            yield Target(folder, place, prompt, category=category)


def _metadata(path: Path) -> tuple[str, str] | None:
    """The prompt and the tag in GenEval's line for a folder."""
    if not path.is_file():
        return None
    try:
        first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
        return str(first["prompt"]), str(first.get("tag") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no line of GenEval's metadata: mend it, or move it away.") \
            from error  # fmt: skip
