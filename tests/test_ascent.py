"""Gradient ascent on the noise, on a diffusion and a verifier that are differentiated exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from search.core import Rollout, Scored
from search.ledger import Budget, Ledger
from search.methods.ascent import Ascent
from search.play import play
from tests.toy import ToyEngine, ToySpace


def test_the_toys_gradient_agrees_with_finite_differences() -> None:
    space = ToySpace(dim=2)
    drawn = space.draw(3)
    found, _ = ToyEngine(space)(Rollout(drawn, until=space.steps, gradient=True))
    assert found.gradient is not None
    for axis in range(2):
        h = torch.zeros_like(drawn.latents)
        h[:, axis] = 1e-6
        ends = [
            ToyEngine(space)(Rollout(_at(drawn, drawn.latents + d), until=space.steps))[0].scores
            for d in (h, -h)
        ]
        assert torch.allclose((ends[0] - ends[1]) / 2e-6, found.gradient[:, axis], atol=1e-4)


def _at(drawn, latents):  # type: ignore[no-untyped-def]
    return type(drawn)(latents, drawn.step, drawn.seeds)


def test_it_climbs_where_random_guesses() -> None:
    """30 noises: after 12 steps each is better than where it began, and than best of 37."""
    better = 0
    for seed in range(30):
        space = ToySpace(seed=seed)
        engine = ToyEngine(space)
        ledger = Ledger(Budget(nfe=37 * space.steps))
        search = Ascent(learning_rate=0.1, momentum=0.0)
        answers = list(play(search, space, engine, ledger))
        assert len(answers) == 13 and ledger.spent.nfe == 37 * space.steps
        scores = [float(a.scored.scores[0]) for a in answers]
        better += max(scores) > scores[0] + 0.1 * abs(scores[0])
    assert better >= 27


def test_a_step_is_nesterovs_and_as_long_as_it_says() -> None:
    space = ToySpace(dim=4)
    search = Ascent(learning_rate=0.1, momentum=0.5, regularization=0.0, iterations=2)
    flow = search.flow(space)
    wish = next(flow)
    first = wish.candidates
    gradient = torch.tensor([[0.0, 3.0, 0.0, 4.0]], dtype=torch.float64)
    radius = first.latents.norm()
    wish = flow.send(_answer(wish, 0, gradient))
    unit = gradient / 5
    assert torch.allclose(wish.candidates.latents, first.latents + 0.1 * radius * 1.5 * unit)
    assert wish.candidates.parents == ((0,),) and wish.candidates.seeds != first.seeds
    second = wish.candidates
    wish = flow.send(_answer(wish, 1, gradient))
    # velocity 0.5 * 1 + 1 = 1.5, and a step of 1 + 0.5 * 1.5
    assert torch.allclose(wish.candidates.latents, second.latents + 0.1 * radius * 1.75 * unit)
    assert not wish.gradient  # nothing follows the last


def test_the_pull_is_the_gradient_of_the_norms_log_density() -> None:
    """Without a score to climb a noise far out goes back to the shell and stays there."""
    search = Ascent(regularization=0.5)
    d = 64
    x = torch.randn(1, d, dtype=torch.float64, requires_grad=True)
    r = x.norm()
    (expected,) = torch.autograd.grad((d - 1) * r.log() - r**2 / 2, x)
    radius = torch.full((1, 1), math.sqrt(d), dtype=torch.float64)
    gradient = torch.ones(1, d, dtype=torch.float64) / math.sqrt(d)
    pull = (search._uphill(x.detach(), gradient, radius) - gradient) / 0.5
    # (d - 1) / r^2 - 1 beside d / r^2 - 1
    assert torch.allclose(pull, expected, atol=0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_noise_without_a_gradient_gives_its_place_to_a_fresh_one(value: float) -> None:
    space = ToySpace()
    flow = Ascent(iterations=1, starts=2).flow(space)
    wish = next(flow)
    gradient = torch.tensor([[value, 0.0], [1.0, 0.0]], dtype=torch.float64)
    moved = flow.send(_answer(wish, 0, gradient)).candidates
    assert moved.parents == ((), (1,))
    assert (moved.latents - wish.candidates.latents).norm(dim=1)[0] > 0.1
    assert torch.isfinite(moved.latents).all()


def test_a_budget_buys_whole_iterations_and_a_last_look() -> None:
    assert Ascent().sized(20, 320).iterations == 5  # (3 * 5 + 1) * 20
    assert Ascent().sized(20, 20).iterations == 0
    assert Ascent(starts=4).sized(20, 160) == Ascent(starts=2, iterations=1)


def _answer(wish, number, gradient):  # type: ignore[no-untyped-def]
    n = len(wish.candidates)
    ids = tuple(range(number, number + n))
    own = replace(wish.candidates, parents=tuple((i,) for i in ids))
    return Scored(own, own, torch.zeros(n).double(), ids, torch.zeros(0).double(), gradient)
