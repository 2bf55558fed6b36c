"""Where searches move: plain diffusers' noise, keyed seeds, exact shells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, IPNDMScheduler

from pipelines.batching import ladder, spans
from pipelines.denoiser import Denoiser
from pipelines.sde import unit_noise
from pipelines.space import LatentSpace
from search.core import Candidates
from tests.families import FAMILIES, PROMPT
from utils import UserError

NAMES = ["sd15", "sdxl", "flux", "klein", "qwen_image", "z_image", "ltx", "wan", "dit"]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def built(name: str, **options: Any) -> Denoiser:
    return Denoiser(FAMILIES[name].build(**options), FAMILIES[name].call_args)


@pytest.fixture(scope="module", params=NAMES)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return built(request.param)


def raw(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The Gaussian that plain diffusers draws for a seed, before any packing."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=dtype)


def test_the_spatial_view_of_a_draw_is_the_raw_gaussian(denoiser: Denoiser) -> None:
    space = LatentSpace(denoiser, PROMPT)
    drawn = space.draw(3)
    view = space.spatial(drawn.latents)
    assert view.ndim in (4, 5)
    for seed, unit in zip(drawn.seeds, view, strict=True):
        assert torch.allclose(unit, raw(seed, unit.shape)[0], atol=1e-6)
    assert torch.allclose(space.from_spatial(view), drawn.latents.float(), atol=1e-5)


def test_twins_draw_the_same_noise_once() -> None:
    space, alone = (LatentSpace(built("flux"), PROMPT, batch_size=2) for _ in range(2))
    twin = space.twin()
    ahead = [twin.draw(3), twin.draw(2)]
    made = [space.draw(3), space.draw(2)]
    assert not space._twins  # all that was kept has been used
    for first, second, expected in zip(ahead, made, [alone.draw(3), alone.draw(2)], strict=True):
        assert first.seeds == second.seeds == expected.seeds
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.latents, expected.latents)
    assert torch.equal(space.draw(2).latents, alone.draw(2).latents)


def test_neighbours_lie_on_their_pivots_shell(denoiser: Denoiser) -> None:
    space = LatentSpace(denoiser, PROMPT)
    pivots = space.draw(2)
    near = space.perturb(pivots, 3, 0.9)
    assert len(near) == 6 and near.step == 0
    centres = pivots.latents.repeat_interleave(3, 0).flatten(1)
    found = near.latents.flatten(1)
    cosine = torch.cosine_similarity(found, centres)
    assert torch.allclose(cosine, torch.full((6,), 0.9), atol=1e-5)
    assert torch.allclose(found.norm(dim=1), centres.norm(dim=1), rtol=1e-5)
    assert [space.recipes[s]["of"] for s in near.seeds] == [
        pivots.seeds[i] for i in (0, 0, 0, 1, 1, 1)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen_image", "ltx"])
def test_the_layout_is_learned_in_half_precision_too(name: str, dtype: torch.dtype) -> None:
    """SDXL's Euler multiplies its noise by 6 here, which coarse formats must survive."""
    denoiser = Denoiser(FAMILIES[name].build().to(dtype), FAMILIES[name].call_args)
    layout = denoiser.layout(PROMPT)
    whole = built(name).layout(PROMPT)
    assert torch.equal(layout.index, whole.index)
    assert layout.shape == whole.shape
    assert layout.scale == pytest.approx(whole.scale, rel=torch.finfo(dtype).eps)
    space = LatentSpace(denoiser, PROMPT)
    drawn = space.draw(2)
    # Latents are rounded once when drawn and once when scaled; LTX draws its noise in float32.
    assert drawn.latents.dtype == (torch.float32 if name == "ltx" else dtype)
    for seed, unit in zip(drawn.seeds, space.spatial(drawn.latents), strict=True):
        expected = raw(seed, unit.shape, drawn.latents.dtype)[0].float()
        assert torch.allclose(unit, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_scaled_draw_has_unit_variance_in_the_spatial_view() -> None:
    denoiser = built("sd15", scheduler=EulerDiscreteScheduler(**SD))
    space = LatentSpace(denoiser, PROMPT)
    drawn = space.draw(4)
    assert float(drawn.latents.std()) > 10
    assert float(space.spatial(drawn.latents).std()) == pytest.approx(1, abs=0.1)


def test_image_to_image_has_no_spatial_view_and_starts_late() -> None:
    space = LatentSpace(built("sd15_img2img"), PROMPT)
    drawn = space.draw(2)
    assert 0 < drawn.step < space.steps
    with pytest.raises(UserError, match="starts from an image"):
        space.spatial(drawn.latents)


def test_drawing_asks_for_no_way_back_to_noise() -> None:
    """iPNDM has none, and best of N needs none."""
    space = LatentSpace(built("sd15", scheduler=IPNDMScheduler()), PROMPT)
    drawn = space.draw(2)
    assert space.steps == 6
    with pytest.raises(UserError, match="no forward process"):
        space.renoise(Candidates(drawn.latents, 6, drawn.seeds), to=3)


@pytest.fixture(scope="module")
def sd15() -> Denoiser:
    return built("sd15")


def test_seeds_depend_on_run_prompt_and_occurrence_alone(sd15: Denoiser) -> None:
    def seeds(*args: Any, n: int = 5) -> tuple[int, ...]:
        return LatentSpace(sd15, *args).draw(n).seeds

    assert seeds(PROMPT) == seeds(PROMPT)
    assert seeds(PROMPT, 0, 0, n=3) == seeds(PROMPT)[:3]
    kinds = [seeds(PROMPT), seeds("other"), seeds(PROMPT, 1), seeds(PROMPT, 0, 1)]
    assert len({s for kind in kinds for s in kind}) == 20


def test_draws_do_not_depend_on_how_they_are_asked_for(sd15: Denoiser) -> None:
    whole = LatentSpace(sd15, PROMPT, batch_size=8).draw(5)
    other = LatentSpace(sd15, PROMPT, batch_size=2)
    parts = [other.draw(2), other.draw(3)]
    assert torch.equal(whole.latents, torch.cat([p.latents for p in parts]))
    assert whole.seeds == parts[0].seeds + parts[1].seeds


def test_every_seed_has_a_recipe_that_names_what_it_was_made_of(sd15: Denoiser) -> None:
    space = LatentSpace(sd15, PROMPT)
    drawn = space.draw(1)
    near = space.perturb(drawn, 2, 0.5)
    back = space.renoise(Candidates(drawn.latents, 6, drawn.seeds), to=4)
    fork = space.fork(back, [0])
    (first,), (second, third) = drawn.seeds, near.seeds
    assert space.recipes == {
        first: {"op": "draw", "index": 0},
        second: {"op": "perturb", "of": first, "at": 0, "cosine": 0.5, "index": 1},
        third: {"op": "perturb", "of": first, "at": 0, "cosine": 0.5, "index": 2},
        back.seeds[0]: {"op": "renoise", "of": first, "at": 6, "to": 4, "index": 3},
        fork.seeds[0]: {"op": "fork", "of": back.seeds[0], "at": 4, "index": 4},
    }


def test_neighbours_carry_their_pivots_parents_and_move_by_their_seeds_alone(
    sd15: Denoiser,
) -> None:
    space = LatentSpace(sd15, PROMPT)
    pivots = space.draw(2)
    for step in (0, 3):
        at = Candidates(pivots.latents, step, pivots.seeds, parents=((7,), (8, 9)))
        near = space.perturb(at, 2, 0.9)
        assert near.step == step
        assert near.parents == ((7,), (7,), (8, 9), (8, 9))
        assert len({*near.seeds}) == 4
        assert not torch.equal(near.latents[0], near.latents[1])
    again = LatentSpace(sd15, PROMPT)
    pool = again.draw(2)
    near, later = space.perturb(pivots, 1, 0.9), again.perturb(pool, 5, 0.9)
    # Both spaces' twelfth seed moves the second pivot.
    assert near.seeds[1] == later.seeds[9]
    assert torch.equal(near.latents[1], later.latents[9])


def test_forks_part_by_their_seeds_alone() -> None:
    """Under a stochastic scheduler copies of one point go different ways, each again the same."""
    family = FAMILIES["sd15"]
    denoiser = Denoiser(family.build(), {**family.call_args, "eta": 1.0})
    space = LatentSpace(denoiser, PROMPT)
    drawn = space.draw(1)
    half = denoiser.denoise(PROMPT, drawn.latents, drawn.seeds, 0, 3)
    forks = space.fork(Candidates(half.latents, 3, drawn.seeds), [0, 0])
    assert torch.equal(forks.latents[0], forks.latents[1])
    ends = [denoiser.denoise(PROMPT, forks.latents, forks.seeds, 3, 6).latents for _ in range(2)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0][0], ends[0][1])


def test_seeds_that_meet_by_chance_are_passed_over(
    sd15: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(*key: Any) -> int:
        return 0 if key[-1] == "rng" else key[-1] // 2

    monkeypatch.setattr("pipelines.space.seed_of", halved)
    drawn = LatentSpace(sd15, PROMPT).draw(4)
    assert drawn.seeds == (0, 1, 2, 3)


def test_renoised_and_forked_candidates_have_seeds_of_their_own(sd15: Denoiser) -> None:
    space = LatentSpace(sd15, PROMPT)
    drawn = space.draw(2)
    half = sd15.denoise(PROMPT, drawn.latents, drawn.seeds, 0, 4)
    at = type(drawn)(half.latents, 4, drawn.seeds, parents=((7,), (8,)))
    back = space.renoise(at, to=2)
    forks = space.fork(at, torch.tensor([1, 1, 0]))
    assert (back.step, forks.step) == (2, 4)
    assert len({*drawn.seeds, *back.seeds, *forks.seeds}) == 7
    assert (back.parents, forks.parents) == (((7,), (8,)), ((8,), (8,), (7,)))
    assert torch.equal(forks.latents, at.latents[[1, 1, 0]])
    assert space.recipes[back.seeds[0]] == {
        "op": "renoise",
        "of": drawn.seeds[0],
        "at": 4,
        "to": 2,
        "index": 2,
    }
    noise = unit_noise(back.seeds, at.latents)
    levels = sd15.schedule(PROMPT)
    keep = levels[2].signal / levels[4].signal
    fill = (levels[2].noise ** 2 - (keep * levels[4].noise) ** 2) ** 0.5
    assert torch.allclose(back.latents, keep * at.latents + fill * noise, atol=1e-5)


def test_later_points_are_stirred_in_proportion_to_their_noise(sd15: Denoiser) -> None:
    space = LatentSpace(sd15, PROMPT)
    drawn = space.draw(1)
    half = sd15.denoise(PROMPT, drawn.latents, drawn.seeds, 0, 3)
    at = type(drawn)(half.latents, 3, drawn.seeds)
    near = space.perturb(at, 8, 0.9)
    moved = (near.latents - at.latents).flatten(1).square().mean(1).sqrt()
    level = sd15.schedule(PROMPT)[3].noise
    # unit noise has length sqrt(d); a chord at cosine c is sqrt(2 - 2c) of it
    assert torch.allclose(moved, torch.full((8,), level * 0.2**0.5), rtol=0.2)


def test_the_step_below_a_share_of_noise(sd15: Denoiser) -> None:
    space = LatentSpace(sd15, PROMPT)
    shares = [level.noise / (level.noise + level.signal) for level in sd15.schedule(PROMPT)]
    at = space.step_below(0.5)
    assert shares[at] < 0.5 <= shares[at - 1]
    assert space.step_below(0.0) == space.steps - 1
    assert space.step_below(1.0) == 1


@pytest.mark.parametrize("top", [1, 2, 6, 8, 16])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 30, 64, 100])
def test_batches_cover_all_in_order_with_sizes_from_the_ladder(n: int, top: int) -> None:
    found = spans(n, top)
    assert [i for a, b in found for i in range(a, b)] == list(range(n))
    sizes = [b - a for a, b in found]
    assert set(sizes) <= set(ladder(top)) and sizes == sorted(sizes, reverse=True)


def test_thirty_at_eight() -> None:
    assert [b - a for a, b in spans(30, 8)] == [8, 8, 8, 4, 2]
    assert ladder(6) == [6, 4, 2, 1]
