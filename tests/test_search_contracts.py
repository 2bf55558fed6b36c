"""What every registered search keeps to, on a diffusion known in closed form."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from search import SEARCHES, search_class
from search.core import Rollout, Scored
from search.ledger import Budget, Cost, Ledger
from search.methods.monitor import Monitor
from search.methods.rbf import Rbf
from search.methods.zero_order import ZeroOrder
from search.play import Answer, play
from tests.toy import ToyEngine, ToySpace

VARIANTS = {
    "draft": [{}, {"inner": {"search_method": "zero-order"}, "share": 0.3, "keep": 2}],
    "ascent": [{}, {"starts": 3, "iterations": 2}],
    "random": [{}, {"pool": "nested"}],
    "zero-order": [{}, {"on_reject": "resample"}, {"threshold": 0.0, "num_neighbors": 3}],
    "steering": [{}, {"potential": "max", "tempering": "adaptive"}, {"potential": "sum"}],
    "svdd": [{}, {"temperature": 0.5, "chains": 1}, {"every": 3, "check_from": 0.5}],
    "code": [{}, {"n_samples": 3, "block_size": 2, "chains": 1}],
    "rbf": [{}, {"accept": "threshold"}, {"at_once": 3, "check_from": 0.3}],
    "halving": [{}, {"checkpoints": (0.3, 0.6), "keep": 0.4}, {"checkpoints": (), "pool": 4}],
    "paths": [{}, {"sigma": 0.5, "delta_f": 0.2, "delta_b": 0.4}, {"sigma": 0.0}],
    "monitor": [{}, {"action": "reject", "patience": 1, "check_interval": 2}, {"pool": 1}],
    "ses": [{}, {"popsize": 4, "k_elites": 2, "smoothing": 0.3}],
    "evolution": [
        {},
        {"algorithm": "cross-entropy"},
        {"algorithm": "cross-entropy", "population": 4, "elite_share": 0.3, "smoothing": 0.3},
    ],
    "evosearch": [{}, {"schedule": (0.5,), "start": 3, "population": 4, "elites": 1}],
    "tree": [{}, {"greedy": False, "depths": 3, "widening": 2}, {"depths": 1}, {"nfe": 60}],
}
CASES = [
    pytest.param((name, options), marks=pytest.mark.slow if i else ())  # the defaults come first
    for name in SEARCHES
    for i, options in enumerate(VARIANTS.get(name, [{}]))
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def build(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    name, options = request.param
    return lambda: search_class(name)(**options)


def played(search, budget: Budget, rounds: int | None = None, **engine):  # type: ignore[no-untyped-def]
    space = ToySpace(seed=engine.pop("seed", 0))
    runs = ToyEngine(space, stochastic="stochastic" in search.needs, **engine)
    ledger = Ledger(budget)
    return list(play(search, space, runs, ledger, rounds)), runs, ledger


@pytest.mark.parametrize("limit", [10, 57, 1003])
def test_never_over_budget_and_the_ledger_equals_the_rows_run(build, limit: int) -> None:
    answers, engine, ledger = played(build(), Budget(nfe=limit))
    assert engine.rows == ledger.spent.nfe == sum(a.cost.nfe for a in answers)
    assert limit - 10 < ledger.spent.nfe <= limit  # no more left than one image of 10 steps


@pytest.mark.parametrize("limit", [20, 115])
def test_rows_can_be_the_budget_where_each_nfe_takes_two(build, limit: int) -> None:
    search, space = build(), ToySpace()
    engine = ToyEngine(space, stochastic="stochastic" in search.needs)

    def guided(wish: Rollout) -> tuple[Scored, Cost]:
        scored, cost = engine(wish)
        return scored, replace(cost, rows=2 * cost.rows)

    ledger = Ledger(Budget(rows=limit), rows_each=2)
    answers = list(play(search, space, guided, ledger))
    assert 2 * engine.rows == ledger.spent.rows == sum(a.cost.rows for a in answers)
    assert limit - 20 < ledger.spent.rows <= limit  # no more left than one image of 10 steps


def test_verifications_can_be_the_budget(build) -> None:
    answers, _, ledger = played(build(), Budget(verifications=17))
    assert sum(a.cost.verifications for a in answers) == ledger.spent.verifications == 17


def test_a_spent_clock_ends_the_search(build) -> None:
    ticks = iter(range(1000))
    space = ToySpace()
    ledger = Ledger(Budget(seconds=5), clock=lambda: float(next(ticks)))
    assert 0 < len(list(play(build(), space, ToyEngine(space), ledger))) <= 5


def finished(answers: list[Answer], steps: int = 10) -> list[torch.Tensor]:
    """The images that came out."""
    whole = [a for a in answers if a.rollout.until == steps and not a.rollout.draft]
    return [x for a in whole if a.rollout.score for x in a.scored.candidates.latents]


@pytest.mark.parametrize(
    "budget",
    [
        Budget(verifications=1),
        Budget(verifications=2),
        Budget(verifications=9),
        Budget(nfe=200, verifications=15),
        Budget(nfe=10),
    ],
    ids=str,
)
def test_any_budget_of_one_image_ends_with_an_image(build, budget: Budget) -> None:
    answers, engine, ledger = played(build(), budget)
    assert finished(answers)
    assert engine.rows == ledger.spent.nfe <= (budget.nfe or math.inf)
    assert ledger.spent.verifications <= (budget.verifications or math.inf)


def test_a_clock_that_is_up_at_once_still_ends_with_an_image(build) -> None:
    ticks = iter([0.0, 0.5])
    ledger = Ledger(Budget(seconds=1), clock=lambda: next(ticks, 2.0))
    space = ToySpace()
    engine = ToyEngine(space, stochastic="stochastic" in build().needs)
    assert finished(list(play(build(), space, engine, ledger)))


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_alone_end_with_images(build, rounds: int) -> None:
    answers, _, _ = played(build(), Budget(), rounds=rounds)
    assert finished([a for a in answers if a.round == 1])


@pytest.mark.parametrize("steps", [3, 7])
def test_no_image_is_made_twice(build, steps: int) -> None:
    search = build()
    space = ToySpace(steps=steps)
    engine = ToyEngine(space, stochastic="stochastic" in search.needs)
    engine.spread = 1.0  # so wide that no two points have one clean image
    answers = list(play(search, space, engine, Ledger(Budget(nfe=20 * steps))))
    images = [tuple(x.tolist()) for x in finished(answers, steps)]
    if isinstance(search, ZeroOrder):
        return  # in two dimensions a pivot has two neighbours at most
    assert images and len(set(images)) == len(images)


def test_no_pass_begins_that_cannot_finish(build) -> None:
    exact, _, _ = played(build(), Budget(nfe=250))
    passes = {a.round for a in exact}
    assert all(finished([a for a in exact if a.round == number]) for number in passes)


def test_rounds_end_the_search_and_are_numbered_from_one(build) -> None:
    answers, _, _ = played(build(), Budget(), rounds=3)
    numbers = [answer.round for answer in answers]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2, 3}


def test_whichever_of_budget_and_rounds_ends_first(build) -> None:
    few, _, _ = played(build(), Budget(nfe=2_000), rounds=2)
    assert max(answer.round for answer in few) <= 2  # one may be fitted to spend it all
    short, _, ledger = played(build(), Budget(nfe=30), rounds=50)
    assert ledger.spent.nfe <= 30 and short


def test_same_seed_same_rounds(build) -> None:
    first, one, _ = played(build(), Budget(nfe=500))
    second, two, _ = played(build(), Budget(nfe=500))
    assert str(one.log) == str(two.log)  # nan, of candidates moved unscored, equals nothing
    assert [a.round for a in first] == [a.round for a in second]
    assert played(build(), Budget(nfe=500), seed=1)[1].log != one.log


def test_nan_never_wins_and_never_stops_a_search(build) -> None:
    answers, engine, ledger = played(build(), Budget(nfe=600), nan_every=2)
    assert ledger.spent.nfe > 590
    assert all(math.isfinite(a.scored.top(1).best) for a in answers if a.scored.best > -math.inf)
    if isinstance(build(), Monitor | Rbf):
        return  # judge each candidate, or each chain's child, by itself: there is no other to take
    parents = {p for a in answers for ps in a.rollout.candidates.parents for p in ps}
    assert not any(math.isnan(engine.log[i][1]) for i in parents if _had_choice(answers, i))


def _had_choice(answers: list[Answer], parent: int) -> bool:
    """Whether the round that gave this parent had a scored candidate to prefer."""
    mine = next(a for a in answers if parent in a.scored.ids)
    return mine.scored.best > -math.inf and len(mine.scored.ids) > 1


def test_every_candidate_has_its_own_seed(build) -> None:
    answers, _, ledger = played(build(), Budget(nfe=1000))
    # one that goes on from its preview keeps its seed, but never comes to a step twice
    came = [(seed, a.rollout.until) for a in answers for seed in a.rollout.candidates.seeds]
    assert len(set(came)) == len(came)
    assert ledger.spent.nfe > 990


def test_all_scores_missing_is_survived(build) -> None:
    answers, _, ledger = played(build(), Budget(nfe=200), nan_every=1)
    assert ledger.spent.nfe > 190
    assert all(answer.scored.best == -math.inf for answer in answers)


def test_a_search_is_its_own_config(build) -> None:
    search = build()
    assert search == type(search)(**vars(search))
    with pytest.raises(AttributeError):  # frozen
        search.anything = 1


def test_the_last_wish_is_trimmed_and_no_search_sees_half_an_answer(build) -> None:
    whole: list[int] = []

    class Watched:
        needs = frozenset()
        blind = False

        def sized(self, steps: int, nfe: int) -> Watched:
            return self

        def flow(self, space):  # type: ignore[no-untyped-def]
            flow = build().flow(space)
            wish = next(flow)
            with suppress(StopIteration):  # a finite flow, played again from its start
                while True:
                    answer = yield wish
                    whole.append(len(answer.ids) - len(wish.candidates))
                    wish = flow.send(answer)

    played(Watched(), Budget(nfe=173))
    assert whole and set(whole) == {0}
