"""Steering against the tilted law in closed form, and stepped by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from search.core import Rollout, Scored
from search.methods.steering import Particles, Steering
from search.resampling import Unit, effective_sample_size
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace

SLOPE = torch.tensor([0.6, 0.8], dtype=torch.float64)
NAN = math.nan


@dataclass
class LinearEngine(ToyEngine):
    """Scores a clean estimate along a slope, so that tilting the mixture has a closed form."""

    scale: float = 1.0
    shift: float = 0.0

    spread = 0.3

    def judged(self, clean: Tensor) -> Tensor:
        return self.scale * (clean @ SLOPE) + self.shift

    def tilted_mean(self, strength: float) -> Tensor:
        """Of p(x) exp(strength slope·x): each Gaussian moves, and its weight grows with its score.

        N(c, s²) exp(b·x) = N(c + s² b, s²) exp(b·c + s² b² / 2), the last factor the same for all.
        """
        weights = torch.softmax(strength * (self.centres @ SLOPE), 0)
        return weights @ self.centres + strength * self.spread**2 * SLOPE


def played(search: Steering, engine: ToyEngine) -> tuple[Particles, list[Scored]]:
    """The finished particles, and all answers on the way."""
    flow = search.weighted(engine.space)
    answers = []
    wish = next(flow)
    while True:
        answers.append(engine(wish)[0])
        try:
            wish = flow.send(answers[-1])
        except StopIteration as end:
            return end.value, answers


@pytest.mark.parametrize(
    "options",
    [
        {"potential": "diff"},
        {"potential": "diff", "tempering": "linear", "ess_threshold": 0.9},
        {"potential": "diff", "tempering": "adaptive", "ess_threshold": 0.8},
        {"potential": "max"},
        {"potential": "sum", "strength": 0.5},  # a sum overshoots, so its correction is uneven
    ],
    ids=str,
)
def test_the_weighted_particles_follow_the_tilted_law(options) -> None:  # type: ignore[no-untyped-def]
    """Mean of 6 runs of 600 particles: 4 standard errors, and 0.07 for taking 20 steps only.

    20000 plain samples of 20 steps, weighted by exp(1.5 score), miss the closed form by 0.065.
    """
    fixed = {"strength": 1.5, "check_every": 4}
    search = Steering(particles=600, normalise=False, **{**fixed, **options})
    means, copied = [], 0
    for seed in range(6):
        engine = LinearEngine(ToySpace(steps=20, seed=seed), stochastic=True)
        particles, _ = played(search, engine)
        weights = torch.softmax(particles.log_weights, 0)
        means.append(weights @ particles.candidates.latents)
        copied += engine.space.count - search.particles
    runs = torch.stack(means)
    error = (runs.mean(0) - engine.tilted_mean(search.strength)).abs()
    assert (error < 4 * runs.std(0) / 6**0.5 + 0.07).all()
    assert (runs.std(0) < 0.15).all()  # so that the line above says something
    assert (engine.tilted_mean(search.strength) - engine.tilted_mean(0)).norm() > 0.4
    assert copied > 0


def test_strength_zero_is_plain_stochastic_sampling_bit_for_bit() -> None:
    steered = LinearEngine(ToySpace(steps=20, seed=3), stochastic=True)
    particles, _ = played(Steering(particles=16, strength=0.0), steered)
    plain = LinearEngine(ToySpace(steps=20, seed=3), stochastic=True)
    expected, _ = plain(Rollout(plain.space.draw(16), until=20))
    assert torch.equal(particles.candidates.latents, expected.candidates.latents)
    assert particles.candidates.seeds == expected.candidates.seeds
    assert steered.space.count == 16  # none was copied
    assert particles.log_weights.tolist() == [0.0] * 16


@pytest.mark.parametrize("tempering", ["none", "linear", "adaptive"])
def test_strength_zero_never_resamples_even_where_scores_are_missing(tempering) -> None:  # type: ignore[no-untyped-def]
    engine = LinearEngine(ToySpace(seed=3), stochastic=True, nan_every=3)
    search = Steering(particles=7, strength=0.0, tempering=tempering, check_every=2)
    particles, answers = played(search, engine)
    assert engine.space.count == 7
    missing = answers[-1].scores.isnan()
    assert missing.any() and particles.log_weights[missing].eq(-math.inf).all()
    assert particles.log_weights[~missing].eq(0).all()


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
def test_a_normalised_reward_has_no_unit(potential) -> None:  # type: ignore[no-untyped-def]
    """ImageReward's scale or HPSv2's: the same particles are copied."""
    search = Steering(particles=12, potential=potential, check_every=2)
    wide = LinearEngine(ToySpace(seed=1), stochastic=True)
    narrow = LinearEngine(ToySpace(seed=1), stochastic=True, scale=0.02, shift=-40.0)
    one, _ = played(search, wide)
    two, _ = played(search, narrow)
    assert wide.space.count > 12
    assert one.candidates.seeds == two.candidates.seeds
    assert torch.equal(one.candidates.latents, two.candidates.latents)
    raw, _ = played(replace(search, normalise=False), again(narrow))
    assert raw.candidates.seeds != one.candidates.seeds


def again(engine: LinearEngine) -> LinearEngine:
    """The same engine on a fresh space of the same seed."""
    space = ToySpace(seed=engine.space.seed)
    return LinearEngine(space, stochastic=True, scale=engine.scale, shift=engine.shift)


def test_copies_part_and_keep_what_they_come_from() -> None:
    engine = LinearEngine(ToySpace(seed=2), stochastic=True)
    particles, answers = played(Steering(particles=10, strength=20.0), engine)
    assert engine.space.count > 10
    for answer in answers:
        assert len(set(answer.start.seeds)) == 10
    finished = particles.candidates.latents
    assert len(finished.unique(dim=0)) == 10


def wishes(search: Steering, scores: list[list[float]], steps: int = 10) -> list[Rollout]:
    """What it asks for, given these answers."""
    flow, answer = search.flow(ToySpace(steps=steps)), Answers()
    asked = [next(flow)]
    for row in scores:
        asked.append(flow.send(answer(asked[-1], row)))
    return asked


def test_checkpoints_begin_after_a_quarter_and_end_with_finished_images() -> None:
    flat = [[0.0, 0.0]] * 2
    asked = wishes(Steering(particles=2), flat)
    assert [(a.candidates.step, a.until, a.round, a.score) for a in asked] == [
        (0, 2, 1, True),
        (2, 7, 1, True),
        (7, 10, 1, True),
    ]
    assert [a.until for a in wishes(Steering(particles=2), [], steps=1)] == [1]


def test_heavy_particles_take_the_place_of_light_ones() -> None:
    [_, after] = wishes(Steering(particles=4, strength=50.0), [[0.0, 0.0, 9.0, 0.0]])
    assert after.candidates.parents == ((2,),) * 4
    assert len(set(after.candidates.seeds)) == 4


def test_one_without_a_score_is_neither_copied_nor_punished() -> None:
    """It goes on where nobody resamples, and is lost where the others do."""
    search = Steering(particles=4, normalise=False, strength=1.0, check_every=2)
    even = wishes(search, [[0.1, NAN, 0.0, 0.1]])[-1]
    assert even.candidates.parents == ((0,), (1,), (2,), (3,))
    uneven = wishes(search, [[0.1, NAN, 0.0, 0.1], [0.0, 90.0, NAN, 0.0]])[-1]
    assert uneven.candidates.parents == ((5,),) * 4


def test_an_unscored_particle_is_not_copied_however_heavy_it_was() -> None:
    """With its old weight it would be due 4 · 7.4 / 29.4 copies, so at least one."""
    search = Steering(particles=4, normalise=False, strength=1.0, ess_threshold=0.45)
    [_, kept, after] = wishes(search, [[2.0, 0.0, 0.0, 0.0], [NAN, 0.0, 3.0, 0.0]])
    assert kept.candidates.parents == ((0,), (1,), (2,), (3,))
    assert (4,) not in after.candidates.parents and (6,) in after.candidates.parents


@pytest.mark.parametrize(
    ("potential", "increments"),
    [("diff", [1, 2, 0, -1]), ("max", [1, 3, 0, 3]), ("sum", [1, 4, 0, 6])],
)
def test_potentials_as_the_paper_defines_them(potential, increments) -> None:  # type: ignore[no-untyped-def]
    """Scores 1, 3, none, 2 of a particle, beside one that always scores the unit's centre, 0."""
    search = Steering(particles=2, normalise=False, strength=1.0, potential=potential)
    answer, unit = Answers(), Unit(0.0)
    particles = Particles.fresh(ToySpace().draw(2))
    gained = []
    for score in (1.0, 3.0, NAN, 2.0):
        scored = answer(Rollout(particles.candidates, until=5), [0.0, score])
        particles = search._rewarded(particles, scored, unit)
        goal = search._goal(particles.reward, unit).where(scored.scores.isfinite(), torch.nan)
        before = particles.log_weights
        particles = particles.weighed(search._increment(particles, goal, 1.0))
        gained.append(particles.log_weights - before)
    assert torch.stack(gained).tolist() == [[0, float(i)] for i in increments]


def test_a_finished_particle_without_a_finite_score_has_no_weight() -> None:
    flow, answer = Steering(particles=3, strength=1.0).weighted(ToySpace(steps=1)), Answers()
    with pytest.raises(StopIteration) as end:
        flow.send(answer(next(flow), [0.0, NAN, math.inf]))
    assert end.value.value.log_weights.tolist() == [0, -math.inf, -math.inf]


def test_difference_potentials_forget_nothing_over_a_missing_score() -> None:
    """Its weight after a gap is what it would be without one: gains telescope."""
    search = Steering(particles=3, normalise=False, strength=1.0, check_every=2, ess_threshold=0.0)
    space = ToySpace()
    ends = []
    for gap in (NAN, 0.7):
        flow, answer = search.weighted(space), Answers()
        wish = next(flow)
        for row in ([0.0, 0.4, 0.2], [0.1, gap, 0.3], [0.2, 0.1, 0.3], [0.5, 0.6, 0.1]):
            wish = flow.send(answer(wish, row))
        with pytest.raises(StopIteration) as end:
            flow.send(answer(wish, [0.3, 0.9, 0.2]))
        ends.append(end.value.value.log_weights)
    assert torch.allclose(*ends)
    gains = ends[0] - ends[0][0]
    assert gains.tolist() == pytest.approx([0, 0.6, -0.1])  # differences of the final scores


def test_without_any_score_all_go_on() -> None:
    search = Steering(particles=3, check_every=2, tempering="adaptive")
    asked = wishes(search, [[NAN] * 3] * 4)
    seeds = {a.candidates.seeds for a in asked}
    assert len(seeds) == 1 and len(asked) == 5


def test_adaptive_tempering_keeps_the_effective_sample_size() -> None:
    """At a strength that would leave one particle, several survive the first checkpoint."""
    scores = [float(i) for i in range(16)]
    greedy = Steering(particles=16, strength=100.0)
    gentle = replace(greedy, tempering="adaptive")

    def ancestors(search: Steering) -> int:
        return len(set(wishes(search, [scores])[-1].candidates.parents))

    assert ancestors(greedy) == 1
    assert ancestors(gentle) >= 8  # the threshold is half of 16


def test_adaptive_tempering_takes_up_where_it_stopped() -> None:
    """The share grows to where the size meets the target again, counted from the last share."""
    search = Steering(particles=8, strength=10.0, normalise=False, tempering="adaptive")
    particles, share = Particles.fresh(ToySpace().draw(8)), 0.0
    goals = torch.arange(8, dtype=torch.float64) * 10
    for goal in (goals, goals + 0.1):
        before = share
        share = search._share(particles, goal, before, planned=NAN)
        assert before < share < 1
        particles = particles.weighed(search._increment(particles, goal, share))
        assert effective_sample_size(particles.log_weights) == pytest.approx(4, abs=1e-6)
        particles = replace(particles, log_weights=torch.zeros(8, dtype=torch.float64))


def test_linear_tempering_grows_evenly_to_the_whole() -> None:
    search = Steering(particles=2, tempering="linear")
    particles = Particles.fresh(ToySpace().draw(2))
    shares = [search._share(particles, torch.zeros(2), 0.0, k / 4) for k in (1, 2, 3)]
    assert all(b - a == 0.25 for a, b in pairwise([0.0, *shares, 1.0]))


@pytest.mark.parametrize(("nfe", "particles"), [(7, 1), (10, 1), (57, 5), (1003, 100)])
def test_a_budget_decides_over_the_particles(nfe: int, particles: int) -> None:
    assert Steering().sized(10, nfe).particles == particles


def test_it_finds_better_images_than_as_many_plain_samples() -> None:
    def best(strength: float, seed: int) -> float:
        engine = ToyEngine(ToySpace(steps=20, seed=seed), stochastic=True)
        _, answers = played(Steering(particles=4, strength=strength), engine)
        return answers[-1].best

    steered, plain = ([best(s, seed) for seed in range(30)] for s in (4.0, 0.0))
    assert sum(steered) > 0.8 * sum(plain)  # scores are minus a distance: a fifth nearer


@pytest.mark.parametrize(
    "options",
    [
        {"particles": 0},
        {"check_every": 0},
        {"check_from": 1.2},
        {"ess_threshold": -0.1},
        {"strength": -1.0},
        {"strength": NAN},
        {"strength": float("inf")},
    ],
)
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Steering(**options)  # type: ignore[arg-type]
