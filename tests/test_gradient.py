"""The gradient of a score with respect to the latents: finite differences agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.denoiser import Denoiser
from pipelines.gradient import climbed
from pipelines.parts import denoisers
from pipelines.sde import Sde
from tests.families import FAMILIES
from utils import UserError

PROMPT = "a photo"
VIDEO = {"ltx", "wan"}
IMAGES = [name for name in FAMILIES if name not in VIDEO]


def brightness(pixels: Tensor) -> Tensor:
    """Weighted, so that no two pixels count alike; [n] of [n, 3, H, W]."""
    weights = torch.linspace(-1, 1, pixels[0].numel(), dtype=pixels.dtype).reshape(pixels[0].shape)
    return (pixels * weights).flatten(1).sum(1)


def denoiser_of(family: str) -> Denoiser:
    made = FAMILIES[family]
    return Denoiser(made.build(), {**made.call_args, "num_inference_steps": 3})


@pytest.mark.parametrize("sde", [None, Sde()], ids=["ode", "sde"])
@pytest.mark.parametrize("family", IMAGES)
def test_it_agrees_with_finite_differences(family: str, sde: Sde | None) -> None:
    denoiser = denoiser_of(family)
    seeds = [3, 4]
    drawn = denoiser.draw(PROMPT, seeds)
    x, steps = drawn.latents, denoiser.steps(PROMPT)

    def score(latents: Tensor) -> Tensor:
        done = denoiser.denoise(PROMPT, latents, seeds, drawn.step, steps, sde=sde)
        with torch.no_grad():
            return brightness(denoiser.pixels(PROMPT, done.latents, seeds, steps).double())

    found = climbed(denoiser, brightness, PROMPT, x, seeds, drawn.step, steps, steps, sde=sde)
    plain = denoiser.denoise(PROMPT, x, seeds, drawn.step, steps, sde=sde)
    assert torch.equal(found.denoised.latents, plain.latents)
    direction = found.gradient / found.gradient.flatten(1).norm(dim=1).reshape(
        -1, *[1] * (x.dim() - 1)
    )
    expected = (found.gradient * direction).flatten(1).sum(1).double()
    # Sana's ReLUs have kinks, which a wide step may straddle and a narrow one drowns in rounding.
    slopes = [(score(x + h * direction) - score(x - h * direction)) / (2 * h) for h in (0.01, 1e-3)]
    assert (torch.stack(slopes) / expected - 1).abs().min(0).values.max() < 0.02


def test_each_step_is_taken_a_second_time_and_no_graph_is_left() -> None:
    denoiser = denoiser_of("sd15")
    drawn = denoiser.draw(PROMPT, [1])
    plain = denoiser.denoise(PROMPT, drawn.latents, [1], 0, 3)
    found = climbed(denoiser, brightness, PROMPT, drawn.latents, [1], 0, 3, 3)
    assert found.denoised.rows == 2 * plain.rows
    assert not found.denoised.latents.requires_grad and not found.gradient.requires_grad
    assert not any(p.requires_grad for p in denoiser.pipe.unet.parameters())


def test_previews_have_gradients_too() -> None:
    denoiser = denoiser_of("flux")
    drawn = denoiser.draw(PROMPT, [1])
    found = climbed(denoiser, brightness, PROMPT, drawn.latents, [1], 0, 2, 3)
    assert found.gradient.abs().max() > 0
    assert torch.equal(
        found.denoised.clean, denoiser.denoise(PROMPT, drawn.latents, [1], 0, 2).clean
    )


def test_a_pipeline_that_leaves_torch_is_refused_in_one_sentence() -> None:
    denoiser = denoiser_of("sd15")
    decode = denoiser.pipe.vae.decode
    denoiser.pipe.vae.decode = torch.no_grad()(decode)
    drawn = denoiser.draw(PROMPT, [1])
    with pytest.raises(UserError, match="does not pass gradients"):
        climbed(denoiser, brightness, PROMPT, drawn.latents, [1], 0, 3, 3)


def test_a_step_is_taken_again_by_the_thread_whose_turn_it_is() -> None:
    """For a GPU autograd has a thread of its own, which would wait for that turn for ever."""
    denoiser, alone = denoiser_of("sd15"), []
    for part in denoisers(denoiser.pipe):
        part.register_forward_pre_hook(
            lambda *_: alone.append(not torch.autograd.is_multithreading_enabled())
        )
    x = denoiser.draw(PROMPT, [0]).latents
    climbed(denoiser, brightness, PROMPT, x, [0], 0, 1, 3)
    assert len(alone) >= 2 and all(alone) and torch.autograd.is_multithreading_enabled()
