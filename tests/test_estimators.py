"""Estimators from stored scores, against brute force and closed forms."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from experiment.estimators import expected_best, fooled, rank_correlation, win_rate
from experiment.statistics import wilson

nan = math.nan


@pytest.mark.parametrize("scores", [[0.3], [2.0, -1.0, 7.0, 7.0, 0.5], [1.0, 1.0, 1.0]])
def test_the_best_of_n_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    for n in range(1, len(scores) + 1):
        every = [max(subset) for subset in combinations(scores, n)]
        assert expected_best(scores, n) == pytest.approx(sum(every) / len(every))


@pytest.mark.parametrize(("right", "count", "n"), [(3, 10, 4), (1, 200, 100), (0, 5, 2), (5, 5, 1)])
def test_of_zeros_and_ones_it_is_pass_at_k(right: int, count: int, n: int) -> None:
    """Chen et al. 2021: 1 - C(N - c, k) / C(N, k)."""
    scores = [1.0] * right + [0.0] * (count - right)
    passed = 1 - math.comb(count - right, n) / math.comb(count, n)
    assert expected_best(scores, n) == pytest.approx(passed)


def test_its_ends_are_the_mean_and_the_best_and_large_sets_do_not_overflow() -> None:
    scores = np.random.default_rng(0).normal(size=5000)
    assert expected_best(scores, 1) == pytest.approx(scores.mean())
    assert expected_best(scores, 5000) == pytest.approx(scores.max())
    curve = [expected_best(scores, n) for n in (1, 2, 4, 64, 1024, 4999, 5000)]
    assert curve == sorted(curve) and all(map(math.isfinite, curve))


def test_it_is_unbiased() -> None:
    """The best of n uniform draws is n / (n + 1) on average."""
    rng = np.random.default_rng(1)
    for n in (1, 3, 8):
        found = [expected_best(rng.random(12), n) for _ in range(4000)]
        error = float(np.std(found)) / math.sqrt(len(found))
        assert np.mean(found) == pytest.approx(n / (n + 1), abs=4 * error)


@pytest.mark.parametrize(("scores", "n"), [([], 1), ([1.0], 2), ([1.0, 2.0], 0)])
def test_there_is_no_best_of_more_than_there_are(scores: list[float], n: int) -> None:
    assert math.isnan(expected_best(scores, n))


def test_a_tie_is_half_a_win() -> None:
    assert win_rate([3, 1, 2, 2], [1, 3, 2, 2]).mean == 0.5
    assert win_rate([3, 3, 3, 2], [1, 1, 1, 2]).mean == pytest.approx(3.5 / 4)
    assert not win_rate([1, 1, 1], [0, 0, 0]).bounded
    assert win_rate([1] * 12, [0] * 12) == wilson([1] * 12)


def test_ranks_correlate_by_the_closed_form_where_nothing_ties() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.permutation(30).astype(float), rng.permutation(30).astype(float)
    expected = 1 - 6 * ((x - y) ** 2).sum() / (30 * (30**2 - 1))
    # Any rising function keeps the ranks.
    assert rank_correlation(x.tolist(), np.exp(y / 5).tolist()) == pytest.approx(expected)


def test_ties_share_their_mean_rank() -> None:
    x, y = [1.0, 2.0, 2.0, 5.0], [3.0, 1.0, 4.0, 4.0]
    ranks = [1, 2.5, 2.5, 4], [2, 1, 3.5, 3.5]
    assert rank_correlation(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_what_has_no_answer_does_not_count() -> None:
    assert rank_correlation([1, nan, 2, 3], [1, 5, nan, 9]) == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 2, 3], [7, 7, 7]))
    assert math.isnan(rank_correlation([1, nan], [1, 2]))
    assert math.isnan(rank_correlation([], []))


VERIFIER = [0.1, 0.2, 0.3, 0.4, 0.9]


def test_a_winner_that_no_judge_ranks_high_may_have_fooled_the_verifier() -> None:
    # Of the four others 4, 3 and 2 lie below by the verifier, 0, 1 and 2 by the judge.
    assert fooled(VERIFIER, {"a": [5, 4, 3, 2, 1]}) == [False, False, False, True, True]
    # One judge that agrees is enough, and one that agrees by half.
    agreed = {"a": [5, 4, 3, 2, 1], "b": [1, 2, 3, 4, 5]}
    assert not any(fooled(VERIFIER, agreed))
    assert fooled(VERIFIER, {"a": [5, 4, 1, 2, 3]}, margin=0.51)[4] is False
    assert fooled(VERIFIER, {"a": [5, 4, 1, 2, 3]}, margin=0.5)[4] is True


def test_ties_speak_for_the_judges() -> None:
    assert not any(fooled(VERIFIER, {"a": [1.0] * 5}))
    assert not any(fooled([1.0] * 5, {"a": [5, 4, 3, 2, 1]}))
    assert fooled(VERIFIER, {"a": [1, 1, 1, 1, 0]})[4] is True


def test_silent_judges_and_small_sets_accuse_nobody() -> None:
    assert fooled(VERIFIER, {}) == [False] * 5
    assert not any(fooled(VERIFIER, {"a": [nan] * 5}))
    assert not any(fooled([1, 2, 3, 4], {"a": [4, 3, 2, 1]}))
    assert fooled([*VERIFIER, nan], {"a": [5, 4, 3, 2, 1, nan]}) == [False] * 3 + [True] * 2 + [
        False
    ]
    assert fooled([], {}) == []
