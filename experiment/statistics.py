"""How sure a mean over prompts is: the percentile bootstrap (Efron and Tibshirani 1993, ch. 13)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its interval; nan where there is too little to tell."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap(
    values: Sequence[float] | NDArray[np.float64],
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
