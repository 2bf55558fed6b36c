"""The table of a comparison: means over prompts, their intervals, and paired differences."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.compare_cell import Winner
from experiment.compare_config import CompareConfig
from experiment.statistics import LEVEL, RESAMPLES, Estimate, bootstrap
from utils import json_number, significant, write_atomically

COSTS = ("nfe", "rows", "seconds", "images")


@dataclass(frozen=True)
class Measured:
    """What one method came to, for one prompt at one seed and budget."""

    method: str
    seed: int
    prompt_index: int
    winner: Winner


@dataclass(frozen=True)
class Entry:
    """One method at one budget.

    scores: by metric. differences: to the first method at the same budget, paired by prompt.
    """

    method: str
    budget: int
    scores: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    costs: Mapping[str, Estimate]


@dataclass(frozen=True)
class Ceiling:
    """At one budget: what the best of the first method's images by an exact judge would have."""

    budget: int
    metric: str
    score: Estimate


@dataclass(frozen=True)
class Table:
    """A comparison's result over the prompts and seeds that all methods have done.

    answered: by metric, for how many of the prompts every method has a score at every budget; only
    those count there.
    """

    name: str
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    prompts: int
    wanted: int
    answered: Mapping[str, int]
    entries: tuple[Entry, ...]
    ceilings: tuple[Ceiling, ...]

    def entry(self, method: str, budget: int) -> Entry:
        return next(e for e in self.entries if (e.method, e.budget) == (method, budget))


def tabulate(
    config: CompareConfig, metrics: Sequence[str], measured: Iterable[Measured], wanted: int
) -> Table | None:
    """The table of what all methods have done; None where that is nothing."""
    grid = _Grid(config, measured)
    if not grid.prompts:
        return None
    reference, *_ = config.methods
    scores = {metric: grid.scores(metric) for metric in metrics}
    entries = []
    for at, method in enumerate(config.methods):
        for column, budget in enumerate(config.budgets):
            own = {metric: values[at, column] for metric, values in scores.items()}
            first = {metric: values[0, column] for metric, values in scores.items()}
            costs = {name: grid.mean(method, budget, name) for name in COSTS}
            assert costs["nfe"].max() <= budget, f"{method} overspent {budget} NFE"
            entries.append(
                Entry(
                    method,
                    budget,
                    {metric: bootstrap(values) for metric, values in own.items()},
                    {metric: bootstrap(own[metric] - first[metric]) for metric in metrics}
                    if method != reference
                    else {},
                    {name: bootstrap(values) for name, values in costs.items()},
                )
            )
    highest = {
        (metric, budget): grid.ceiling(reference, budget, metric)
        for metric in config.ceilings
        for budget in config.budgets
    }
    ceilings = [
        Ceiling(budget, metric, bootstrap(values))
        for (metric, budget), values in highest.items()
        if len(values)
    ]
    return Table(
        name=config.name,
        methods=tuple(config.methods),
        budgets=config.budgets,
        seeds=tuple(sorted({seed for _, seed in grid.pairs})),
        metrics=tuple(metrics),
        prompts=len(grid.prompts),
        wanted=wanted,
        answered={metric: values.shape[2] for metric, values in scores.items()},
        entries=tuple(entries),
        ceilings=tuple(ceilings),
    )


class _Grid:
    """Winners by method, budget, prompt and seed; only prompts and seeds that all methods have."""

    def __init__(self, config: CompareConfig, measured: Iterable[Measured]) -> None:
        self._config = config
        self._winners = {
            (each.method, each.winner.budget, each.prompt_index, each.seed): each.winner
            for each in measured
        }
        found = {(prompt, seed) for _, _, prompt, seed in self._winners}
        rows = [(method, budget) for method in config.methods for budget in config.budgets]
        self.pairs = sorted(
            pair for pair in found if all((*row, *pair) in self._winners for row in rows)
        )
        self.prompts: dict[int, list[int]] = {}  # the seeds of each
        for prompt, seed in self.pairs:
            self.prompts.setdefault(prompt, []).append(seed)

    def scores(self, metric: str) -> NDArray[np.float64]:
        """[method, budget, prompt], without the prompts where any method lacks a score."""
        config = self._config
        values = np.array(
            [
                [
                    self._by_prompt(method, budget, lambda w: w.scores[metric])
                    for budget in config.budgets
                ]
                for method in config.methods
            ]
        )
        return values[:, :, ~np.isnan(values).any(axis=(0, 1))]

    def mean(self, method: str, budget: int, cost: str) -> NDArray[np.float64]:
        return self._by_prompt(method, budget, lambda winner: float(getattr(winner, cost)))

    def ceiling(self, method: str, budget: int, metric: str) -> NDArray[np.float64]:
        """None for a prompt that was searched when another method was the reference."""
        values = self._by_prompt(
            method, budget, lambda winner: winner.ceilings.get(metric, math.nan)
        )
        return values[~np.isnan(values)]

    def _by_prompt(
        self, method: str, budget: int, value: Callable[[Winner], float]
    ) -> NDArray[np.float64]:
        """A value of each prompt, its seeds averaged first: prompts are what is resampled."""
        return np.array(
            [
                np.mean([value(self._winners[method, budget, prompt, seed]) for seed in seeds])
                for prompt, seeds in self.prompts.items()
            ]
        )


def write_table(table: Table, folder: Path) -> None:
    """table.json, table.csv and table.md in the comparison's folder."""
    content = json.dumps(_jsonable(asdict(table)), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "table.json", content.encode())
    write_atomically(folder / "table.csv", as_csv(table).encode())
    write_atomically(folder / "table.md", as_markdown(table).encode())


def _jsonable(value: Any) -> Any:
    """The same with nan as null."""
    if isinstance(value, Mapping):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return json_number(value) if isinstance(value, float) else value


def as_csv(table: Table) -> str:
    """One line a method and budget; every mean followed by the ends of its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "budget", "prompts", *_columns(table)])
    for entry in table.entries:
        cells: list[object] = []
        for metric in table.metrics:
            cells += [*_ends(entry.scores[metric]), *_ends(entry.differences.get(metric))]
        for cost in COSTS:
            cells += _ends(entry.costs[cost])
        writer.writerow([entry.method, entry.budget, table.prompts, *cells])
    return text.getvalue()


def _columns(table: Table) -> list[str]:
    means = [name for metric in table.metrics for name in (metric, f"{metric}_difference")]
    return [name + end for name in (*means, *COSTS) for end in ("", "_low", "_high")]


def _ends(estimate: Estimate | None) -> list[object]:
    if estimate is None:
        return ["", "", ""]
    values = (estimate.mean, estimate.low, estimate.high)
    return ["" if math.isnan(value) else value for value in values]


def as_markdown(table: Table) -> str:
    """One table a budget; differences whose interval leaves zero out stand in bold."""
    reference = table.methods[0]
    seeds = ", ".join(map(str, table.seeds))
    lines = [
        f"# {table.name}",
        "",
        f"{table.prompts} of {table.wanted} prompts, seeds {seeds} averaged within a prompt. In"
        f" brackets: {LEVEL:.0%} bootstrap intervals over prompts, {RESAMPLES} resamples. Δ:"
        f" difference to `{reference}` at the same budget, paired by prompt; bold where its"
        " interval leaves 0 out.",
    ]
    for metric, answered in table.answered.items():
        if answered < table.prompts:
            lines.append(f"`{metric}`: {answered} prompts, for which every method has a score.")
    for budget in table.budgets:
        heads = [head for metric in table.metrics for head in (metric, f"Δ {metric}")]
        lines += ["", f"## {budget} NFE", "", _row("method", *heads, *COSTS)]
        lines.append(_row("---", *("---:" for _ in (*heads, *COSTS))))
        lines += [_method_row(table, table.entry(method, budget)) for method in table.methods]
        ceilings = {c.metric: c.score for c in table.ceilings if c.budget == budget}
        if ceilings:
            cells = [
                cell
                for metric in table.metrics
                for cell in (_shown(ceilings[metric]) if metric in ceilings else "", "")
            ]
            lines.append(
                _row(
                    f"*best possible choice among `{reference}`'s images*",
                    *cells,
                    *("" for _ in COSTS),
                )
            )
    return "\n".join(lines) + "\n"


def _method_row(table: Table, entry: Entry) -> str:
    cells = []
    for metric in table.metrics:
        difference = entry.differences.get(metric)
        shown = "" if difference is None else _shown(difference, "+")
        bold = difference is not None and difference.excludes_zero
        cells += [_shown(entry.scores[metric]), f"**{shown}**" if bold else shown]
    costs = [significant(entry.costs[name].mean) for name in COSTS]
    return _row(entry.method, *cells, *costs)


def _shown(estimate: Estimate, sign: str = "") -> str:
    if math.isnan(estimate.low):
        return f"{estimate.mean:{sign}.3g}"
    return f"{estimate.mean:{sign}.3g} [{estimate.low:{sign}.3g}, {estimate.high:{sign}.3g}]"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
