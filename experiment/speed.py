"""Batch size and compilation: what the config asks for, and what is chosen where it leaves it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from experiment.calls import called
from experiment.config import ExperimentConfig
from experiment.guests import verifier_device
from pipelines.compiling import pays
from pipelines.loading import choose_device, pipeline_index
from pipelines.parts import kind_of, models_of
from pipelines.profiles import lacking_products
from utils import UserError

BATCH_SIZE = 8  # per image 0.29 s at 1, 0.15 s at 8, 0.17 s at 16 (bundled FLUX, 2 cores)

Passes = Callable[[int], float | None]
"""Forward passes of the whole run by batch size, if anybody knows."""


def images_at_once(config: ExperimentConfig, build: Any) -> int:
    """The batch size before anything is measured; `build` is the pipeline's class."""
    if config.batch_size != "auto":
        return config.batch_size
    return 1 if _makes_videos(build) else BATCH_SIZE


def measures_batches(config: ExperimentConfig, device: str, build: Any) -> bool:
    """Whether the fastest batch size is measured."""
    on_gpu = device.startswith("cuda")
    return config.batch_size == "auto" and on_gpu and not _makes_videos(build)


def measures_attention(config: ExperimentConfig, device: str, *, apart: bool) -> bool:
    """Whether cuDNN's attention is timed beside torch's choice.

    apart: a verifier judges at the same time, whom torch's one choice for all threads would reach.
    """
    return (
        config.engine_args.attention == "auto"
        and device.startswith("cuda")
        and config.torch_dtype != "fp32"  # which cuDNN's has not
        and not apart
        and not config.climbs  # a step forward tells half of it
    )


def compiles(
    config: ExperimentConfig, checkpoint: str, device: str, offload: str, passes: float | None
) -> bool:
    """Whether the denoiser is to be compiled; refuses what cannot be.

    passes: through the denoiser in the whole run; None where nobody knows.
    """
    engine = config.engine_args
    offloaded = offload != "none"
    if engine.compile == "on" and offloaded:
        raise UserError(
            f"A denoiser that is offloaded ({offload}) cannot be compiled: set engine_args.compile"
            " to 'off', or engine_args.offload to 'none'."
        )
    if engine.compile == "on" and engine.profile == "cached":
        raise UserError(
            "A feature cache decides at each step which blocks to run, which cannot be compiled:"
            " set engine_args.compile to 'off', or engine_args.profile to another."
        )
    if engine.compile != "auto" or offloaded or not device.startswith("cuda"):
        return engine.compile == "on"
    if engine.quantization or engine.profile == "cached" or config.climbs:
        return False  # these have hooks and graphs of their own
    parts = [part for _, part in models_of(pipeline_index(checkpoint))]
    return pays([part for part in parts if kind_of(part) == "denoiser"], passes)


def speed(config: ExperimentConfig, local: str, passes: Passes) -> Iterable[tuple[str, str]]:
    """The plan's lines where there is a GPU to be fast on."""
    engine = config.engine_args
    try:
        device = choose_device(engine.device)
    except UserError:
        return  # said when the run begins
    if not device.startswith("cuda"):
        return
    judging = verifier_device(engine.verifier_device, device)
    apart = judging != device and not config.climbs
    if apart:
        yield "verifiers", f"on {judging}, while images are made"
    build = called(config, local).build
    if measures_batches(config, device, build):
        yield "batch size", "measured as the run begins, unless it was before; placed for it then"
    if measures_attention(config, device, apart=apart):
        yield "attention", "measured as the run begins, unless it was before"
    if engine.profile == "fp8" and (reason := lacking_products(device)):
        yield "fp8 drafts", f"of weights alone, no faster: no products in fp8, for {reason}"
    offload = "none" if engine.offload == "auto" else engine.offload
    if compiles(config, local, device, offload, passes(images_at_once(config, build))):
        yield "compile", "yes"
    elif engine.compile == "auto":
        yield "compile", "no: too few steps to pay for it, or it does not go with the rest"


def _makes_videos(build: Any) -> bool:
    return "num_frames" in inspect.signature(build.__call__).parameters
