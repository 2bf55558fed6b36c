"""What is told of runs: their metrics, winners, curves, differences, and what went wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from experiment.estimators import expected_best, fooled, rank_correlation, win_rate
from experiment.report_names import names, setting
from experiment.report_run import UNRECORDED, Candidate, Named, Run, Searched
from experiment.statistics import (
    Difference,
    Estimate,
    corrected,
    difference,
    estimate,
    is_binary,
)
from utils import free_name

NFE, SECONDS, IMAGES = "NFE", "seconds", "images"
COSTS: Mapping[str, Callable[[Candidate], float]] = {
    NFE: lambda candidate: candidate.nfe,
    SECONDS: lambda candidate: candidate.seconds,
    IMAGES: lambda candidate: float(candidate.finished),
}
POINTS = 48  # of a mean curve
FINE = ("ok", "unasked", UNRECORDED)  # all other statuses are failures


@dataclass(frozen=True)
class Metric:
    """A column of scores: the chosen metric, another of the verifier's, or a judge's."""

    label: str
    judge: bool
    named: Named | None  # None for the chosen metric, which is the row's own score


@dataclass(frozen=True)
class Told:
    """A run with a name that tells it from the others, and all that is told of it."""

    name: str
    run: Run

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The chosen metric first, then the verifier's others, then the judges'."""
        chosen = self._chosen()
        verifier: dict[Named, None] = {}
        judges: dict[Named, None] = {}
        for candidate in self._candidates():
            verifier |= dict.fromkeys(candidate.named)
            judges |= dict.fromkeys(candidate.judged)
        metrics = [Metric(chosen, False, None)]
        for named in verifier:
            if named[1] != chosen:
                metrics.append(Metric(_label(named, metrics), False, named))
        for named in judges:
            # A comparison's winners carry the verifier's word among the judges'.
            if named not in verifier and named != ("", chosen):
                metrics.append(Metric(_label(named, metrics), True, named))
        return tuple(metrics)

    @property
    def metric(self) -> str:
        """The one that the search went by."""
        return self.metrics[0].label

    @property
    def judges(self) -> tuple[str, ...]:
        return tuple(metric.label for metric in self.metrics if metric.judge)

    def values(self, candidate: Candidate) -> list[float]:
        """A candidate's score by each metric; nan where it has none."""
        said = {**candidate.named, **candidate.judged}
        return [
            candidate.score if metric.named is None else said.get(metric.named, math.nan)
            for metric in self.metrics
        ]

    @cached_property
    def winners(self) -> dict[tuple[str, int], dict[str, float]]:
        """By prompt the scores of its winner, by metric."""
        labels = [metric.label for metric in self.metrics]
        return {
            each.key: dict(zip(labels, self.values(each.best), strict=True))
            for each in self.run.searched
            if each.best is not None
        }

    def scores(self, label: str, keys: Iterable[tuple[str, int]] | None = None) -> list[float]:
        """The winners' scores by one metric; nan for a prompt that has none."""
        wanted = self.winners if keys is None else keys
        return [self.winners.get(key, {}).get(label, math.nan) for key in wanted]

    @cached_property
    def gives_shares(self) -> bool:
        """Whether every score that the search went by is 0 or 1, so that means are shares."""
        return is_binary([c.score for c in self._candidates() if c.finished])

    @cached_property
    def fooled(self) -> frozenset[tuple[str, int]]:
        """The prompts whose winner the verifier ranks far above what any judge does."""
        judged = {label: self.scores(label) for label in self.judges}
        flags = fooled(self.scores(self.metric), judged)
        return frozenset(key for key, flag in zip(self.winners, flags, strict=True) if flag)

    @cached_property
    def correlations(self) -> dict[str, float]:
        """By judge the rank correlation with the verifier, over winners: only they are judged."""
        own = self.scores(self.metric)
        return {label: rank_correlation(own, self.scores(label)) for label in self.judges}

    @cached_property
    def failures(self) -> Counter[str]:
        return Counter(c.status for c in self._candidates() if c.status not in FINE)

    def total(self, cost: str) -> float:
        """Spent on all that has a row, if anything has; nan where the records do not tell."""
        rows = [each for each in self._candidates() if each.status != UNRECORDED]
        return math.fsum(COSTS[cost](candidate) for candidate in rows or self._candidates())

    @cached_property
    def costs(self) -> tuple[str, ...]:
        """Those that the records tell."""
        return tuple(cost for cost in COSTS if not math.isnan(self.total(cost)))

    def setting(self, *keys: str) -> str:
        """A value of the run's config, by the way to it; empty where it has none."""
        return setting(self.run.config, keys)

    def _chosen(self) -> str:
        rounds = (each.metric for searched in self.run.searched for each in searched.rounds)
        recorded = next((metric for metric in rounds if metric), "")
        return recorded or self.setting("verifier_args", "choice_of_metric") or "score"

    def _candidates(self) -> Iterable[Candidate]:
        return (each for searched in self.run.searched for each in searched.candidates)


def told(runs: Sequence[Run]) -> list[Told]:
    """Runs with the shortest names that tell them apart."""
    return [Told(name, run) for name, run in zip(names(runs), runs, strict=True)]


def _label(named: Named, taken: Sequence[Metric]) -> str:
    judge, aspect = named
    labels = {metric.label for metric in taken}
    if aspect not in labels:
        return aspect
    longer = f"{judge}.{aspect}"
    return longer if longer not in labels else free_name(longer, labels)


# Curves.


def best_so_far(searched: Searched, cost: str) -> list[tuple[float, float]]:
    """What was spent and the best finished score until then, each time that it rose.

    The last point is the search's end. Without a record of the cost there is no point.
    """
    points: list[tuple[float, float]] = []
    spent, best = 0.0, -math.inf
    for candidate in searched.candidates:
        spent += COSTS[cost](candidate)
        if candidate.finished and candidate.score > best:
            best = candidate.score
            points.append((spent, best))
    if math.isnan(spent) or not points:
        return []
    return points if points[-1][0] == spent else [*points, (spent, best)]


def mean_curve(run: Told, cost: str) -> list[tuple[float, Estimate]]:
    """The mean of `best_so_far` over prompts, from where every prompt has a score.

    A prompt that ended earlier keeps its last score.
    """
    curves = [curve for each in run.run.searched if (curve := best_so_far(each, cost))]
    if not curves:
        return []
    start = max(curve[0][0] for curve in curves)
    moments = sorted({spent for curve in curves for spent, _ in curve if spent >= start})
    moments = _thinned(moments, POINTS)
    at = [_values_at(curve, moments) for curve in curves]
    return [
        (moment, estimate(values, binary=run.gives_shares))
        for moment, values in zip(moments, np.transpose(at), strict=True)
    ]


def _values_at(
    curve: Sequence[tuple[float, float]], moments: Sequence[float]
) -> NDArray[np.float64]:
    spent, best = np.array(curve).T
    reached: NDArray[np.float64] = best[np.searchsorted(spent, moments, "right") - 1]
    return reached


def _thinned(moments: Sequence[float], most: int) -> list[float]:
    """Some of the moments, closer together early on, where curves rise."""
    low, high = moments[0], moments[-1]
    if len(moments) <= most or low <= 0:
        step = max(1, math.ceil(len(moments) / most))
        return [*moments[:-1:step], moments[-1]]
    wanted = np.geomspace(low, high, most)
    places = np.searchsorted(moments, wanted * (1 - 1e-12))
    return [moments[i] for i in sorted({min(int(place), len(moments) - 1) for place in places})]


def draws(searched: Searched) -> list[float]:
    """The scores of independent draws: finished images of fresh noises that nothing chose.

    Those without a score are left out, so what follows is about images that can be scored.
    """
    return [
        each.score
        for each in searched.candidates
        if each.finished
        and not each.parents
        and each.recipe.get("op") == "draw"
        and not math.isnan(each.score)
    ]


def drawn(run: Told) -> list[list[float]]:
    """The draws of the prompts that have at least half as many of them as the most."""
    scores = [found for each in run.run.searched if (found := draws(each))]
    most = max(map(len, scores), default=0)
    return [found for found in scores if 2 * len(found) >= most]


def best_of_n(run: Told) -> Sequence[tuple[int, Estimate]]:
    """The expected best of 1, 2, 4, ... draws, the mean over the prompts in `drawn`.

    It ends with the fewest draws of any of these, so the same prompts stand behind every point.
    """
    scores = drawn(run)
    fewest = min(map(len, scores), default=0)
    sizes = sorted({2**k for k in range(fewest.bit_length())} | {fewest} - {0})
    best = {n: [expected_best(found, n) for found in scores] for n in sizes}
    return [(n, estimate(values, binary=run.gives_shares)) for n, values in best.items()]


# Runs against each other.


@dataclass(frozen=True)
class Pair:
    """One run against another by one metric, over the prompts for which both have a score.

    share: whether every one of these scores is 0 or 1.
    """

    metric: str
    ours: Told
    theirs: Told
    prompts: int
    share: bool
    difference: Difference
    wins: Estimate


def pair(ours: Told, theirs: Told, metric: str) -> Pair | None:
    """None where no prompt has both scores."""
    keys = [key for key in ours.winners if key in theirs.winners]
    both = np.array([ours.scores(metric, keys), theirs.scores(metric, keys)])
    both = both[:, ~np.isnan(both).any(axis=0)]
    if not both.size:
        return None
    share = is_binary(both)
    found = difference(*both, binary=share)
    return Pair(metric, ours, theirs, both.shape[1], share, found, win_rate(*both))


def shared_metrics(runs: Sequence[Told]) -> list[str]:
    """Metrics by which more than one run has scores, in the order of the first that has them."""
    labels = [metric.label for run in runs for metric in run.metrics]
    return [label for label in dict.fromkeys(labels) if labels.count(label) > 1]


def pairs(runs: Sequence[Told]) -> list[Pair]:
    """Every run against every earlier one, by every metric that both have.

    Their tests are corrected for the number of pairs under a metric.
    """
    return [each for metric in shared_metrics(runs) for each in _pairs(runs, metric)]


def _pairs(runs: Sequence[Told], metric: str) -> list[Pair]:
    each_pair = (
        pair(ours, theirs, metric) for at, theirs in enumerate(runs) for ours in runs[at + 1 :]
    )
    found = [each for each in each_pair if each is not None]
    adjusted = corrected([each.difference for each in found])
    return [replace(each, difference=own) for each, own in zip(found, adjusted, strict=True)]


def spent(searched: Searched, cost: str) -> float:
    return math.fsum(map(partial(_cost, cost), searched.candidates))


def _cost(cost: str, candidate: Candidate) -> float:
    return COSTS[cost](candidate)
