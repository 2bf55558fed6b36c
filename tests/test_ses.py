"""Spectral evolution search: its low band, and what it finds there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipelines.denoiser import Denoiser
from pipelines.space import LatentSpace
from search.core import Candidates, Rollout, Scored, Space
from search.cross_entropy import Elites, Gaussian
from search.haar import block_grid, low_band, with_low_band
from search.ledger import Budget, Cost, Ledger
from search.methods.random import Random
from search.methods.ses import Ses
from search.play import play
from tests.families import FAMILIES, PROMPT
from tests.test_search_methods import Answers
from tests.toy import ToySpace

SHAPE = (3, 16, 16)
GRID = (4, 4)  # level 2


class Spatial(ToySpace):
    """Noises of this shape, in the spatial view a plain reshape."""

    shape: tuple[int, ...] = SHAPE

    def __init__(self, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__(steps=10, seed=seed, dim=math.prod(shape))
        self.shape = shape

    def spatial(self, latents: Tensor) -> Tensor:
        return latents.reshape(len(latents), *self.shape)

    def from_spatial(self, unit: Tensor) -> Tensor:
        return unit.reshape(len(unit), -1)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def haar_sums(x: Tensor) -> Tensor:
    """One level of the two-dimensional Haar transform's low band, by its definition."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_low_band_is_repeated_haar_sums(level: int) -> None:
    x = noise(2, 3, 16, 32)
    expected = x
    for _ in range(level):
        expected = haar_sums(expected)
    assert torch.allclose(low_band(x, block_grid(x.shape, level)), expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (13, 9), (90, 160), (5, 4), (1, 2)])
@pytest.mark.parametrize("level", [0, 1, 2, 4])
def test_bands_are_orthogonal_and_replacing_one_inverts_exactly(
    size: tuple[int, int], level: int
) -> None:
    x = noise(2, 3, *size)
    low = low_band(x, block_grid(x.shape, level))
    high = with_low_band(x, torch.zeros_like(low))
    assert torch.allclose(with_low_band(high, low), x)
    assert torch.allclose(low_band(high, low.shape[-2:]), torch.zeros_like(low), atol=1e-12)
    energy = low.square().sum() + high.square().sum()
    assert torch.allclose(energy, x.square().sum())
    other = torch.randn_like(low)
    assert torch.allclose(low_band(with_low_band(x, other), low.shape[-2:]), other)


def test_unit_noise_has_a_low_band_of_unit_noise_at_odd_sizes_too() -> None:
    low = low_band(noise(4000, 13, 9), (4, 3))
    assert torch.allclose(low.var(0), torch.ones(4, 3, dtype=torch.float64), atol=0.1)


def test_videos_have_a_low_band_in_each_frame() -> None:
    x = noise(2, 3, 5, 16, 16)
    assert torch.allclose(low_band(x, GRID)[:, :, 3], low_band(x[:, :, 3], GRID))


@pytest.mark.parametrize(
    ("size", "level", "grid"),
    [
        ((64, 64), 4, (4, 4)),  # the paper's
        ((128, 128), 4, (8, 8)),
        ((16, 16), 4, (4, 4)),
        ((60, 104), 4, (4, 7)),
        ((64, 64), 1, (32, 32)),
        ((7, 20), 4, (4, 10)),
        ((1, 2), 4, (1, 2)),
    ],
)
def test_the_level_falls_to_what_the_size_allows(
    size: tuple[int, int], level: int, grid: tuple[int, int]
) -> None:
    assert block_grid(torch.Size([1, 4, *size]), level) == grid


def generations(search: Ses, space: Space, n: int, score=None) -> list[Rollout]:  # type: ignore[no-untyped-def]
    """The wishes of the first n generations; a score is the first coordinate unless told."""
    score = score or (lambda latents: latents[:, 0])
    flow, answer, wishes = search.flow(space), Answers(), []
    wish = next(flow)
    for _ in range(n):
        wishes.append(wish)
        wish = flow.send(answer(wish, score(wish.candidates.latents).tolist()))
    return wishes


def test_the_base_noise_is_scored_first_and_only_once() -> None:
    wishes = generations(Ses(popsize=4, k_elites=2), Spatial(), 3)
    assert [(len(w.candidates), w.round) for w in wishes] == [(4, 1), (4, 2), (4, 3)]
    base = Spatial().draw(1)
    assert torch.equal(wishes[0].candidates.latents[:1], base.latents)
    assert wishes[0].candidates.seeds[:1] == base.seeds
    later = torch.cat(
        [wishes[0].candidates.latents[1:], *(w.candidates.latents for w in wishes[1:])]
    )
    assert not (later == base.latents).all(1).any()


@pytest.mark.parametrize("shape", [SHAPE, (2, 13, 9), (2, 3, 8, 8), (1, 1, 2)])
def test_every_candidate_keeps_the_base_noises_norm_and_high_band(shape: tuple[int, ...]) -> None:
    space = Spatial(shape=shape)
    wishes = generations(Ses(), space, 6)
    points = space.spatial(torch.cat([w.candidates.latents for w in wishes]))
    norms = points.flatten(1).norm(dim=1)
    assert torch.allclose(norms, norms[0].expand_as(norms))
    grid = block_grid(points.shape, Ses().dwt_level)
    low = low_band(points, grid)
    high = with_low_band(points, torch.zeros_like(low))
    assert torch.allclose(high, high[:1].expand_as(high))
    assert (low[1:] - low[0]).flatten(1).norm(dim=1).min() > 0


def test_the_next_generation_lies_about_the_elites() -> None:
    """Its statistics are those of Gaussian points about the elites, each brought to the shell."""
    wishes = generations(Ses(popsize=4000, k_elites=5), Spatial(), 3)
    low = [low_band(Spatial().spatial(w.candidates.latents), GRID) for w in wishes]
    seen = torch.cat([w.candidates.latents[:, 0] for w in wishes[:2]])
    best = seen.argsort(descending=True, stable=True)[:5]
    elites = torch.cat(low[:2])[best]
    points = elites.mean(0) + elites.std(0) * noise(4000, 3, *GRID)
    points = points / points.flatten(1).norm(dim=1)[:, None, None, None] * low[0][0].norm()
    # 4000 points: five standard errors of a mean are 0.08 deviations, of a variance 11 %.
    assert torch.allclose(low[2].mean(0), points.mean(0), atol=0.15)
    assert torch.allclose(low[2].var(0), points.var(0), rtol=0.16)
    assert wishes[2].rivals == wishes[2].candidates.parents[0] == tuple(best.tolist())


def test_elites_are_kept_by_their_scores_of_today() -> None:
    """A verifier that ranks within a pool changes old scores when new candidates come."""
    points = torch.arange(4.0, dtype=torch.float64)[:, None]

    def scored(ids: tuple[int, ...], scores: list[float], rivals: list[float]) -> Scored:
        at = Candidates(torch.zeros(len(ids), 1), 0, ids)
        return Scored(at, at, torch.tensor(scores).double(), ids, torch.tensor(rivals).double())

    elites = Elites.none([1]).joined(points[:2], scored((0, 1), [0.9, 0.8], []), 2)
    assert elites.ids == (0, 1)
    elites = elites.joined(points[2:], scored((2, 3), [0.5, float("nan")], [0.1, 0.7]), 2)
    assert elites.ids == (1, 2)
    assert elites.points.flatten().tolist() == [1.0, 2.0]


def test_a_refit_keeps_the_smoothed_share_and_the_floor() -> None:
    points = noise(5, 3)
    old = Gaussian(noise(2, 3)[1], noise(3, 3)[2].square())
    new = old.fitted(points, smoothing=0.3, floor=0.0)
    assert torch.allclose(new.mean, 0.7 * points.mean(0) + 0.3 * old.mean)
    assert torch.allclose(new.variance, 0.7 * points.var(0) + 0.3 * old.variance)
    assert bool((old.fitted(points, smoothing=0.0, floor=9.0).variance == 9).all())
    assert old.fitted(points[:1], smoothing=0.0, floor=0.0) is old


def found(search, seed: int, images: int, score) -> float:  # type: ignore[no-untyped-def]
    """The best score that a search finds with this many images."""
    space = Spatial(seed)
    log: list[float] = []

    def evaluate(wish: Rollout) -> tuple[Scored, Cost]:
        scores = score(space.spatial(wish.candidates.latents))
        ids = tuple(range(len(log), len(log) + len(scores)))
        log.extend(scores.tolist())
        rivals = torch.tensor([log[i] for i in wish.rivals]).double()
        done = replace(wish.candidates, step=wish.until)
        return Scored(wish.candidates, done, scores, ids, rivals), Cost(nfe=10 * len(ids))

    for _ in play(search, space, evaluate, Ledger(Budget(nfe=10 * images))):
        pass
    assert len(log) == images
    return max(log)


HIDDEN = torch.linspace(-2, 3, 48, dtype=torch.float64).sin()[None]  # no search draws it


def planted(x: Tensor) -> Tensor:
    """The cosine of the low band, 48 dimensions, to a hidden one."""
    return torch.cosine_similarity(low_band(x, GRID).flatten(1), HIDDEN)


def test_a_planted_low_frequency_optimum_is_found_far_better_than_by_random_search() -> None:
    """Of 50 images random search comes to 2.25 / sqrt(48) = 0.32; a generation moves the mean by
    about half of that."""
    drawn = [found(Random(), s, 50, planted) for s in range(10)]
    searched = [found(Ses(), s, 50, planted) for s in range(10)]
    assert sum(drawn) / 10 == pytest.approx(2.25 / 48**0.5, abs=0.05)
    assert sum(searched) > 1.4 * sum(drawn)
    assert all(s > d for s, d in zip(searched, drawn, strict=True))


def test_a_planted_low_frequency_optimum_is_recovered() -> None:
    """The original's five elites of ten and no smoothing lose their variance on the way there."""
    slow = Ses(popsize=30, k_elites=10, smoothing=0.5)
    assert min(found(slow, s, 2000, planted) for s in range(3)) > 0.99
    assert 0.6 < max(found(Ses(), s, 2000, planted) for s in range(3)) < 0.9


def test_the_high_bands_part_of_a_score_is_left_as_it_is() -> None:
    """What the search cannot move it cannot gain: the reason why details come from the base."""
    hidden = noise(1, *SHAPE)
    high = with_low_band(hidden, torch.zeros(1, 3, *GRID, dtype=torch.float64)).flatten(1)

    def score(x: Tensor) -> Tensor:
        return x.flatten(1) @ high[0] / high.norm()

    base = float(score(Spatial(3).spatial(Spatial(3).draw(1).latents)))
    assert found(Ses(), 3, 40, score) == pytest.approx(base)


@pytest.mark.parametrize(
    ("nfe", "popsize", "k_elites"),
    [(10, 2, 2), (90, 3, 2), (180, 6, 3), (299, 9, 4), (300, 10, 5), (10**6, 10, 5)],
)
def test_a_small_budget_shrinks_the_generation(nfe: int, popsize: int, k_elites: int) -> None:
    sized = Ses(dwt_level=3).sized(10, nfe)
    assert sized == Ses(popsize=popsize, k_elites=k_elites, dwt_level=3)


@pytest.mark.parametrize(
    "options",
    [{"k_elites": 1}, {"k_elites": 11}, {"dwt_level": -1}, {"smoothing": 1.0}, {"smoothing": -0.1}],
)
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Ses(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["flux", "sd15", "wan"])
def test_noises_survive_a_pipelines_packing(name: str, dtype: torch.dtype) -> None:
    """Within rounding: bf16 keeps 8 bits of every value."""
    family = FAMILIES[name]
    space = LatentSpace(Denoiser(family.build().to(dtype), family.call_args), PROMPT)
    first, second = generations(Ses(popsize=4, k_elites=2), space, 2, lambda x: x.flatten(1)[:, 0])
    base = first.candidates.select([0])
    assert second.candidates.latents.dtype == base.latents.dtype
    assert second.candidates.step == 0
    unit = space.spatial(torch.cat([base.latents, second.candidates.latents])).double()
    norms = unit.flatten(1).norm(dim=1)
    assert torch.allclose(norms, norms[:1].expand(5), rtol=1e-6 if dtype == torch.float32 else 1e-2)
    low = low_band(unit, block_grid(unit.shape, 4))
    high = with_low_band(unit, torch.zeros_like(low))
    assert torch.allclose(
        high, high[:1].expand_as(high), atol=1e-5 if dtype == torch.float32 else 0.03
    )
    recipes = [space.recipes[s] for s in first.candidates.seeds + second.candidates.seeds]
    assert [recipe["op"] for recipe in recipes] == ["draw"] + ["place"] * 7
