"""What suits a loaded pipeline and its device: batch size, attention, whether it is compiled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.config import ExperimentConfig
from experiment.plan import Plan
from experiment.speed import compiles, images_at_once, measures_attention, measures_batches
from pipelines.attention import can_attend, check_attention
from pipelines.compiling import retraced, undo
from pipelines.denoiser import Denoiser
from pipelines.memory import GB, Offload, tensor_bytes
from pipelines.parts import denoisers
from pipelines.profiles import check_profile
from pipelines.tuning import remembered_attention, remembered_size
from utils import UserError
from verifiers.base import Chosen
from verifiers.moving import models_within

logger = logging.getLogger(__name__)

BASIS = ("device", "packages", "placement", "threads")  # of the manifest


@dataclass(frozen=True)
class Fitted:
    """What was chosen; the attention is the denoiser's own. placement: for the manifest."""

    batch_size: int
    compiled: bool
    placement: Mapping[str, Any] | None


def first_attention(config: ExperimentConfig, device: str, *, apart: bool) -> str:
    """The attention before anything is measured; refuses one that cannot be had.

    apart: a verifier judges at the same time, on another device.
    """
    name = config.engine_args.attention
    if name in ("auto", "default"):
        return "default"
    check_attention(name, device, config.torch_dtype)
    if apart:  # torch has one choice for all threads
        raise UserError(
            "A verifier that judges on another device while images are made would get"
            f" '{name}' attention at random: set engine_args.attention to 'default', or"
            " engine_args.verifier_device to the pipeline's."
        )
    return name


def fit(
    config: ExperimentConfig,
    planned: Plan,
    denoiser: Denoiser,
    device: str,
    build: Any,
    manifest: Mapping[str, Any],
    *,
    apart: bool,
    beside: Sequence[Chosen] = (),
) -> Fitted:
    """Choose what the config leaves open, and compile.

    build: the pipeline's class. beside: verifiers that share the device, loaded.
    """
    prompt = planned.prompts[0].text
    machine = {name: manifest[name] for name in BASIS} | {"dtype": config.torch_dtype}
    stays = denoiser.residence is None or not denoiser.residence.alone
    machine["beside_gb"] = _gigabytes(beside) if stays else 0.0
    batch_size = images_at_once(config, build)
    if measures_batches(config, device, build):
        batch_size = remembered_size(denoiser, prompt, machine)
    offload = _settled_for(batch_size, denoiser, config)
    residence, passes = denoiser.residence, planned.passes(batch_size)
    placement = None if residence is None else residence.described()
    machine["placement"] = placement
    wanted = compiles(config, planned.checkpoint, device, offload, passes)
    compiled = False

    def start() -> None:
        nonlocal compiled
        insist = config.engine_args.compile == "on"
        compiled = wanted and _compiled(denoiser, prompt, batch_size, insist)

    def anew() -> None:
        if compiled:
            _compile(denoiser, prompt, batch_size)

    asked = measures_attention(config, device, apart=apart)
    if asked and can_attend("cudnn", device, config.torch_dtype):
        machine["compile"] = wanted
        remembered_attention(denoiser, prompt, batch_size, machine, start, anew)
    else:
        start()
    return Fitted(batch_size, compiled, placement)


def _settled_for(batch_size: int, denoiser: Denoiser, config: ExperimentConfig) -> Offload:
    """How the pipeline is offloaded now that the batch size is known."""
    if denoiser.residence is None:
        return "none"
    denoiser.residence.suit(batch_size, config.engine_args.vae)
    offload = denoiser.residence.placement.offload
    check_profile(config.engine_args.profile, (), offload, settled=True)
    return offload


def _gigabytes(verifiers: Sequence[Chosen]) -> float:
    """Weights of verifiers, to a tenth of a GB: a batch that fits without them may not with."""
    found = [model for each in verifiers for model in models_within(each.verifier)]
    held = {id(t): tensor_bytes(t) for m in found for t in (*m.parameters(), *m.buffers())}
    return round(sum(held.values()) / GB, 1)


def _compiled(denoiser: Denoiser, prompt: str, batch_size: int, insist: bool) -> bool:
    """Compile; where that does not work, go on without, or refuse if the user insists."""
    try:
        _compile(denoiser, prompt, batch_size)
    except Exception as error:  # whatever a compiler may raise
        reason = " ".join(str(error).split())[:300]
        if insist:
            raise UserError(
                f"{type(denoiser.pipe).__name__} cannot be compiled here ({reason}): set"
                " engine_args.compile to 'off'."
            ) from error
        logger.warning("Going on without torch.compile, which failed: %s", reason)
        return False
    return True


def _compile(denoiser: Denoiser, prompt: str, batch_size: int) -> None:
    """Compile, and take a step to see that it works."""
    parts = [*denoisers(denoiser.pipe), *denoiser.twins]
    retraced(parts)
    try:
        denoiser.warm_up(prompt, batch_size)
    except Exception:
        undo(parts)
        raise
