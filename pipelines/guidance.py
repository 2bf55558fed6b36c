"""Which call arguments guide a pipeline as it is called, by its signature and configs alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

GUIDANCE = ("guidance_scale", "guidance_scale_2", "distilled_guidance_scale")

Configs = Callable[[], Iterable[Mapping[str, Any]]]


def guiding(
    parameters: Mapping[str, inspect.Parameter],
    call_args: Mapping[str, Any],
    settings: Mapping[str, Any],
    denoiser_configs: Configs,
) -> dict[str, float]:
    """The call arguments that a factor on guidance multiplies, with their values; {} for none.

    A true classifier-free scale stands beside the distilled one (FLUX, Qwen-Image) and takes
    effect above 1, with a negative prompt; the distilled one, where the model embeds it. A
    pipeline whose settings call it distilled is not guided, and no factor moves a scale of 0.

    settings: the pipeline's own config. denoiser_configs: those of its denoisers, read only where
    the answer depends on them.
    """

    def argument(name: str) -> Any:
        parameter = parameters.get(name)
        return parameter and call_args.get(name, parameter.default)

    def chosen() -> tuple[str, ...]:
        true_scale = argument("true_cfg_scale")
        if true_scale is None:
            return () if settings.get("is_distilled") else GUIDANCE
        if true_scale > 1 and argument("negative_prompt") is not None:
            return ("true_cfg_scale",)
        embeds = any(config.get("guidance_embeds", True) for config in denoiser_configs())
        return GUIDANCE if embeds else ()

    return {name: scale for name in chosen() if (scale := argument(name))}
