"""Tiny but complete diffusers pipelines: random weights, working text encoders, no downloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from . import pipelines

STEPS = 6
PROMPT = "a red circle"


@dataclass(frozen=True)
class Family:
    """One kind of pipeline, and the arguments with which it is called."""

    name: str
    build: Callable[..., DiffusionPipeline]  # takes an optional `scheduler`
    call_args: Mapping[str, Any]
    video: bool = False

    @property
    def prompted(self) -> bool:
        """Whether a call takes a prompt, rather than class labels."""
        return "class_labels" not in self.call_args

    def inputs(self, seeds: Sequence[int], prompt: str = PROMPT) -> dict[str, Any]:
        """All arguments of one call with one candidate per seed."""
        count = len(seeds)
        args = {**self.call_args, "generator": [torch.Generator().manual_seed(s) for s in seeds]}
        if "image" in args:
            args["image"] = [args["image"]] * count  # a picture each, or all take the first's noise
        if self.prompted:
            return {**args, "prompt": [prompt] * count}
        return {**args, "class_labels": list(self.call_args["class_labels"]) * count}

    def pixels(self, pipe: DiffusionPipeline, **inputs: Any) -> np.ndarray:
        """What the pipeline returns for these inputs: one array of numbers per candidate."""
        result = pipe(**inputs, output_type="np")
        return np.asarray(result.frames if self.video else result.images)


def _seeded(make: Callable[[Any], DiffusionPipeline]) -> Callable[..., DiffusionPipeline]:
    """Make a builder repeatable and quiet, without touching the global random state."""

    def build(scheduler: Any = None) -> DiffusionPipeline:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = make(scheduler)
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def _args(side: int | None = None, **others: Any) -> dict[str, Any]:
    """Call arguments with the shared number of steps and, if given, a square size."""
    size = {} if side is None else {"height": side, "width": side}
    return {**size, "num_inference_steps": STEPS, **others}


def _picture(side: int) -> Image.Image:
    """A smooth picture to start image-to-image from."""
    ramp = np.linspace(0, 255, side)
    red, green = np.meshgrid(ramp, ramp)
    return Image.fromarray(np.stack([red, green, 255 - red], axis=-1).astype(np.uint8))


FAMILIES: dict[str, Family] = {
    "sd15": Family("SD1.5 + DDIM", _seeded(pipelines.sd15), _args(64, guidance_scale=5.0)),
    "sdxl": Family("SDXL + Euler", _seeded(pipelines.sdxl), _args(32, guidance_scale=5.0)),
    "pixart": Family(
        "PixArt-Sigma + DDIM",
        _seeded(pipelines.pixart),
        _args(
            32,
            guidance_scale=4.5,
            use_resolution_binning=False,
            clean_caption=False,
            max_sequence_length=32,
        ),
    ),
    "sd3": Family(
        "SD3 + flow Euler",
        _seeded(pipelines.sd3),
        _args(32, guidance_scale=5.0, max_sequence_length=32),
    ),
    "flux": Family(
        "FLUX.1 + flow Euler",
        _seeded(pipelines.flux),
        _args(32, guidance_scale=3.5, max_sequence_length=32),
    ),
    "klein": Family(
        "FLUX.2-klein + flow Euler",
        _seeded(pipelines.klein),
        _args(32, guidance_scale=4.0, max_sequence_length=96, text_encoder_out_layers=[1, 2, 3]),
    ),
    "sana": Family(
        "Sana + flow Euler",
        _seeded(pipelines.sana),
        _args(
            32,
            guidance_scale=4.5,
            use_resolution_binning=False,
            max_sequence_length=64,
            complex_human_instruction=["Enhance the prompt.", "User Prompt: "],
        ),
    ),
    "qwen_image": Family(
        "Qwen-Image + flow Euler",
        _seeded(pipelines.qwen_image),
        _args(32, true_cfg_scale=2.0, negative_prompt=" "),
    ),
    "z_image": Family(
        "Z-Image + flow Euler",
        _seeded(pipelines.z_image),
        _args(32, guidance_scale=2.0, max_sequence_length=96),
    ),
    "ltx": Family(
        "LTX-Video + flow Euler",
        _seeded(pipelines.ltx),
        _args(32, guidance_scale=3.0, num_frames=9, max_sequence_length=32),
        video=True,
    ),
    "wan": Family(
        "Wan + flow Euler",
        _seeded(pipelines.wan),
        _args(16, guidance_scale=5.0, num_frames=9, max_sequence_length=32),
        video=True,
    ),
    "dit": Family(
        "DiT + DDIM", _seeded(pipelines.dit), _args(guidance_scale=4.0, class_labels=[207])
    ),
    "sd15_img2img": Family(
        "SD1.5 image-to-image + DDIM",
        _seeded(pipelines.sd15_img2img),
        _args(guidance_scale=5.0, strength=0.75, image=_picture(64)),
    ),
    "flux_img2img": Family(
        "FLUX.1 image-to-image + flow Euler",
        _seeded(pipelines.flux_img2img),
        _args(32, guidance_scale=3.5, strength=0.75, image=_picture(32), max_sequence_length=32),
    ),
}
