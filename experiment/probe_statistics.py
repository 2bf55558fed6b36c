"""Correlations and spreads within groups, with 95 % intervals; a group is one prompt's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from utils import json_number

Array: TypeAlias = NDArray[np.float64]
Pairs: TypeAlias = tuple[Sequence[float], Sequence[float]]

Z = 1.959964  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval; nan where the data cannot tell. n: observations used."""

    value: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        return not math.isnan(self.value)

    def within(self, low: float, high: float) -> bool:
        """Whether the whole interval lies in [low, high); an unknown one lies nowhere."""
        return low <= self.low and self.high < high

    def overlaps(self, low: float, high: float) -> bool:
        """Whether some of the interval lies in [low, high)."""
        return self.low < high and low <= self.high

    def __str__(self) -> str:
        if not self.known:
            return "unknown"
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if not math.isnan(self.low) else ""
        return f"{self.value:.2f}{interval}"

    def as_json(self) -> dict[str, Any]:
        return {k: json_number(v) if k != "n" else v for k, v in asdict(self).items()}


UNKNOWN = Measured(math.nan, math.nan, math.nan, 0)


def pearson(groups: Sequence[Pairs]) -> Measured:
    """The mean of the groups' correlations, weighted by their degrees of freedom."""
    return _correlation([_complete(pairs) for pairs in groups], ranked=False)


def spearman(groups: Sequence[Pairs]) -> Measured:
    """The same of ranks; their transform varies by a factor of 1 + r²/2 more (Bonett and Wright
    2000)."""
    ranked = [(ranks(a), ranks(b)) for a, b in map(_complete, groups)]
    return _correlation(ranked, ranked=True)


def ranks(values: Array) -> Array:
    """1 for the smallest; ties share the mean of their places."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    places: Array = (last - (counts - 1) / 2)[where]
    return places


def spread(groups: Sequence[Sequence[float]]) -> Measured:
    """The standard deviation within groups, pooled; its interval is that of a normal sample."""
    known = _scored(groups)
    df = sum(len(group) - 1 for group in known)
    if df == 0:
        return UNKNOWN
    value = math.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in known) / df)
    low, high = (value / math.sqrt(_chi_square(df, z) / df) for z in (Z, -Z))
    return Measured(value, low, high, df + len(known))


def between_share(groups: Sequence[Sequence[float]]) -> Measured:
    """The share of the variance that lies between groups: the intraclass correlation.

    Its interval is Fisher's, which takes three groups.
    """
    known = _scored(groups)
    n, k = sum(map(len, known)), len(known)
    if k < 2:
        return UNKNOWN
    means = [float(group.mean()) for group in known]
    grand = sum(float(group.sum()) for group in known) / n
    above = sum(len(g) * (m - grand) ** 2 for g, m in zip(known, means, strict=True)) / (k - 1)
    inside = sum(float(((g - m) ** 2).sum()) for g, m in zip(known, means, strict=True)) / (n - k)
    size = (n - sum(len(g) ** 2 for g in known) / n) / (k - 1)  # the mean size, if all are equal
    if above + (size - 1) * inside == 0:
        return UNKNOWN
    value = max(0.0, (above - inside) / (above + (size - 1) * inside))
    if k < 3 or value == 1:
        return Measured(value, math.nan, math.nan, n)
    z = 0.5 * math.log((1 + (size - 1) * value) / (1 - value))
    reach = Z * math.sqrt(size / (2 * (size - 1) * (k - 2)))
    low, high = (_intraclass(z + side * reach, size) for side in (-1, 1))
    return Measured(value, max(0.0, low), high, n)


def _complete(pairs: Pairs) -> tuple[Array, Array]:
    """The pairs of which both sides are known."""
    a, b = (np.asarray(side, dtype=np.float64) for side in pairs)
    known = np.isfinite(a) & np.isfinite(b)
    return a[known], b[known]


def _correlation(groups: Sequence[tuple[Array, Array]], *, ranked: bool) -> Measured:
    """The mean correlation; groups in which a side is constant tell nothing."""
    usable = [(a, b) for a, b in groups if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0]
    df = sum(len(a) - 1 for a, _ in usable)
    if df == 0:
        return UNKNOWN
    value = sum((len(a) - 1) * _unbiased(a, b) for a, b in usable) / df
    n = df + len(usable)
    low, high = _interval(value, n, n - 3 * len(usable), ranked)
    return Measured(value, low, high, n)


def _unbiased(a: Array, b: Array) -> float:
    """A sample's correlation; small samples come out low by r (1 - r²) / 2(n - 1) on average."""
    r = float(np.corrcoef(a, b)[0, 1])
    return r * (1 + (1 - min(1.0, r * r)) / (2 * (len(a) - 1)))


def _interval(r: float, n: int, freedom: int, ranked: bool) -> tuple[float, float]:
    """By Fisher's transform, to whose precision a group of n adds n - 3."""
    if freedom <= 0:
        return -1.0, 1.0
    most = 1 - 6 / (n**3 - n)  # perfect agreement counts as half a swap of neighbours away from it
    z = math.atanh(max(-most, min(most, r)))
    reach = Z * math.sqrt((1 + r * r / 2 if ranked else 1) / freedom)
    return min(r, math.tanh(z - reach)), max(r, math.tanh(z + reach))


def _scored(groups: Sequence[Sequence[float]]) -> list[Array]:
    """The known values of the groups that hold two of them."""
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    finite = [array[np.isfinite(array)] for array in arrays]
    return [array for array in finite if len(array) > 1]


def _chi_square(df: int, z: float) -> float:
    """A quantile of the chi-square distribution (Wilson and Hilferty 1931)."""
    return df * max(1e-3, 1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3


def _intraclass(z: float, size: float) -> float:
    e = math.exp(2 * z)
    return (e - 1) / (e + size - 1)
