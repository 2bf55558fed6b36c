"""The gradient of a score with respect to the latents it came from.

Each step of the pipeline, and the decoding, is checkpointed on its own: what is kept is one set of
latents a step, and a step's activations live only while it is differentiated (Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipelines.denoiser import Denoiser
from pipelines.made import Denoised
from pipelines.sde import Sde, with_noise
from utils import UserError

Judge = Callable[[Tensor], Tensor]
"""Scores [n] of pixels [n, 3, H, W] in [0, 1]."""


@dataclass(frozen=True)
class Climbed:
    """What a stretch came to, and d score / d latents as handed in; nan where it has none."""

    denoised: Denoised
    gradient: Tensor


def climbed(
    denoiser: Denoiser,
    judge: Judge,
    prompt: str,
    latents: Tensor,
    seeds: Sequence[int],
    start: int,
    until: int,
    steps: int,
    guidance: float = 1.0,
    sde: Sde | None = None,
) -> Climbed:
    """Take steps [start, until) of `steps` and differentiate the score of the clean estimate.

    rows counts the forward pass and the second one that checkpointing costs.
    """
    before = denoiser.rows
    with torch.enable_grad(), _one_thread(), _said_plainly(denoiser):
        origin = latents.detach().clone().requires_grad_()
        done = _stepped(denoiser, prompt, origin, seeds, start, until, guidance, sde)
        pixels: Tensor = checkpoint(
            lambda clean: denoiser.pixels(prompt, clean, seeds, steps),
            done.clean,
            use_reentrant=False,
        )
        (gradient,) = torch.autograd.grad(judge(pixels).sum(), origin)
    held = replace(
        done,
        latents=done.latents.detach(),
        clean=done.clean.detach(),
        rows=denoiser.rows - before,
    )
    return Climbed(held, gradient)


def _stepped(
    denoiser: Denoiser,
    prompt: str,
    origin: Tensor,
    seeds: Sequence[int],
    start: int,
    until: int,
    guidance: float,
    sde: Sde | None,
) -> Denoised:
    """Single steps, each forgotten and taken again when it is differentiated."""
    at = Denoised(origin, origin, 0)
    for step in range(start, until):
        scales: list[Tensor | None] = []

        def taken(
            x: Tensor, step: int = step, scales: list[Tensor | None] = scales
        ) -> tuple[Tensor, Tensor]:
            done = denoiser.denoise(
                prompt, x, seeds, step, step + 1, guidance, sde, differentiable=True
            )
            scales.append(done.noise_scale)
            return done.latents, done.clean

        held = at.latents
        if at.noise_scale is not None:
            held = with_noise(held, at.noise_scale, seeds, step)
        moved, clean = checkpoint(taken, held, use_reentrant=False)
        at = Denoised(moved, clean, 0, scales[0])
    return at


def _one_thread() -> AbstractContextManager[object]:
    """What is taken again is taken by the thread whose turn it is: for devices autograd has
    threads of its own, and one of those would wait for that turn for ever."""
    return torch.autograd.set_multithreading_enabled(False)


@contextmanager
def _said_plainly(denoiser: Denoiser) -> Iterator[None]:
    """A pipeline that leaves torch somewhere on its way says so in torch's words: here in ours."""
    try:
        yield
    except RuntimeError as error:
        if "require" not in str(error) or "grad" not in str(error):
            raise
        raise UserError(
            f"{type(denoiser.pipe).__name__} does not pass gradients from its images back to its"
            " latents: use a search that needs none."
        ) from error
