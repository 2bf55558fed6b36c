"""SVDD against its closed form on one Gaussian, and stepped by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from search.branching import branched
from search.core import Candidates, Rollout, Scored, lead, step_at
from search.methods.svdd import Svdd
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace

NAN = math.nan


def finished(search, engine: ToyEngine) -> list[Scored]:  # type: ignore[no-untyped-def]
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


@dataclass
class GaussianEngine(ToyEngine):
    """One Gaussian in one dimension, scored by the clean estimate itself."""

    centres = torch.tensor([[0.5]], dtype=torch.float64)
    spread = 1.0

    def judged(self, clean: Tensor) -> Tensor:
        return clean[:, 0]


def expected_mean(engine: GaussianEngine, search: Svdd, start: int) -> float:
    """Of the finished children, when each choice but the last (which ends the flow) was soft.

    The clean estimate is affine, x̂0(x_k) = a_k + g_k x_k with g_k = (1 - s) v / ((1 - s)² v + s²),
    and steps keep it: E[x̂0(x_k+1) | x_k] = x̂0(x_k). So x_k ~ N(m, n_k²) tilted by
    exp(x̂0(x_k) / α) moves by g_k n_k² / α, and the final mean by g_k times that, at every choice.
    A softmax over M children falls short: with β = g_k n_k / α the self-normalised mean of N(0, 1)
    tilted by exp(β z) is β - β exp(β²) / M to the first order in 1 / M.
    """
    s = engine.space.sigmas
    v = engine.spread**2
    mean = float(engine.centres[0, 0])
    for k in range(start, engine.space.steps - 1):
        gain = (1 - s[k]) * v / ((1 - s[k]) ** 2 * v + s[k] ** 2)
        noise = s[k] * (1 - ((1 - s[k - 1]) * s[k] / ((1 - s[k]) * s[k - 1])) ** 2).sqrt()
        beta = float(gain * noise) / search.temperature
        mean += float(gain * noise) * (beta - beta * math.exp(beta**2) / search.branches)
    return mean


def test_the_soft_choice_tilts_a_gaussian_as_its_closed_form_says() -> None:
    """600 chains: 4 standard errors of the mean, which is a tenth of the shift."""
    search = Svdd(branches=16, chains=600, temperature=0.5, normalise=False)
    engine = GaussianEngine(ToySpace(dim=1), stochastic=True)
    last = finished(search, engine)[-1]
    chains = last.candidates.latents.reshape(600, 16).mean(1)
    error = float(chains.std()) / 600**0.5
    expected = expected_mean(engine, search, step_at(engine.space, search.check_from))
    assert expected > 0.5 + 30 * error
    assert abs(float(chains.mean()) - expected) < 4 * error


def test_a_hot_choice_leaves_the_samplers_law() -> None:
    search = Svdd(branches=4, chains=500, temperature=1e6)
    engine = GaussianEngine(ToySpace(dim=1, seed=1), stochastic=True)
    chains = finished(search, engine)[-1].candidates.latents.reshape(500, 4).mean(1)
    assert abs(float(chains.mean()) - 0.5) < 4 * float(chains.std()) / 500**0.5


def test_one_branch_is_plain_stochastic_sampling_bit_for_bit() -> None:
    tried = ToyEngine(ToySpace(seed=4), stochastic=True)
    last = finished(Svdd(branches=1, chains=5), tried)[-1]
    plain = ToyEngine(ToySpace(seed=4), stochastic=True)
    expected, _ = plain(Rollout(plain.space.draw(5), until=10))
    assert torch.equal(last.candidates.latents, expected.candidates.latents)
    assert (tried.rows, tried.space.count) == (50, 5)


def test_a_cold_choice_is_the_greedy_one() -> None:
    cold, greedy = (
        finished(Svdd(temperature=t), ToyEngine(ToySpace(seed=2), stochastic=True))[-1]
        for t in (1e-9, 0.0)
    )
    assert torch.equal(cold.candidates.latents, greedy.candidates.latents)


def wishes(search: Svdd, scores: list[list[float]], steps: int = 10) -> list[Rollout]:
    """What it asks for, given these answers."""
    flow, answer = search.flow(ToySpace(steps=steps)), Answers()
    asked = [next(flow)]
    for row in scores:
        asked.append(flow.send(answer(asked[-1], row)))
    return asked


def test_it_rolls_plainly_then_keeps_the_best_child_of_each_chain_at_every_step() -> None:
    search = Svdd(branches=3)
    asked = wishes(search, [[NAN] * 2, [0.1, 0.9, 0.3, 0.5, 0.4, 0.2], [0.0] * 6])
    assert [(a.candidates.step, a.until, a.score, len(a.candidates)) for a in asked] == [
        (0, 2, False, 2),
        (2, 3, True, 6),
        (3, 4, True, 6),
        (4, 5, True, 6),
    ]
    assert asked[1].candidates.parents == ((0,),) * 3 + ((1,),) * 3
    assert asked[2].candidates.parents == ((3,),) * 3 + ((5,),) * 3
    assert {a.round for a in asked} == {1}


def test_one_child_goes_on_itself_and_the_others_are_fresh() -> None:
    asked = wishes(Svdd(branches=3, chains=1), [[NAN], [0.1, 0.9, 0.3]])
    (drawn,) = asked[0].candidates.seeds
    first, second, third = asked[1].candidates.seeds
    assert first == drawn and len({first, second, third}) == 3
    assert asked[2].candidates.seeds[0] == second


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_missing_score_is_never_kept_unless_all_are_missing(temperature: float) -> None:
    search = Svdd(branches=3, temperature=temperature)
    asked = wishes(search, [[NAN] * 2, [NAN, NAN, 0.3, NAN, NAN, NAN]])
    assert asked[2].candidates.parents == ((4,),) * 3 + ((5,),) * 3


def test_blocks_may_be_longer_and_the_last_takes_the_rest() -> None:
    scores = [[NAN] * 2, [0.0] * 10, [0.0] * 10]
    asked = wishes(Svdd(every=3), scores)
    assert [a.until for a in asked] == [2, 5, 8, 10]


def test_a_single_step_is_scored_at_its_end() -> None:
    [only] = wishes(Svdd(), [], steps=1)
    assert (only.until, only.score) == (1, True)


def test_siblings_previews_differ_by_their_own_noise() -> None:
    engine = ToyEngine(ToySpace(), stochastic=True)
    answers = finished(Svdd(branches=8, chains=1), engine)
    assert all(len(answer.scores.unique()) == 8 for answer in answers[1:])


@pytest.mark.parametrize(
    ("nfe", "chains", "branches"),
    [(3, 1, 1), (10, 1, 1), (41, 1, 4), (42, 1, 5), (57, 1, 5), (1003, 23, 5)],
)
def test_a_budget_decides_over_the_chains(nfe: int, chains: int, branches: int) -> None:
    """10 steps: 2 plain ones, then 5 children at each of 8, so 42 calls a chain."""
    fitted = Svdd().sized(10, nfe)
    assert (fitted.chains, fitted.branches) == (chains, branches)


@pytest.mark.parametrize("steps", [1, 2, 10, 29])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_lead_is_where_branching_starts(steps: int, share: float) -> None:
    assert lead(steps, share) == step_at(ToySpace(steps=steps), share)
    engine = ToyEngine(ToySpace(steps=steps), stochastic=True)
    finished(Svdd(check_from=share).sized(steps, 300), engine)
    assert 300 - 5 * steps < engine.rows <= 300


def test_branched_keeps_the_order_of_its_index() -> None:
    space = ToySpace()
    points = Candidates(torch.arange(3.0)[:, None].expand(3, 2), 4, (7, 8, 9))
    chosen = branched(space, points, [2, 0, 2, 1, 2], used=[1])
    assert chosen.latents[:, 0].tolist() == [2, 0, 2, 1, 2]
    assert chosen.seeds[:2] == (9, 7)
    assert len(set(chosen.seeds)) == 5 and 8 not in chosen.seeds
    assert branched(space, points, [1, 1], used=[1]).latents[:, 0].tolist() == [1, 1]
    assert branched(space, points, [2, 0]).seeds == (9, 7)


@pytest.mark.parametrize(
    "options",
    [{"branches": 0}, {"chains": 0}, {"every": 0}, {"temperature": -1.0}, {"check_from": 2.0}],
)
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Svdd(**options)  # type: ignore[arg-type]
