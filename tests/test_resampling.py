"""Weights, systematic resampling, tempering and units of reward, against what is known of them."""

from __future__ import annotations

import math

import pytest
import torch

from search.resampling import (
    Unit,
    effective_sample_size,
    normalised,
    systematic,
    tempering_step,
)

NAN, INF = math.nan, math.inf


def logs(*weights: float) -> torch.Tensor:
    return torch.tensor(weights, dtype=torch.float64).log()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_effective_sample_size_is_the_squared_sum_over_the_sum_of_squares() -> None:
    assert effective_sample_size(logs(1, 1, 1, 1)) == pytest.approx(4)
    assert effective_sample_size(logs(1, 2, 3)) == pytest.approx(36 / 14)
    assert effective_sample_size(logs(0, 5, 0)) == 1


def test_only_differences_of_log_weights_count() -> None:
    far = logs(1, 2, 3) + 5000  # exp of which overflows
    assert effective_sample_size(far) == pytest.approx(36 / 14)
    assert torch.allclose(normalised(far - 10_000), normalised(logs(1, 2, 3)))


def test_what_is_missing_weighs_nothing() -> None:
    weights = torch.tensor([NAN, 0.0, -INF, 0.0, INF], dtype=torch.float64)
    assert normalised(weights).tolist() == [0, 0.5, 0, 0.5, 0]
    assert effective_sample_size(weights) == pytest.approx(2)
    assert set(systematic(weights, 50, rng())) == {1, 3}


def test_without_any_weight_all_count_the_same() -> None:
    nothing = torch.full((4,), NAN)
    assert effective_sample_size(nothing) == 0
    assert systematic(nothing, 4, rng()) == [0, 1, 2, 3]


def test_systematic_resampling_is_unbiased_and_never_a_whole_copy_off() -> None:
    weights = torch.tensor([0.02, 0.43, 0.05, 0.2, 0.3], dtype=torch.float64)
    generator, n, draws = rng(), 7, 4000
    counts = torch.zeros(draws, 5, dtype=torch.float64)
    for row in counts:
        for i in systematic(weights.log(), n, generator):
            row[i] += 1
    assert counts.sum(1).eq(n).all()
    expected = n * weights
    assert (counts - expected).abs().max() < 1
    # a count is one of two neighbouring whole numbers: its standard deviation is at most 1/2
    assert (counts.mean(0) - expected).abs().max() < 4 * 0.5 / draws**0.5
    multinomial = expected * (1 - weights)
    assert (counts.var(0) < multinomial).all()


def test_equal_weights_are_each_taken_once() -> None:
    for seed in range(50):
        assert systematic(torch.zeros(13), 13, rng(seed)) == list(range(13))


def test_the_ends_of_the_weights_are_never_missed_or_passed() -> None:
    ends = torch.tensor([-INF, 0.0, -INF], dtype=torch.float64)
    for seed in range(50):
        assert systematic(ends, 3, rng(seed)) == [1, 1, 1]


def test_tempering_stops_where_the_effective_sample_size_meets_the_target() -> None:
    increment = 20 * torch.randn(64, generator=rng(), dtype=torch.float64)
    start = torch.zeros(64, dtype=torch.float64)
    step = tempering_step(start, increment, 32)
    assert 0 < step < 1
    assert effective_sample_size(start + step * increment) == pytest.approx(32, abs=1e-6)
    assert tempering_step(start, increment / 1000, 32) == 1
    assert tempering_step(increment, increment, 32) == 0


def test_tempering_looks_past_what_is_missing() -> None:
    increment = torch.tensor([0.0, 8.0, NAN, 1.0], dtype=torch.float64)
    known = torch.tensor([0.0, 8.0, 1.0], dtype=torch.float64)
    expected = tempering_step(torch.zeros(3), known, 2)
    assert tempering_step(torch.zeros(4), increment, 2) == expected > 0


def test_a_unit_is_the_first_mean_and_the_largest_spread() -> None:
    first = torch.tensor([1.0, NAN, 3.0], dtype=torch.float64)
    unit = Unit().seen(torch.full((3,), NAN)).seen(first)
    assert unit == Unit(2.0, pytest.approx(2**0.5))
    assert unit.seen(torch.tensor([5.0, 5.1])) == unit  # a set that was selected
    wider = unit.seen(torch.tensor([0.0, 10.0]))
    assert (wider.centre, wider.spread) == (2.0, pytest.approx(50**0.5))
    measured = wider.measure(first)
    assert measured[2] == pytest.approx(1 / 50**0.5) and measured[1].isnan()


def test_equal_scores_have_no_spread_and_are_only_centred() -> None:
    unit = Unit().seen(torch.full((4,), 7.0))
    assert unit.measure(torch.tensor([7.0, 7.0])).tolist() == [0, 0]
    assert Unit().seen(torch.tensor([3.0])).measure(torch.tensor([3.0])).tolist() == [0]
