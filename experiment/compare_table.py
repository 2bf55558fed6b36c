"""The table of a comparison: means over prompts, their intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiment.compare_cell import Winner
from experiment.compare_config import CompareConfig
from experiment.statistics import (
    Difference,
    Estimate,
    corrected,
    difference,
    estimate,
    is_binary,
)

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

    scores: by metric. differences: to the first method at the same budget, paired by prompt; their
    p is corrected for the number of methods that are compared with the first one there.
    """

    method: str
    budget: int
    scores: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
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
    those count there. shares: the metrics of which every single score is 0 or 1.
    """

    name: str
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    prompts: int
    wanted: int
    answered: Mapping[str, int]
    shares: tuple[str, ...]
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
    shares = tuple(metric for metric in metrics if grid.is_share(metric))
    differences = {
        (metric, column): _differences(values[:, column], binary=metric in shares)
        for metric, values in scores.items()
        for column in range(len(config.budgets))
    }
    entries = []
    for at, method in enumerate(config.methods):
        for column, budget in enumerate(config.budgets):
            costs = {name: grid.mean(method, budget, name) for name in COSTS}
            assert costs["nfe"].max() <= budget, f"{method} overspent {budget} NFE"
            entries.append(
                Entry(
                    method,
                    budget,
                    {
                        metric: estimate(values[at, column], binary=metric in shares)
                        for metric, values in scores.items()
                    },
                    {metric: differences[metric, column][at - 1] for metric in metrics if at},
                    {name: estimate(values, binary=False) for name, values in costs.items()},
                )
            )
    highest = {
        (metric, budget): grid.ceiling(reference, budget, metric)
        for metric in config.ceilings
        for budget in config.budgets
    }
    ceilings = [
        Ceiling(budget, metric, estimate(values, binary=metric in shares))
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
        shares=shares,
        entries=tuple(entries),
        ceilings=tuple(ceilings),
    )


def _differences(scores: NDArray[np.float64], *, binary: bool) -> list[Difference]:
    """All methods but the first against it, at one budget. scores: [method, prompt]."""
    first, *others = scores
    return corrected([difference(own, first, binary=binary) for own in others])


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

    def is_share(self, metric: str) -> bool:
        """Whether every single score is 0 or 1; means over seeds need not be."""
        pairs = set(self.pairs)
        return is_binary(
            [
                winner.scores[metric]
                for (_, _, prompt, seed), winner in self._winners.items()
                if (prompt, seed) in pairs
            ]
        )

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
