"""Evolution over whole noises: separable CMA-ES and cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from cmaes import SepCMA
from torch import Tensor

from search.core import Rollout
from search.methods.evolution import Evolution
from search.methods.random import Random
from tests.test_search_methods import Answers
from tests.test_ses import SHAPE, Spatial, found
from tests.toy import ToySpace

BOTH = pytest.mark.parametrize("algorithm", ["cma-es", "cross-entropy"])


def generations(search: Evolution, n: int, score, dim: int = 2) -> list[Rollout]:  # type: ignore[no-untyped-def]
    """The wishes of the first n generations."""
    flow, answer, wishes = search.flow(ToySpace(dim=dim)), Answers(), []
    wish = next(flow)
    for _ in range(n):
        wishes.append(wish)
        wish = flow.send(answer(wish, score(wish.candidates.latents).tolist()))
    return wishes


def first_coordinate(latents: Tensor) -> Tensor:
    return latents[:, 0]


@BOTH
def test_the_first_generation_is_random_searchs_to_the_bit(algorithm: str) -> None:
    first = next(Evolution(algorithm, population=2).flow(Spatial())).candidates
    random = next(Random().flow(Spatial())).candidates
    assert torch.equal(first.latents, random.latents)
    assert first.seeds == random.seeds


@BOTH
def test_later_noises_lie_on_the_shell_and_generations_are_rounds(algorithm: str) -> None:
    wishes = generations(Evolution(algorithm), 5, first_coordinate, dim=24)
    assert [(w.round, len(w.candidates)) for w in wishes] == [(i, 8) for i in range(1, 6)]
    norms = torch.cat([w.candidates.latents for w in wishes[1:]]).norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, 24**0.5))


def linear(x: Tensor) -> Tensor:
    """Standard normal over random noises: the score in deviations."""
    direction = torch.arange(1.0, math.prod(SHAPE) + 1).double().sin()
    return x.flatten(1) @ direction / direction.norm()


def quadratic(x: Tensor) -> Tensor:
    """Minus the squared distance to a point of the shell, as far from the centre as a noise is."""
    target = torch.arange(1.0, math.prod(SHAPE) + 1).double().sin()
    target = target / target.norm() * math.prod(SHAPE) ** 0.5
    return -(x.flatten(1) - target).square().sum(1) / math.prod(SHAPE)


@BOTH
def test_a_linear_score_in_many_dimensions_rises_far_above_random_search(algorithm: str) -> None:
    """768 dimensions, 50 images: the best of 50 draws is 2.25 deviations out, whatever the number
    of dimensions, while generations add up."""
    drawn = [found(Random(), s, 50, linear) for s in range(10)]
    evolved = [found(Evolution(algorithm), s, 50, linear) for s in range(10)]
    assert sum(drawn) / 10 == pytest.approx(2.25, abs=0.4)  # its standard error is 0.15
    assert sum(evolved) > 1.4 * sum(drawn)


@BOTH
def test_a_quadratic_score_comes_nearer_its_optimum_than_by_random_search(algorithm: str) -> None:
    for seed in range(5):
        random = found(Random(), seed, 400, quadratic)
        assert found(Evolution(algorithm), seed, 400, quadratic) > 0.8 * random


@BOTH
def test_two_dimensions_are_solved(algorithm: str) -> None:
    """To within what the floor under cross-entropy's variances leaves of noise."""
    wishes = generations(Evolution(algorithm), 40, first_coordinate)
    last = wishes[-1].candidates.latents
    assert float(last[:, 0].max()) == pytest.approx(2**0.5, abs=0.01)


def test_cma_es_is_told_what_it_was_asked_for() -> None:
    """Stepped beside the library alone, on the score of the shell."""
    search = Evolution(population=6)
    space = ToySpace(dim=5)
    seed = int(torch.randint(2**31, (), generator=ToySpace(dim=5).rng))
    alone = SepCMA(torch.zeros(5).double().numpy(), sigma=1.0, seed=seed, population_size=6)
    flow, answer = search.flow(space), Answers()
    wish = next(flow)
    asked = [row.numpy() for row in wish.candidates.latents]
    for _ in range(4):
        scores = wish.candidates.latents[:, 0].tolist()
        wish = flow.send(answer(wish, scores))
        alone.tell([(x, -s) for x, s in zip(asked, scores, strict=True)])
        asked = [alone.ask() for _ in range(6)]
        shell = torch.stack([torch.tensor(x / (x @ x) ** 0.5 * 5**0.5) for x in asked])
        assert torch.allclose(wish.candidates.latents, shell)


def test_cross_entropy_draws_about_the_best_of_all_generations() -> None:
    """The second generation scores worse than the first, so its noises are drawn about that."""
    flow, answer = Evolution("cross-entropy", 3000, elite_share=0.001).flow(Spatial()), Answers()
    first = next(flow)
    second = flow.send(answer(first, [float(-i) for i in range(3000)]))
    third = flow.send(answer(second, [-4000.0] * 3000))
    assert second.rivals == third.rivals == (0, 1, 2)
    centre = first.candidates.latents[:3].mean(0)
    cosine = torch.cosine_similarity(third.candidates.latents.mean(0), centre, dim=0)
    assert float(cosine) > 0.98


@BOTH
def test_children_name_the_better_half_and_never_an_unscored_one(algorithm: str) -> None:
    scores = torch.tensor([0.1, float("nan"), 0.9, 0.3, float("nan"), 0.2, 0.0, 0.8])
    _, second = generations(Evolution(algorithm), 2, lambda latents: scores)
    assert set(second.candidates.parents) == {(2, 7, 3, 5)}
    few = torch.full((8,), float("nan"))
    few[5], few[2] = 1.0, 2.0
    _, second = generations(Evolution(algorithm), 2, lambda latents: few)
    assert set(second.candidates.parents) == {(2, 5)}


@BOTH
def test_a_generation_without_scores_teaches_nothing(algorithm: str) -> None:
    """The next is drawn from the same distribution: mean 0 over many dimensions."""
    _, _, third = generations(
        Evolution(algorithm), 3, lambda latents: torch.full((8,), float("nan")), dim=5000
    )
    latents = third.candidates.latents
    assert set(third.candidates.parents) == {()}
    cosines = torch.nn.functional.normalize(latents, dim=1)
    cosines = (cosines @ cosines.T).fill_diagonal_(0)
    assert float(cosines.abs().max()) < 0.08  # 5.7 standard errors of 1 / sqrt(5000)


def test_in_cma_es_an_unscored_noise_pulls_nowhere() -> None:
    """With one score of eight the mean moves towards that noise alone."""
    scores = torch.full((8,), float("nan"))
    scores[3] = 1.0
    first, second = generations(Evolution(), 2, lambda latents: scores, dim=5000)
    mean = second.candidates.latents.mean(0)
    cosines = torch.cosine_similarity(first.candidates.latents, mean[None])
    assert cosines.argmax() == 3
    assert float(cosines[3]) > 0.5
    assert float(cosines.where(scores.isnan(), 0).abs().max()) < 0.08


@BOTH
@pytest.mark.parametrize(("nfe", "population"), [(10, 2), (90, 3), (239, 7), (10**6, 8)])
def test_a_small_budget_shrinks_the_population(algorithm: str, nfe: int, population: int) -> None:
    sized = Evolution(algorithm, smoothing=0.2).sized(10, nfe)
    assert sized == Evolution(algorithm, population=population, smoothing=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"population": 1},
        {"elite_share": 0.0},
        {"elite_share": 1.1},
        {"smoothing": 1.0},
        {"least_variance": 0.0},
    ],
)
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Evolution(**options)  # type: ignore[arg-type]
