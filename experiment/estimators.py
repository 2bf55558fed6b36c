"""What stored scores tell: the best of n, wins of one run over another, ranks, fooled verifiers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiment.statistics import Estimate, estimate

MARGIN = 0.5  # of all winners, that have to lie between the verifier's rank and every judge's
FEWEST_RANKED = 5  # winners, below which ranks say nothing


def expected_best(scores: Sequence[float] | NDArray[np.float64], n: int) -> float:
    """The mean, over all subsets of n of the N scores, of the subset's best.

    With x_(1) <= ... <= x_(N) it is sum_i x_(i) C(i-1, n-1) / C(N, n): x_(i) is the best of the
    C(i-1, n-1) subsets that hold it and n-1 lower ones. As the U-statistic of the maximum
    (Hoeffding 1948) it is the unbiased estimator of least variance of what the best of n
    independent draws scores; for scores of 0 and 1 it is the pass@k estimator of Chen et al. 2021.
    nan where n is more than N.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    count = len(ordered)
    if not 1 <= n <= count:
        return math.nan
    # From the highest down, by C(i-2, n-1) / C(i-1, n-1) = (i-n) / (i-1): nothing overflows.
    ranks = np.arange(count, 1, -1, dtype=np.float64)
    shares = np.concatenate([[n / count], np.clip((ranks - n) / (ranks - 1), 0, None)])
    return float(np.cumprod(shares) @ ordered[::-1])


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The share of pairs that the first wins, a tie being half a win, with Wilson's interval.

    A tie varies less than a win or a loss does, so with ties the interval is rather too wide.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return estimate((np.sign(difference) + 1) / 2, binary=True)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing their mean rank; nan where one is constant.

    Pairs in which either is nan are left out.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = _ranks(a[known]), _ranks(b[known])
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def fooled(
    verifier: Sequence[float], judges: Mapping[str, Sequence[float]], margin: float = MARGIN
) -> list[bool]:
    """Of each winner: whether the verifier ranks it far above what any judge does.

    A rank is the share of the other winners that lie below. Ties speak for the judges: theirs
    count as below, the verifier's as above, so a judge that is constant accuses nobody. False
    where no judge has an answer or fewer than `FEWEST_RANKED` winners were ranked.
    """
    own = _shares_below(verifier, ties=False)
    others = [_shares_below(scores, ties=True) for scores in judges.values()]
    if not others:
        return [False] * len(own)
    best = np.fmax.reduce(others)  # nan only where every judge is silent
    return [bool(gap >= margin) for gap in own - best]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(values)
    left, right = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (left + right + 1) / 2


def _shares_below(values: Sequence[float], *, ties: bool) -> NDArray[np.float64]:
    """For each value the share of the others below it; nan for nan, and where there are too few."""
    x = np.asarray(values, dtype=np.float64)
    ordered = np.sort(x[~np.isnan(x)])
    if len(ordered) < FEWEST_RANKED:
        return np.full(len(x), math.nan)
    below = np.searchsorted(ordered, x, "right") - 1 if ties else np.searchsorted(ordered, x)
    return np.where(np.isnan(x), math.nan, below / (len(ordered) - 1))
