"""Every tiny pipeline runs, repeats exactly, and keeps its candidates apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from tests.families import FAMILIES, Family

Built = tuple[Family, DiffusionPipeline, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, much slower when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(FAMILIES))
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    """A family, its pipeline, and the pixels of candidates with seeds 0 and 1."""
    family = FAMILIES[request.param]
    pipe = family.build()
    yield family, pipe, family.pixels(pipe, **family.inputs([0, 1]))


def test_two_candidates_come_out_finite(built: Built) -> None:
    family, _, pixels = built
    assert pixels.shape[0] == 2
    assert pixels.ndim == (5 if family.video else 4)
    assert np.isfinite(pixels).all()


def test_same_seeds_give_the_same_bits(built: Built) -> None:
    family, pipe, pixels = built
    again = family.pixels(pipe, **family.inputs([0, 1]))
    np.testing.assert_array_equal(again, pixels)


def test_different_seeds_differ_clearly(built: Built) -> None:
    _, _, pixels = built
    assert np.abs(pixels[0] - pixels[1]).mean() > 0.02


def test_a_candidate_does_not_depend_on_the_next_one(built: Built) -> None:
    family, pipe, pixels = built
    others = family.pixels(pipe, **family.inputs([0, 9]))
    np.testing.assert_array_equal(others[0], pixels[0])
    assert (others[1] != pixels[1]).any()


def test_the_prompt_matters(built: Built) -> None:
    family, pipe, pixels = built
    inputs = family.inputs([0, 1], "two blue squares")
    if not family.prompted:
        inputs["class_labels"] = [3, 3]
    assert np.abs(family.pixels(pipe, **inputs) - pixels).mean() > 1e-3


@pytest.mark.parametrize("count", [1, 4])
def test_other_batch_sizes_agree_up_to_rounding(built: Built, count: int) -> None:
    family, pipe, pixels = built
    shared = min(count, 2)
    others = family.pixels(pipe, **family.inputs(range(count)))
    np.testing.assert_allclose(others[:shared], pixels[:shared], atol=1e-3)


@pytest.mark.parametrize("short", ["sd15", "klein"])
def test_a_build_repeats_and_leaves_the_random_state_alone(short: str) -> None:
    before = torch.get_rng_state()
    one, two = (FAMILIES[short].build() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, component in one.components.items():
        if isinstance(component, torch.nn.Module):
            for left, right in zip(
                component.state_dict().values(),
                two.components[name].state_dict().values(),
                strict=True,
            ):
                assert torch.equal(left, right)
