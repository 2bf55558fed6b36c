"""Search over paths: its turns, its survivors, and what it fits into a budget."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from search.core import Candidates, Rollout
from search.ledger import Budget, Ledger, nfe_each
from search.methods.paths import Paths
from search.methods.random import Random
from search.play import Answer, play
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace

NAN = math.nan
OFF_GRID = {"sigma": 0.45, "delta_f": 0.3, "delta_b": 0.5}  # between the levels of ten steps


class Late(ToySpace):
    """Image to image: sampling starts on the way."""

    def __init__(self, steps: int, first: int) -> None:
        super().__init__(steps)
        self.first = first

    def draw(self, n: int) -> Candidates:
        drawn = super().draw(n)
        return Candidates(drawn.latents, self.first, drawn.seeds)


def one_round(search, space: ToySpace) -> list[Answer]:  # type: ignore[no-untyped-def]
    return list(play(search, space, ToyEngine(space), Ledger(Budget()), rounds=1))


def wishes(search: Paths, space: ToySpace) -> list[Rollout]:
    """What a flow asks for, all of its candidates having scores."""
    flow, answer = search.flow(space), Answers()
    asked = [next(flow)]
    while True:
        try:
            asked.append(flow.send(answer(asked[-1], [0.0] * len(asked[-1].candidates))))
        except StopIteration:
            return asked


def nfe(asked: list[Rollout]) -> int:
    return sum(nfe_each(wish) * len(wish.candidates) for wish in asked)


def test_without_turns_it_is_best_of_n_bit_for_bit() -> None:
    space = ToySpace()
    drawn = list(play(Random(), space, ToyEngine(space), Ledger(Budget()), rounds=3))[-1]
    same = ToySpace()
    same.draw(2 + 4)  # what random search drew in its first two rounds
    (only,) = one_round(Paths(num_paths=8, sigma=0), same)
    assert only.rollout.candidates.seeds == drawn.rollout.candidates.seeds
    assert torch.equal(only.scored.candidates.latents, drawn.scored.candidates.latents)
    assert torch.equal(only.scored.scores, drawn.scored.scores)


def test_a_turn_back_to_pure_noise_and_to_the_end_is_best_of_width_bit_for_bit() -> None:
    _, turn = one_round(Paths(1, 8, sigma=0.95, delta_f=0.05, delta_b=1.0), ToySpace())
    same = ToySpace()
    same.draw(1)
    drawn = same.draw(8)
    scored, _ = ToyEngine(same)(Rollout(drawn, until=10))
    assert turn.rollout.candidates.seeds == drawn.seeds
    assert torch.equal(turn.scored.candidates.latents, scored.candidates.latents)
    assert torch.equal(turn.scored.scores, scored.scores)


def test_turns_go_back_and_come_nearer_to_the_end_each_time() -> None:
    asked = wishes(Paths(2, 3, **OFF_GRID), ToySpace())
    assert [(len(w.candidates), w.candidates.step, w.until, w.score) for w in asked] == [
        (2, 0, 6, False),  # to level 0.4, the first below 0.45: nothing to compare yet
        (6, 3, 8, True),  # from below 0.75 to below 0.25
        (6, 5, 9, True),  # from below 0.55 to below 0.05, which only the end is: the step before
        (6, 7, 10, True),
    ]
    assert {w.round for w in asked} == {1}


def test_levels_are_the_schedules_own() -> None:
    """Shifted as for large images, the same levels lie at later steps."""
    space = ToySpace()
    # 1, 0.96, 0.92, 0.875, 0.82, 0.75, 0.67, 0.56, 0.43, 0.25, 0
    space.sigmas = 3 * space.sigmas / (1 + 2 * space.sigmas)
    asked = wishes(Paths(1, 1, sigma=0.6, delta_f=0.2, delta_b=0.5), space)
    assert [(w.candidates.step, w.until) for w in asked] == [(0, 7), (5, 9), (8, 10)]


def test_the_papers_levels_make_four_turns_of_a_long_schedule() -> None:
    asked = wishes(Paths(sigma=0.1105), ToySpace(steps=1000))  # half a step off the grid
    assert [(w.candidates.step, w.until) for w in asked] == [
        (0, 890),
        (110, 920),
        (140, 950),
        (170, 980),
        (200, 1000),
    ]


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("steps", [20, 28, 30, 50])
def test_the_papers_levels_make_four_turns_of_the_usual_schedules(steps: int, shift: int) -> None:
    """Where no four steps lie below a level of 0.11, they start earlier, each to gain a step."""
    space = ToySpace(steps)
    space.sigmas = shift * space.sigmas / (1 + (shift - 1) * space.sigmas)
    first, *turns = wishes(Paths(), space)
    assert steps - 6 <= first.until <= steps - 4
    assert [w.until for w in turns] == [steps - 3, steps - 2, steps - 1, steps]
    assert all(w.score for w in turns)
    backs = [w.candidates.step for w in turns]
    assert [float(space.sigmas[back]) for back in backs] == pytest.approx(
        [0.89, 0.86, 0.83, 0.80], abs=1.5 / steps
    )


def test_few_steps_make_turns_from_halfway_on() -> None:
    asked = wishes(Paths(), ToySpace(steps=4))
    assert [(w.candidates.step, w.until) for w in asked] == [(0, 2), (1, 3), (1, 4)]


def test_the_best_detours_of_all_paths_together_go_on_and_their_origins_do_not_compete() -> None:
    flow, answer = Paths(2, 3, **OFF_GRID).flow(ToySpace()), Answers()
    turn = flow.send(answer(next(flow), [9.0, 9.0]))
    assert turn.candidates.parents == ((0,),) * 3 + ((1,),) * 3
    assert turn.rivals == ()
    after = flow.send(answer(turn, [0.1, 0.2, 0.3, 0.0, 0.25, 0.0]))
    assert after.candidates.parents == ((4,),) * 3 + ((6,),) * 3
    assert len(set(after.candidates.seeds) | set(turn.candidates.seeds)) == 12


def test_detours_without_a_score_are_dropped_while_others_have_one() -> None:
    flow, answer = Paths(2, 3, **OFF_GRID).flow(ToySpace()), Answers()
    turn = flow.send(answer(next(flow), [NAN, NAN]))
    after = flow.send(answer(turn, [NAN, NAN, NAN, 0.5, NAN, NAN]))
    assert after.candidates.parents == ((5,),) * 3
    last = flow.send(answer(after, [0.1, 0.2, 0.3]))
    assert last.candidates.parents == ((10,),) * 3 + ((9,),) * 3  # two paths again


LEVELS = product([0.01, 0.11, 0.5, 0.99], [0.05, 0.78, 1.0], [0.001, 0.03, 0.4])


@pytest.mark.parametrize(("sigma", "forward", "gain"), LEVELS)
def test_every_turn_gains_a_step_and_the_last_ends_the_image(sigma, forward, gain) -> None:  # type: ignore[no-untyped-def]
    search = Paths(1, 1, sigma, forward, forward + gain)
    for steps, first in [(1, 0), (2, 0), (3, 0), (10, 0), (28, 0), (10, 4), (10, 8), (10, 9)]:
        asked = wishes(search, Late(steps, first))
        ends = [wish.until for wish in asked]
        assert ends == sorted(set(ends))
        assert ends[-1] == steps
        assert asked[0].candidates.step == first
        assert all(first <= w.candidates.step < at for w, at in zip(asked[1:], ends, strict=False))
        assert [w.score for w in asked] == [len(asked) == 1] + [True] * (len(asked) - 1)


def test_turns_without_a_choice_keep_the_samplers_law() -> None:
    """Of 2000 samples as many go to each of the four modes as without any turn."""
    n = 2000
    *_, last = one_round(Paths(n, 1, sigma=0.45, delta_f=0.3, delta_b=0.35), ToySpace())
    (plain,) = one_round(Paths(n, 1, sigma=0), ToySpace(seed=1))

    def shares(answer: Answer) -> torch.Tensor:
        points = answer.scored.candidates.latents
        nearest = torch.cdist(points, ToyEngine.centres).argmin(1)
        return torch.bincount(nearest, minlength=4) / n

    assert last.rollout.candidates.step > 0  # taken back and denoised again
    # 4 standard errors of a difference of two shares of 1/4: 4 * sqrt(2 * 3/16 / 2000) = 0.055
    assert torch.allclose(shares(last), shares(plain), rtol=0, atol=0.055)


@pytest.mark.parametrize("limit", [20, 33, 57, 64, 200, 641, 1003])
@pytest.mark.parametrize("levels", [{}, OFF_GRID, {**OFF_GRID, "width": 1}])
@pytest.mark.parametrize("steps", [1, 2, 10, 13])
def test_fitted_to_a_budget_it_takes_as_many_paths_as_fit(steps, levels, limit) -> None:  # type: ignore[no-untyped-def]
    search = Paths(**levels)
    asked = wishes(search.sized(steps, limit), ToySpace(steps))
    assert nfe(asked) <= limit
    one = wishes(Paths(1, **levels), ToySpace(steps))
    if nfe(one) <= limit:  # then paths of full width, and one more would not fit
        assert nfe(asked) == limit // nfe(one) * nfe(one)
        assert [len(w.candidates) % len(v.candidates) for w, v in zip(asked, one, strict=True)] == [
            0
        ] * len(one)
    elif len(asked) > 1:  # then one path, and one detour more would not fit
        width = len(asked[1].candidates)
        assert len(asked[0].candidates) == 1 < width < search.width
        wider = {**levels, "width": width + 1}
        assert nfe(wishes(Paths(1, **wider), ToySpace(steps))) > limit
    else:  # then even two detours were too many, and all of it goes to best of N
        assert nfe(asked) == limit // steps * steps
        assert nfe(wishes(Paths(1, **{**levels, "width": 2}), ToySpace(steps))) > limit


def test_a_budget_for_no_image_still_asks_for_one() -> None:
    for limit in (0, 9):
        (wish,) = wishes(Paths().sized(10, limit), ToySpace())
        assert (len(wish.candidates), wish.until) == (1, 10)


def test_a_limit_of_its_own_is_not_raised_by_the_budget() -> None:
    assert Paths(nfe=50).sized(10, 400).nfe == 50
    assert Paths(nfe=50).sized(10, 40).nfe == 40


def test_what_is_left_after_a_pass_is_spent_on_smaller_ones() -> None:
    space = ToySpace()
    answers = list(play(Paths(), space, ToyEngine(space), Ledger(Budget(nfe=300))))
    assert 290 < sum(a.cost.nfe for a in answers) <= 300
    ends = [a.rollout.until for a in answers if a.rollout.score]
    assert ends[:4] == [7, 8, 9, 10] and set(ends[4:]) == {10}  # a pass, and best of what is left


@pytest.mark.parametrize(
    "options",
    [
        {"num_paths": 0},
        {"width": 0},
        {"sigma": 1.0},
        {"sigma": -0.1},
        {"delta_f": 0.0},
        {"delta_f": NAN},
        {"delta_b": 0.78},
        {"delta_b": NAN},
        {"nfe": 0},
    ],
)
def test_wrong_hyperparameters_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=next(iter(options))):
        Paths(**options)
