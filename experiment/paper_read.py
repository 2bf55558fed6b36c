"""What comparisons' folders hold, as the paper-style table needs it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment.late_judges import words
from experiment.records import read_candidates, read_object
from utils import UserError, path_part

WINNERS = "winners.jsonl"
CELL = re.compile(r"nfe(\d+)_s(\d+)")  # a run's folder, by its budget and seed
Tell = Callable[[str], None]
Key = tuple[str, int]  # a prompt's text and a run's seed


@dataclass(frozen=True)
class Choice:
    """What a method chose for one prompt within a budget.

    scores: by metric, nan for no answer. image: where it is, None where nothing was scored.
    """

    scores: Mapping[str, float]
    nfe: float
    images: int
    image: Path | None = None


@dataclass
class Method:
    """One search of a comparison, over its seeds: choices by budget, then by prompt and seed."""

    label: str
    config: Mapping[str, Any]  # of one of its runs
    choices: dict[int, dict[Key, Choice]] = field(default_factory=dict)
    firsts: dict[Key, Choice] = field(default_factory=dict)  # each prompt's first image


@dataclass(frozen=True)
class Comparison:
    """A comparison's folder. own: the metric that its searches raised; None where a pool sets it.

    verifier: its name, with its model where it names one.
    """

    folder: Path
    verifier: str
    own: str | None
    metrics: tuple[str, ...]
    methods: tuple[Method, ...]

    @property
    def setting(self) -> tuple[Any, ...]:
        """What must be the same for numbers to compare."""
        config = self.methods[0].config
        keys = ("pretrained_model_name_or_path", "pipeline_call_args", "scheduler")
        return tuple(json.dumps(config.get(key), sort_keys=True) for key in keys)


def read_comparison(folder: Path, tell: Tell) -> Comparison:
    """What the comparison has done so far; `tell` is told of what cannot be read."""
    labels, metrics = _order(folder)
    methods: dict[str, Method] = {}
    names: list[str] = []
    for path in sorted(folder.glob(f"*/nfe*_s*/{WINNERS}")):
        match = CELL.fullmatch(path.parent.name)
        if match is None:
            continue
        try:
            config = read_object(path.parent / "config.json")
        except (OSError, UserError) as error:
            tell(f"warning: {path.parent} is left out: {error}")
            continue
        label = labels.get(path.parent.parent.name, path.parent.parent.name)
        method = methods.setdefault(label, Method(label, config))
        seed = int(match[2])
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                names += _take(method, json.loads(line), seed, path.parent)
            except (ValueError, KeyError, TypeError, AttributeError):
                tell(f"warning: line {number} of {path} is damaged and left out.")
    if not names:
        raise UserError(f"There is no comparison in {folder}: give a folder below output/compare.")
    known = list(dict.fromkeys(names))
    shown = tuple(name for name in known if name in metrics) if metrics else tuple(known)
    order = [*labels.values(), *sorted(methods)]
    found = tuple(sorted(methods.values(), key=lambda method: order.index(method.label)))
    own = known[0] if known[0] in shown else None
    for method in found:
        _add_firsts(method, folder, own)
    late = _late(folder, known, tell)
    for method in found:
        _hear(method, late)
    shown += tuple(dict.fromkeys(name for said in late.values() for name in said))
    return Comparison(folder, _verifier(found[0].config), own, shown, found)


def comparison_runs(folder: Path) -> list[Path]:
    """Of each method and seed the run at the largest budget, in the comparison's order."""
    labels, _ = _order(folder)
    largest: dict[tuple[str, int], tuple[int, Path]] = {}
    for path in folder.glob("*/nfe*_s*/config.json"):
        if match := CELL.fullmatch(path.parent.name):
            key, found = (path.parent.parent.name, int(match[2])), (int(match[1]), path.parent)
            largest[key] = max(largest.get(key, found), found)
    order = [*labels, *sorted({method for method, _ in largest})]
    keys = sorted(largest, key=lambda key: (order.index(key[0]), key[1]))
    return [largest[key][1] for key in keys]


def _late(folder: Path, taken: list[str], tell: Tell) -> dict[Path, dict[str, float]]:
    """By image what judges have said after the fact; taken: metrics that others go by."""
    names: dict[tuple[str, str], str] = {}
    found: dict[Path, dict[str, float]] = {}
    for run in sorted(folder.glob("*/nfe*_s*")):
        for word in words(run, lambda name, why: tell(f"warning: {name} is left out: {why}.")):
            key = (word.judge, word.metric)
            if key not in names:
                free = word.metric not in taken and word.metric not in names.values()
                names[key] = word.metric if free else f"{word.judge}.{word.metric}"
            found.setdefault(run / word.path, {})[names[key]] = word.score
    return found


def _hear(method: Method, late: Mapping[Path, Mapping[str, float]]) -> None:
    """Add what judges have said after the fact."""
    for choices in (*method.choices.values(), method.firsts):
        for key, choice in choices.items():
            if said := late.get(choice.image or Path()):
                choices[key] = replace(choice, scores={**choice.scores, **said})


def _take(method: Method, line: Mapping[str, Any], seed: int, run: Path) -> Iterator[str]:
    """Keep a prompt's winners; yields the metrics' names, the verifier's own first."""
    key = (str(line["prompt"]), seed)
    for winner in line["winners"]:
        scores = {name: _number(value) for name, value in winner["scores"].items()}
        image = run / winner["path"] if winner.get("path") else None
        choice = Choice(scores, float(winner["nfe"]), int(winner["images"]), image)
        method.choices.setdefault(int(winner["budget"]), {})[key] = choice
        yield from scores


def _order(folder: Path) -> tuple[dict[str, str], list[str]]:
    """From the comparison's own table, if it has one: methods by folder, and metrics."""
    path = folder / "table.json"
    try:
        table = read_object(path)
        return {path_part(name): name for name in table["methods"]}, list(table["metrics"])
    except (OSError, UserError, KeyError, TypeError):
        return {}, []


def _add_firsts(method: Method, folder: Path, own: str | None) -> None:
    """Each prompt's first image, which is what plain sampling gives.

    Judged where a budget pays for no more; else the verifier's score alone is on record.
    """
    if _stochastic(method.config):
        return
    steps = method.config.get("pipeline_call_args", {}).get("num_inference_steps")
    for choices in method.choices.values():
        firsts = {k: c for k, c in choices.items() if c.images == 1 and c.nfe == steps}
        method.firsts |= firsts
    for run in (folder / path_part(method.label)).glob("nfe*_s*"):
        match = CELL.fullmatch(run.name)
        if match is None or own is None:
            continue
        for row in read_candidates(run):
            key = (row.prompt, int(match[2]))
            plain = row.recipe.get("op") == "draw" and row.step == row.steps == row.nfe
            if plain and row.id == 0 and key not in method.firsts:
                image = run / row.path if row.path else None
                method.firsts[key] = Choice({own: row.score}, row.nfe, 1, image)


def _stochastic(config: Mapping[str, Any]) -> bool:
    from search import search_class

    try:
        args = config["search_args"]
        needs = search_class(str(args["search_method"])).needs
        return "stochastic" in needs or bool(args.get("stochastic"))
    except (KeyError, TypeError, UserError):
        return True  # who knows


def _verifier(config: Mapping[str, Any]) -> str:
    args = config.get("verifier_args") or {}
    model = args.get("model_name")
    return f"{args.get('name', '?')}" + (f" ({Path(str(model)).name})" if model else "")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
