"""The bootstrap against closed forms, and how often its intervals hold the truth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from experiment.statistics import Estimate, bootstrap


def test_its_spread_is_that_of_the_mean() -> None:
    """A resampled mean has the standard deviation s / sqrt(n), and for many values is normal."""
    values = np.random.default_rng(1).exponential(size=2000)
    found = bootstrap(values, resamples=2000)
    error = values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.1)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.1)


def test_the_ends_are_quantiles_over_all_resamples() -> None:
    """Of four values there are 4**4 resamples: few enough to list."""
    values = [0.0, 1.0, 3.0, 7.0]
    means = [sum(resample) / 4 for resample in product(values, repeat=4)]
    exact = np.quantile(means, [0.1, 0.9])
    found = bootstrap(values, level=0.8, resamples=200_000)
    assert [found.low, found.high] == pytest.approx(list(exact))


def test_a_share_is_binomial() -> None:
    """Of k resampled ones among 4 at a share of 1/4: P(k <= 2) = 0.949, P(k <= 3) = 0.996."""
    found = bootstrap([0.0, 0.0, 0.0, 1.0])
    assert found == Estimate(0.25, 0.0, 0.75)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for draw, truth in [
        (lambda: rng.normal(2.0, 3.0, size=48), 2.0),
        (lambda: rng.exponential(size=48), 1.0),
        (lambda: (rng.random(48) < 0.7).astype(float), 0.7),
    ]:
        trials = [bootstrap(draw(), resamples=2000) for _ in range(600)]
        held = sum(trial.low <= truth <= trial.high for trial in trials) / len(trials)
        assert 0.90 <= held <= 0.975


def test_pairing_takes_what_prompts_share_out_of_a_difference() -> None:
    """Two methods on prompts of very different difficulty: apart their intervals overlap."""
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, size=48)
    first, second = hard + rng.normal(0, 1, 48), hard + 1 + rng.normal(0, 1, 48)
    paired = bootstrap(second - first)
    assert paired.excludes_zero
    assert bootstrap(first).high > bootstrap(second).low
    width = bootstrap(first).high - bootstrap(first).low
    assert paired.high - paired.low < width / 3


def test_it_moves_and_stretches_with_the_values_and_repeats() -> None:
    values = np.random.default_rng(4).normal(size=20)
    plain, moved = bootstrap(values), bootstrap(5 + 2 * values)
    assert bootstrap(values) == plain
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(5 + 2 * getattr(plain, name))


def test_too_little_to_tell() -> None:
    assert math.isnan(bootstrap([]).mean)
    one = bootstrap([0.5])
    assert one.mean == 0.5 and math.isnan(one.low) and not one.excludes_zero
    assert bootstrap([0.25] * 7) == Estimate(0.25, 0.25, 0.25)
