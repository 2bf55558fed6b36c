"""EvoSearch: its generations, its mutations, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch

from search.core import Rollout
from search.ledger import Budget, Ledger, nfe_each
from search.methods.evosearch import EvoSearch
from search.methods.random import Random
from search.play import Answer, play
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace, noised

NAN = math.nan


def one_round(search: EvoSearch, space: ToySpace) -> list[Answer]:
    engine = ToyEngine(space, stochastic=True)
    return list(play(search, space, engine, Ledger(Budget()), rounds=1))


def wishes(search: EvoSearch, space: ToySpace) -> list[Rollout]:
    """What a flow asks for, all of its candidates being alike."""
    flow, answer = search.flow(space), Answers()
    asked = [next(flow)]
    while True:
        try:
            asked.append(flow.send(answer(asked[-1], [0.0] * len(asked[-1].candidates))))
        except StopIteration:
            return asked


def nfe(asked: list[Rollout]) -> int:
    return sum(nfe_each(wish) * len(wish.candidates) for wish in asked)


PURE = (0.0, 0.4, 0.6, 0.8)  # the paper's for Stable Diffusion


def test_without_a_schedule_it_is_best_of_n_bit_for_bit() -> None:
    (only,) = one_round(EvoSearch(schedule=(), start=9), ToySpace())
    same = ToySpace()
    plain, _ = ToyEngine(same, stochastic=True)(Rollout(same.draw(9), until=10))
    assert only.rollout.candidates.seeds == plain.start.seeds
    assert torch.equal(only.scored.candidates.latents, plain.candidates.latents)
    assert torch.equal(only.scored.scores, plain.scores)


def test_stops_for_states_on_the_way_change_no_path() -> None:
    _, _, _, first, *_ = one_round(EvoSearch(schedule=PURE, start=9), ToySpace())
    (plain,) = one_round(EvoSearch(schedule=(), start=9), ToySpace())
    assert (first.rollout.candidates.step, plain.rollout.candidates.step) == (8, 0)
    assert torch.equal(first.scored.candidates.latents, plain.scored.candidates.latents)
    assert torch.equal(first.scored.scores, plain.scored.scores)


def test_generations_start_at_the_schedules_steps_and_cost_what_is_left() -> None:
    asked = wishes(EvoSearch(schedule=PURE), ToySpace())
    assert [(len(w.candidates), w.candidates.step, w.until, w.score) for w in asked] == [
        (14, 0, 4, False),  # the first population: on its way it leaves states for later
        (14, 4, 6, False),
        (14, 6, 8, False),
        (14, 8, 10, True),
        (7, 0, 4, False),
        (7, 4, 6, False),
        (7, 6, 8, False),
        (7, 8, 10, True),
        (7, 4, 6, False),
        (7, 6, 8, False),
        (7, 8, 10, True),
        (7, 6, 8, False),
        (7, 8, 10, True),
        (7, 8, 10, True),  # nothing starts later: no states are needed
    ]
    assert nfe(asked) == 14 * 10 + 7 * (10 + 6 + 4 + 2)
    assert {w.round for w in asked} == {1}
    compared = [len(w.rivals) for w in asked if w.score]
    assert compared == [0, 14, 21, 28, 35]  # all that were finished before


def test_elites_and_winners_are_bred_from_their_own_states() -> None:
    search = EvoSearch(schedule=(0.5,), start=5, population=4, elites=2, tournament=1.0)
    flow, answer = search.flow(ToySpace()), Answers()
    half = next(flow)
    final = flow.send(answer(half, [NAN] * 5))
    children = flow.send(answer(final, [0.3, NAN, 0.9, 0.1, 0.5]))
    # ids 5 to 9 are the finished ones; in a tournament of all the best always wins
    assert children.candidates.parents == ((7,), (9,), (7,), (7,))
    assert (children.candidates.step, children.rivals) == (5, (5, 6, 7, 8, 9))
    assert torch.equal(children.candidates.latents[:2], half.candidates.latents[[2, 4]])
    assert not torch.equal(children.candidates.latents[2], half.candidates.latents[2])
    assert len(set(children.candidates.seeds) | set(half.candidates.seeds)) == 9


def test_parents_are_chosen_by_the_scores_of_today() -> None:
    search = EvoSearch(schedule=(0.0, 0.5), start=2, population=1, elites=1)
    flow, answer = search.flow(ToySpace()), Answers()
    half = next(flow)
    final = flow.send(answer(half, [NAN, NAN]))
    child = flow.send(answer(final, [1.0, 2.0]))
    assert child.candidates.parents == ((3,),)
    final = flow.send(answer(child, [NAN]))
    answer.scores[2:4] = [9.0, 0.0]  # by now the first is seen to be the best of all
    grandchild = flow.send(answer(final, [5.0]))
    assert grandchild.candidates.parents == ((2,),)


def test_a_small_tournament_lets_others_win() -> None:
    search = EvoSearch(schedule=(0.0,), start=4, population=400, elites=0, tournament=0.5)
    flow, answer = search.flow(ToySpace()), Answers()
    children = flow.send(answer(next(flow), [4.0, 3.0, 2.0, 1.0]))
    won = torch.bincount(torch.tensor(children.candidates.parents).flatten(), minlength=4) / 400
    # two of four compete: the best is in 3 of 6 pairs and wins them, the second 2, the third 1
    expected = torch.tensor([3 / 6, 2 / 6, 1 / 6, 0])
    assert torch.allclose(won, expected, atol=0.1)  # 4 * sqrt(1/4 / 400)


def test_mutation_turns_noise_on_its_shell() -> None:
    search = EvoSearch((0.0,), start=1, population=50, elites=0, mutation=0.6)
    flow, answer = search.flow(ToySpace()), Answers()
    first = next(flow)
    children = flow.send(answer(first, [0.0])).candidates.latents
    cosine = torch.cosine_similarity(children, first.candidates.latents)
    assert torch.allclose(cosine, torch.full_like(cosine, 0.8))
    assert torch.allclose(children.norm(dim=1), first.candidates.latents.norm().expand(50))


def test_mutation_midway_adds_as_much_of_the_noise_level_to_the_noised_state() -> None:
    n = 4000
    space = ToySpace()
    engine = ToyEngine(space, stochastic=True)
    flow = EvoSearch((0.5,), start=1, population=n, elites=0, mutation=0.6).flow(space)
    scored, _ = engine(next(flow))
    assert scored.candidates.noise_scale is not None
    children = flow.send(engine(flow.send(scored))[0]).candidates
    offsets = children.latents - noised(scored.candidates).latents
    # the chord between points of a unit shell at cosine 0.8, times the level of 0.5 at step 5
    reach = 0.5 * math.sqrt(2 - 2 * 0.8)
    assert children.step == 5
    assert torch.all(offsets.mean(0).abs() < 4 * reach / math.sqrt(n))
    assert torch.all((offsets.std(0) / reach - 1).abs() < 4 / math.sqrt(2 * n))


def test_children_without_a_choice_keep_the_samplers_law() -> None:
    """2000 states, each an elite: of their new ends as many go to each mode as of plain ends."""
    n = 2000
    search = EvoSearch(schedule=(0.3,), start=n, population=n, elites=n)
    *_, last = one_round(search, ToySpace())
    (plain,) = one_round(EvoSearch(schedule=(), start=n), ToySpace(seed=1))

    def ends(answer: Answer) -> torch.Tensor:
        return answer.scored.candidates.latents

    def shares(answer: Answer) -> torch.Tensor:
        nearest = torch.cdist(ends(answer), ToyEngine.centres).argmin(1)
        return torch.bincount(nearest, minlength=4) / n

    assert last.rollout.candidates.step == 3
    # 4 standard errors of a difference of two shares of 1/4: 4 * sqrt(2 * 3/16 / 2000) = 0.055
    assert torch.allclose(shares(last), shares(plain), rtol=0, atol=0.055)
    assert torch.allclose(ends(last).std(0), ends(plain).std(0), rtol=0.07)


@pytest.mark.parametrize("limit", [20, 33, 57, 200, 294, 641, 3000])
@pytest.mark.parametrize("schedule", [(0.0, 0.4, 0.6, 0.8), (0.5,), ()])
@pytest.mark.parametrize("steps", [1, 2, 10, 13])
def test_fitted_to_a_budget_it_leaves_less_than_one_image(steps, schedule, limit) -> None:  # type: ignore[no-untyped-def]
    fitted = EvoSearch(schedule).sized(steps, limit)
    assert limit - steps < nfe(wishes(fitted, ToySpace(steps))) <= limit


def test_the_budget_of_its_own_size_leaves_it_as_it_is() -> None:
    assert EvoSearch().sized(10, 14 * 10 + 7 * 21) == EvoSearch()
    double = EvoSearch().sized(10, 2 * (14 * 10 + 7 * 21))
    assert (double.start, double.population, double.elites) == (28, 14, 6)
    assert EvoSearch().sized(10, 30).schedule == ()
    assert EvoSearch().sized(10, 3).start == 1


def test_it_beats_best_of_n_on_a_smooth_score() -> None:
    """Minus the distance to a point off the centre of one Gaussian, 8 dimensions, 40 images."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        space = ToySpace(seed=seed, dim=8)
        engine = ToyEngine(space, stochastic=True)
        engine.centres = torch.zeros(1, 8, dtype=torch.float64)
        engine.spread, engine.target = 0.5, torch.full((8,), 0.5, dtype=torch.float64)
        answers = play(search, space, engine, Ledger(Budget(nfe=400)))
        return max(a.scored.best for a in answers if a.rollout.until == space.steps)

    gains = torch.tensor([best(EvoSearch(), s) - best(Random(), s) for s in range(20)])
    assert float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(20)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": (1.0,)},
        {"schedule": (-0.1,)},
        {"start": 0},
        {"population": 0},
        {"elites": 8},
        {"elites": -1},
        {"tournament": 0.0},
        {"tournament": NAN},
        {"mutation": 1.1},
        {"mutation": NAN},
    ],
)
def test_wrong_hyperparameters_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=next(iter(options))):
        EvoSearch(**options)
