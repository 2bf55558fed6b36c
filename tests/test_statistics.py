"""Intervals and tests against closed forms and published values, and how often they are right."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from experiment.statistics import (
    FEWEST,
    Estimate,
    bootstrap,
    corrected,
    difference,
    estimate,
    flip_test,
    holm,
    is_binary,
    newcombe,
    sign_test,
    wilson,
)


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
    assert paired.low > 0
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
    assert one.mean == 0.5 and math.isnan(one.low) and not one.bounded
    assert bootstrap([0.25] * 7) == Estimate(0.25, 0.25, 0.25)
    assert math.isnan(estimate([]).mean) and math.isnan(difference([], []).mean)


def test_below_ten_prompts_there_is_a_mean_and_no_more() -> None:
    few, enough = [1.5] * (FEWEST - 1), [1.5] * FEWEST
    assert estimate(few).mean == 1.5 and not estimate(few).bounded
    assert estimate(enough).bounded
    gain = corrected([difference(few, [0.0] * len(few))])[0]
    assert gain.mean == 1.5 and not gain.bounded and math.isnan(gain.p) and not gain.significant
    assert corrected([difference(enough, [0.0] * FEWEST)])[0].significant


def test_a_share_has_wilsons_interval() -> None:
    """By hand: 24 of 24 is [n / (n + z^2), 1]; 8 of 10 as in Brown, Cai and DasGupta 2001."""
    sure = wilson([1.0] * 24)
    assert (sure.mean, sure.high) == (1, 1)
    assert sure.low == pytest.approx(24 / (24 + 1.959964**2))
    eight = wilson([1.0] * 8 + [0.0] * 2)
    assert [eight.low, eight.high] == pytest.approx([0.490, 0.943], abs=5e-4)
    assert wilson([0.0] * 24).low == 0
    assert estimate([1.0] * 24) == sure
    assert estimate([0.5] * 24) == Estimate(0.5, 0.5, 0.5)  # no share: the bootstrap
    halves = estimate([0.5] * 24, binary=True)  # means over two seeds of scores of 0 and 1
    assert halves == wilson([0.0, 1.0] * 12)


def paired(both: int, first: int, second: int, neither: int) -> tuple[list[float], list[float]]:
    x = [1.0] * (both + first) + [0.0] * (second + neither)
    y = [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither
    return x, y


def test_a_difference_of_paired_shares_has_newcombes_interval() -> None:
    """Newcombe 1998, table III, method 10."""
    found = newcombe(*paired(36, 12, 2, 0))
    assert found.mean == pytest.approx(0.2)
    assert [found.low, found.high] == pytest.approx([0.0569, 0.3404], abs=5e-5)
    same = newcombe(*paired(20, 0, 0, 10))
    assert same.low < same.mean == 0 < same.high  # the bootstrap would be certain


def test_paired_shares_are_tested_by_mcnemars_exact_test() -> None:
    """By hand: 9 : 1 is 2 (1 + 10) / 2^10."""
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(22 / 1024)
    assert sign_test(0, 0) == sign_test(4, 4) == 1
    assert sign_test(0, 2000) == pytest.approx(2**-1999)
    found = difference(*paired(20, 9, 1, 18))
    assert (found.better, found.worse, found.p) == (9, 1, sign_test(9, 1))


def test_signs_are_flipped_as_if_all_flips_were_listed() -> None:
    values = np.array([0.5, 1.0, -0.25, 2.0, 0.1, 0.7])
    sums = [abs(float(np.dot(s, values))) for s in product((-1, 1), repeat=6)]
    exact = np.mean([s >= values.sum() - 1e-9 for s in sums])
    assert flip_test(values, flips=100_000) == pytest.approx(exact, rel=0.05)
    assert flip_test([0.0] * 12) == 1
    assert flip_test([0.1] * 40) == pytest.approx(1e-4, rel=0.01)  # never 0


def test_a_test_of_nothing_rarely_finds_something() -> None:
    rng = np.random.default_rng(0)
    for draw in (
        lambda: rng.exponential(size=12),
        lambda: (rng.random(48) < 0.8).astype(float),
    ):
        ps = [difference(draw(), draw()).p for _ in range(400)]
        assert np.mean(np.array(ps) < 0.05) <= 0.075


def test_holms_steps() -> None:
    """Holm 1979: the smallest by the number of tests, the next by one less, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    partly = holm([0.02, math.nan, 0.04])
    assert math.isnan(partly[1]) and [partly[0], partly[2]] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_scores_of_0_and_1_are_known_by_themselves() -> None:
    assert is_binary([0.0, 1.0, math.nan]) and is_binary([1, 1])
    assert not is_binary([0.0, 0.5]) and not is_binary([math.nan]) and not is_binary([])
