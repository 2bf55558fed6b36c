"""How sure a mean over prompts is, and whether two methods differ: intervals and tests.

Prompts are the independent units. Several seeds of one prompt are not independent, so they are
averaged within the prompt first, and n below always counts prompts, never images.

- Means: the percentile bootstrap over prompts (Efron and Tibshirani 1993, ch. 13).
- Shares, where every single score is 0 or 1: Wilson's score interval (Wilson 1927). The bootstrap
  would call 24 of 24 certain. With several seeds a prompt's mean may lie between 0 and 1; with n
  still the number of prompts the interval is then too wide rather than too narrow, because no
  quantity within [0, 1] varies more than one of 0 and 1 with the same mean.
- A difference of two shares over the same prompts: Newcombe 1998 (paired data, method 10), which
  combines the two Wilson intervals; its test is the exact sign test over the prompts on which the
  two differ, which for one seed is McNemar's exact test (McNemar 1947).
- A difference of two means over the same prompts: the bootstrap of the differences; its test is the
  randomization test that flips their signs (Pitman 1937).
- Several comparisons at once: Holm's correction (Holm 1979).

Below `FEWEST` prompts there is a mean and nothing else: no interval and no test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST = 10  # prompts, below which an interval says little more than the lowest and the highest

Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its interval; nan where there is too little to tell."""

    mean: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean paired difference of two methods, and the test of there being none.

    better, worse: prompts on which the first has the higher or the lower score. p: two-sided;
    adjusted: the same after Holm's correction (`corrected`). nan where there is too little to tell.
    """

    better: int
    worse: int
    p: float
    adjusted: float = math.nan

    @property
    def significant(self) -> bool:
        return self.adjusted < 1 - LEVEL


def is_binary(values: Values) -> bool:
    """Whether every score is 0 or 1; nan stands for none.

    A bounded score that is at its bound everywhere counts too: there the bootstrap knows no doubt.
    """
    sample = np.asarray(values, dtype=np.float64)
    known = sample[~np.isnan(sample)]
    return bool(known.size) and bool(np.isin(known, (0, 1)).all())


def estimate(values: Values, *, binary: bool | None = None) -> Estimate:
    """The mean over prompts with its interval.

    binary: whether the scores are all 0 or 1, where `values` are means over seeds; None: look.
    """
    sample = np.asarray(values, dtype=np.float64)
    if 0 < len(sample) < FEWEST:
        return Estimate(float(sample.mean()), math.nan, math.nan)
    if is_binary(sample) if binary is None else binary:
        return wilson(sample)
    return bootstrap(sample)


def difference(ours: Values, theirs: Values, *, binary: bool | None = None) -> Difference:
    """The mean difference over the same prompts, in the same order, with its interval and test."""
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    each = x - y
    better, worse = int((each > 0).sum()), int((each < 0).sum())
    if len(each) < FEWEST:
        mean = float(each.mean()) if len(each) else math.nan
        return Difference(mean, math.nan, math.nan, better, worse, math.nan)
    if is_binary([*x, *y]) if binary is None else binary:
        found, p = newcombe(x, y), sign_test(better, worse)
    else:
        found, p = bootstrap(each), flip_test(each)
    return Difference(found.mean, found.low, found.high, better, worse, p)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Differences that are looked at together, with p corrected for their number."""
    adjusted = holm([each.p for each in differences])
    return [replace(each, adjusted=p) for each, p in zip(differences, adjusted, strict=True)]


# Intervals.


def bootstrap(
    values: Values,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """The mean of independent values with its percentile bootstrap interval.

    The same resamples are drawn for every set of equal size: so the interval of a difference of
    two methods over the same prompts, `bootstrap(a - b)`, is the paired one.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(sample.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan)
    means = mean + _counts(n, resamples, seed) @ (sample - mean) / n  # exact for equal values
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high))


@functools.lru_cache(maxsize=8)
def _counts(n: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each of n values stands in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def wilson(values: Values, *, level: float = LEVEL) -> Estimate:
    """The mean of n values within [0, 1] with Wilson's score interval for a share."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan)
    share = float(np.mean(values))
    z = NormalDist().inv_cdf((1 + level) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave the share outside of its own interval.
    low, high = min(max(center - reach, 0.0), share), max(min(center + reach, 1.0), share)
    return Estimate(share, low, high)


def newcombe(ours: Values, theirs: Values, *, level: float = LEVEL) -> Estimate:
    """The difference of two shares over the same n prompts with Newcombe's interval.

    Each end of either Wilson interval counts as far as it lies from its share, and the two are
    joined as the legs of a triangle whose angle is given by how the shares go together over
    prompts. The correlation is corrected for continuity where it is positive.
    """
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    first, second = wilson(x, level=level), wilson(y, level=level)
    spread = math.sqrt(first.mean * (1 - first.mean) * second.mean * (1 - second.mean))
    together = float((x * y).mean()) - first.mean * second.mean
    if together > 0:
        together = max(together - 1 / (2 * len(x)), 0.0)
    phi = together / spread if spread > 0 else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    mean = first.mean - second.mean
    below = reach(first.mean - first.low, second.high - second.mean)
    above = reach(first.high - first.mean, second.mean - second.low)
    return Estimate(mean, mean - below, mean + above)


# Tests: two-sided, of there being no difference.


def sign_test(better: int, worse: int) -> float:
    """How likely pairs that differ split at least as unevenly if both ways are equally likely."""
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def flip_test(differences: Values, *, flips: int = RESAMPLES, seed: int = 0) -> float:
    """How likely a mean difference is at least as large if every sign is a coin's.

    The observed signs count as one of the draws, without which p could be 0 (Phipson and Smyth
    2010).
    """
    each = np.asarray(differences, dtype=np.float64)
    sums = np.abs(_signs(len(each), flips, seed) @ each)
    least = abs(float(each.sum())) - 1e-9 * float(np.abs(each).sum())  # equal but for rounding
    return float((1 + (sums >= least).sum()) / (1 + flips))


@functools.lru_cache(maxsize=2)
def _signs(n: int, flips: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, n))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down p-values, in the given order; nan was not tested, and does not count."""
    tested = sorted((i for i in range(len(ps)) if not math.isnan(ps[i])), key=lambda i: ps[i])
    adjusted, highest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted
