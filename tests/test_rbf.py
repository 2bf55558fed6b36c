"""Rollover budget forcing, stepped by hand and on the toy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from search.core import Rollout, Scored
from search.ledger import Budget, Ledger
from search.methods.rbf import Rbf
from search.play import play
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace

NAN = math.nan

early = partial(Rbf, check_from=0.0)  # compares its noises after one step


def wishes(search: Rbf, scores: list[list[float]], steps: int = 10) -> list[Rollout]:
    """What it asks for, given these answers."""
    flow, answer = search.flow(ToySpace(steps=steps)), Answers()
    asked = [next(flow)]
    for row in scores:
        asked.append(flow.send(answer(asked[-1], row)))
    return asked


def finished(search: Rbf, engine: ToyEngine) -> list[Scored]:
    """Every answer of one flow."""
    flow = search.flow(engine.space)
    answers: list[Scored] = []
    wish = next(flow)
    while True:
        answers.append(engine(wish)[0])
        try:
            wish = flow.send(answers[-1])
        except StopIteration:
            return answers


@pytest.mark.parametrize("accept", ["rollover", "threshold"])
def test_without_tries_it_is_a_plain_stochastic_sample_bit_for_bit(accept) -> None:  # type: ignore[no-untyped-def]
    search = Rbf(chains=1, init_particles=1, quota=1, accept=accept)
    tried = ToyEngine(ToySpace(seed=4), stochastic=True)
    last = finished(search, tried)[-1]
    plain = ToyEngine(ToySpace(seed=4), stochastic=True)
    expected, _ = plain(Rollout(plain.space.draw(1), until=10))
    assert torch.equal(last.candidates.latents, expected.candidates.latents)
    assert (tried.rows, tried.space.count) == (10, 1)  # nothing was forked


def test_a_better_child_is_taken_at_once_and_its_quota_rolls_over() -> None:
    """Quota 2: the first step spends one try, so the second may spend three."""
    scores = [[0.1, 0.5], [0.6], [0.2], [0.3], [0.1], [0.7]]
    asked = wishes(early(chains=1, init_particles=2, quota=2), scores)
    assert [(a.candidates.step, a.until) for a in asked] == [
        (0, 1),  # two noises
        (1, 2),  # 0.6 beats 0.5
        (2, 3),
        (2, 3),
        (2, 3),  # 2 + 1 tries, none beats 0.6
        (3, 4),  # from the best of them; 0.7 beats 0.6
        (4, 5),
    ]
    assert [a.candidates.parents for a in asked[1:]] == [
        ((1,),), ((2,),), ((2,),), ((2,),), ((4,),), ((6,),)
    ]  # fmt: skip
    assert len(asked[0].candidates) == 2
    assert {a.round for a in asked} == {1}


def test_the_first_child_goes_on_itself_and_the_others_are_fresh() -> None:
    asked = wishes(early(chains=1, init_particles=1, quota=3), [[0.5], [0.1], [0.2], [0.4], [0.0]])
    seeds = [a.candidates.seeds[0] for a in asked]
    assert seeds[1] == seeds[0] and len({*seeds[1:4]}) == 3
    assert seeds[4] == seeds[3]  # the third child was the best
    assert seeds[5] not in seeds[:5]


def test_the_bar_stays_at_the_best_of_the_path() -> None:
    """A chain that fell back to 0.4 does not accept 0.45 after 0.5."""
    asked = wishes(early(chains=1, init_particles=1, quota=2), [[0.5], [0.4], [0.3], [0.45], [0.1]])
    assert [a.candidates.step for a in asked] == [0, 1, 1, 2, 2, 3]


def test_chains_step_together_and_only_those_still_trying_ask() -> None:
    asked = wishes(early(init_particles=2, quota=2), [[0.1, 0.5, 0.9, 0.2], [0.6, 0.3], [0.4]])
    assert [len(a.candidates) for a in asked] == [4, 2, 1, 2]
    assert asked[1].candidates.parents == ((1,), (2,))
    assert asked[2].candidates.parents == ((2,),)
    assert asked[3].candidates.parents == ((4,), (6,))
    after = wishes(
        early(init_particles=2, quota=2),
        [[0.1, 0.5, 0.9, 0.2], [0.6, 0.3], [0.4], [0.1, 0.1], [0.1, 0.1], [0.1]],
    )
    assert [len(a.candidates) for a in after[3:]] == [2, 2, 1, 2]  # 2 + 1 and 2 tries
    assert after[5].candidates.step == 2


def test_a_group_is_paid_for_whole() -> None:
    """Quota 3, two at once: after a group of two, one try is left."""
    asked = wishes(
        early(chains=1, init_particles=1, quota=3, at_once=2), [[0.5], [0.1, 0.2], [0.3]]
    )
    assert [(a.candidates.step, len(a.candidates)) for a in asked] == [
        (0, 1),
        (1, 2),
        (1, 1),
        (2, 2),
    ]
    assert asked[3].candidates.parents == ((3,), (3,))


def test_a_fixed_threshold_is_reached_not_beaten() -> None:
    search = early(chains=1, init_particles=1, quota=4, accept="threshold", threshold=0.5)
    asked = wishes(search, [[0.1], [0.4], [0.5], [0.9], [0.2]])
    assert [a.candidates.step for a in asked] == [0, 1, 1, 2, 3, 3]


def test_without_a_threshold_a_child_has_to_reach_the_median_of_the_last_two_steps() -> None:
    search = early(chains=1, init_particles=3, quota=5, accept="threshold")
    asked = wishes(search, [[0.1, 0.3, 0.9], [0.2], [0.25], [0.24], [0.23]])
    # medians before each child: 0.3, 0.25; of 0.2 and 0.25 alone 0.225; then 0.24 is not reached
    assert [a.candidates.step for a in asked] == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("accept", ["rollover", "threshold"])
def test_a_missing_score_is_never_good_enough(accept) -> None:  # type: ignore[no-untyped-def]
    search = early(chains=1, init_particles=2, quota=2, accept=accept)
    asked = wishes(search, [[NAN, 0.3], [NAN], [0.1]])
    assert [a.candidates.step for a in asked] == [0, 1, 1, 2]
    assert [a.candidates.parents for a in asked[1:]] == [((1,),), ((1,),), ((3,),)]


@pytest.mark.parametrize("accept", ["rollover", "threshold"])
def test_without_any_score_the_first_goes_on_when_the_quota_is_spent(accept) -> None:  # type: ignore[no-untyped-def]
    search = early(chains=1, init_particles=2, quota=2, accept=accept)
    asked = wishes(search, [[NAN, NAN], [NAN], [NAN]])
    assert [a.candidates.step for a in asked] == [0, 1, 1, 2]
    assert asked[3].candidates.parents == ((2,),)


def test_noises_may_be_compared_later() -> None:
    asked = wishes(Rbf(check_from=0.3), [[0.0] * 16])
    assert (asked[0].until, asked[1].candidates.step) == (3, 3)


def test_a_single_step_leaves_nothing_to_try() -> None:
    engine = ToyEngine(ToySpace(steps=1), stochastic=True)
    answers = finished(Rbf(), engine)
    assert [a.candidates.step for a in answers] == [1] and engine.rows == 16


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("nfe", [30, 100, 500])
def test_a_fitted_flow_stays_within_its_budget(steps: int, share: float, nfe: int) -> None:
    fitted = Rbf(init_particles=25, check_from=share).sized(steps, nfe)
    engine = ToyEngine(ToySpace(steps=steps), stochastic=True)
    engine.judged = never_better()  # type: ignore[method-assign]
    finished(fitted, engine)
    assert engine.rows <= nfe
    if nfe == 500 and steps == 10 and share == 0:
        assert (fitted.chains, fitted.init_particles, fitted.quota) == (2, 25, 25)  # the paper's
        assert engine.rows == 500


def never_better() -> Callable[[torch.Tensor], torch.Tensor]:
    """Scores that fall with every look, so that every quota is spent."""
    looks = iter(range(10**6))
    return lambda clean: torch.full((len(clean),), -float(next(looks)), dtype=torch.float64)


def test_the_median_is_reached_in_about_two_tries() -> None:
    """Two chains, 8 noises each for 5 steps, then 15 steps of up to seven tries in the mean."""
    engines = [ToyEngine(ToySpace(steps=20, seed=s), stochastic=True) for s in range(20)]
    for engine in engines:
        finished(Rbf(accept="threshold", quota=7), engine)
    tries = [(engine.rows - 2 * 8 * 5) / (2 * 15) for engine in engines]
    assert 1.5 < sum(tries) / len(tries) < 2.2


def test_the_threshold_rule_asks_for_fewer_verifications() -> None:
    """One pass of each at one quota."""

    def rows(accept: str) -> int:
        engines = [ToyEngine(ToySpace(seed=s), stochastic=True) for s in range(10)]
        for engine in engines:
            finished(Rbf(accept=accept, quota=8), engine)  # type: ignore[arg-type]
        return sum(engine.rows for engine in engines)

    assert rows("threshold") < rows("rollover")


def test_it_finds_better_images_than_random_search_with_the_same_budget() -> None:
    """Two chains against ten samples, 20 prompts."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        space = ToySpace(seed=seed)
        engine = ToyEngine(space, stochastic=True)
        answers = play(search, space, engine, Ledger(Budget(nfe=100)))
        return max(a.scored.best for a in answers if a.rollout.until == space.steps)

    tries = Rbf()
    plain = Rbf(chains=1, init_particles=1, quota=1)

    class Plain:
        needs, blind = tries.needs, False

        def sized(self, steps: int, nfe: int) -> Rbf:
            return plain

    ours = [best(tries, s) for s in range(20)]
    theirs = [best(Plain(), s) for s in range(20)]
    assert sum(ours) > 0.8 * sum(theirs)  # scores are minus a distance: a fifth nearer


@pytest.mark.parametrize(
    "options",
    [
        {"chains": 0},
        {"init_particles": 0},
        {"quota": 0},
        {"at_once": 0},
        {"check_from": -0.1},
        {"threshold": 0.5},
    ],
)
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Rbf(**options)  # type: ignore[arg-type]
