"""Ensembles: mean ranks, z-scores and weighted sums, over a pool that grows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from tests.test_run import ran, rounds_of, rows_of
from utils import UserError
from verifiers.base import Score
from verifiers.ensemble import Ensemble

PAIR = [{"name": "tests.graders:Brightness"}, {"name": "tests.graders:Falling"}]
BRIGHT, FALLING = "tests.graders:Brightness", "tests.graders:Falling"


def pool(values: list[tuple[float, float]]) -> list[Score]:
    def member(value: float) -> Score:
        return Score.of(x=value) if not math.isnan(value) else Score.missing("looked away")

    return [Score(0.0, members={BRIGHT: member(a), FALLING: member(b)}) for a, b in values]


def mean_rank(values: list[tuple[float, float]], i: int) -> float:
    """Rank 1 is best; ties share the mean of their ranks (the paper's rank average)."""

    def rank(column: list[float]) -> float:
        higher = sum(v > column[i] for v in column)
        return higher + (1 + sum(v == column[i] for v in column)) / 2

    return fmean(rank([value[k] for value in values]) for k in (0, 1))


def test_ranks_order_a_pool_as_mean_ranks_do() -> None:
    draw = random.Random(0)
    for _ in range(50):
        values = [(draw.randint(0, 5) * 1.0, draw.random() * 1e6) for _ in range(9)]
        places = Ensemble(PAIR).pool_values(pool(values))
        ranks = [mean_rank(values, i) for i in range(9)]
        # a share of 8 others is (9 - rank) / 8
        assert places == pytest.approx([(9 - rank) / 8 for rank in ranks])


def test_ranks_do_not_depend_on_a_members_scale() -> None:
    values = [(0.1, 3.0), (0.2, 1.0), (0.3, 2.0)]
    scaled = [(a * 1000 - 5, math.exp(b)) for a, b in values]
    assert Ensemble(PAIR).pool_values(pool(values)) == Ensemble(PAIR).pool_values(pool(scaled))


def test_zscores_are_means_of_standard_scores() -> None:
    values = [(1.0, 10.0), (2.0, 30.0), (6.0, 20.0)]
    places = Ensemble(PAIR, combine="zscore").pool_values(pool(values))
    columns = list(zip(*values, strict=True))
    by_hand = [
        fmean((v - fmean(c)) / pstdev(c) for v, c in zip(value, columns, strict=True))
        for value in values
    ]
    assert places == pytest.approx(by_hand)


@pytest.mark.parametrize("combine", ["rank", "zscore"])
def test_a_member_without_an_answer_does_not_sink_a_candidate(combine: Any) -> None:
    values = [(1.0, math.nan), (2.0, 5.0), (math.nan, math.nan), (3.0, 4.0)]
    places = Ensemble(PAIR, combine=combine).pool_values(pool(values))
    assert math.isnan(places[2])
    assert not any(math.isnan(places[i]) for i in (0, 1, 3))
    assert places[0] < places[1]


@pytest.mark.parametrize("combine", ["rank", "zscore"])
def test_one_candidate_alone_has_a_value(combine: Any) -> None:
    (place,) = Ensemble(PAIR, combine=combine).pool_values(pool([(1.0, 2.0)]))
    assert math.isfinite(place)


def test_weights_weigh() -> None:
    heavy = [{**PAIR[0], "weight": 3}, PAIR[1]]
    values = [(0.0, 9.0), (1.0, 0.0)]
    assert Ensemble(heavy).pool_values(pool(values)) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs members"),
        ({"verifiers": PAIR, "combine": "median"}, "rank, zscore or weighted"),
        ({"verifiers": [{"name": "clipp"}]}, "did you mean 'clip'"),
        ({"verifiers": [{"weight": 1}]}, "needs a 'name'"),
        ({"verifiers": [{**PAIR[0], "weight": 0}]}, "above 0"),
        ({"verifiers": [{**PAIR[0], "weight": None}]}, "above 0"),
        ({"verifiers": [{"name": "ensemble", "verifiers": PAIR}]}, "pool of its own"),
        ({"verifiers": [{**PAIR[0], "choice_of_metric": "x"}]}, "no metric 'x'"),
        ({"verifiers": [{**PAIR[0], "evry": 2}]}, "did you mean 'every'"),
    ],
)
def test_wrong_members_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Ensemble(**options)


def test_a_run_under_ranks_keeps_the_best_of_all_rounds_by_todays_ranks(tmp_path: Path) -> None:
    members = [PAIR[0], {**PAIR[0], "sign": -1.0, "every": 3}, {"name": "shapes_oracle"}]
    folder = ran(tmp_path, verifier_args={"name": "ensemble", "verifiers": members})
    rows = rows_of(folder)
    names = [BRIGHT, f"{BRIGHT}#2", "shapes_oracle"]
    for row in rows:
        assert set(row["scores"]) == {"ensemble", *names}
    unanswered = [row for row in rows if f"{BRIGHT}#2" in row["details"]]
    assert len(unanswered) == 10 and all(row["status"] == "ok" for row in unanswered)

    def member(row: dict[str, Any], name: str) -> Score:
        given = row["scores"][name]
        return Score.of(**given) if given else Score.missing("looked away")

    scores = [Score(0.0, members={name: member(row, name) for name in names}) for row in rows]
    values = Ensemble(members).pool_values(scores)
    best = json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]
    assert values[best["id"]] == max(values) == pytest.approx(best["score"])


def test_a_rank_pivot_is_compared_on_todays_scale(tmp_path: Path) -> None:
    """The first pivot alone is worth a half; what counts is its rank among its neighbours."""
    search = {"search_method": "zero-order", "search_rounds": 3, "num_neighbors": 3,
              "threshold": 0.5, "on_reject": "resample"}  # fmt: skip
    alone = {"name": "ensemble", "verifiers": [PAIR[0]]}
    ranked = ran(tmp_path / "a", search_args=search, verifier_args=alone)
    plain = ran(tmp_path / "b", search_args=search, verifier_args=PAIR[0])
    assert [r["seed"] for r in rows_of(ranked)] == [r["seed"] for r in rows_of(plain)]
    assert [r["parents"] for r in rows_of(ranked)] == [r["parents"] for r in rows_of(plain)]


def test_a_round_closes_on_the_values_its_search_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round's winner is the best by the ranks of what had been scored by its end."""
    members = [PAIR[0], {**PAIR[0], "sign": -1.0, "every": 3}, {"name": "shapes_oracle"}]
    search = {"search_method": "random", "search_rounds": 4}
    folder = ran(
        tmp_path, search_args=search, verifier_args={"name": "ensemble", "verifiers": members}
    )
    rows = rows_of(folder)
    names = [BRIGHT, f"{BRIGHT}#2", "shapes_oracle"]

    def score(row: dict[str, Any]) -> Score:
        given = {n: row["scores"][n] for n in names}
        return Score(
            0.0,
            members={n: Score.of(**g) if g else Score.missing("no") for n, g in given.items()},
        )

    for record in rounds_of(folder):
        until = [row for row in rows if row["round"] <= record["search_round"]]
        values = Ensemble(members).pool_values([score(row) for row in until])
        mine = [
            v for v, r in zip(values, until, strict=True) if r["round"] == record["search_round"]
        ]
        assert record["best_score"] == pytest.approx(max(mine))


@pytest.mark.slow
def test_under_ranks_the_best_always_has_its_picture(tmp_path: Path) -> None:
    search = {"search_method": "zero-order", "search_rounds": 6, "num_neighbors": 2}
    members = [PAIR[0], {**PAIR[0], "sign": -1.0, "every": 3}, {"name": "shapes_oracle"}]
    for seed in range(3):
        folder = ran(
            tmp_path / str(seed),
            search_args=search,
            seed=seed,
            verifier_args={"name": "ensemble", "verifiers": members},
        )
        best = json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]
        assert (folder / best["path"]).is_file()
