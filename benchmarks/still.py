"""A pipeline that costs next to nothing: what is left of a run's time and memory is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from utils import digest

SIDE = 8  # pixels, three channels; they are the latents


class Still(ModelMixin, ConfigMixin):
    """Pulls latents towards the prompt's color, by an elementwise formula."""

    @register_to_config
    def __init__(self, pull: float = 0.5) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(pull))

    def forward(self, hidden_states: Tensor, color: Tensor) -> Tensor:
        """The velocity at latents [n, 3, side, side], for colors [n, 3] in [-1, 1]."""
        return self.weight * (hidden_states - color[:, :, None, None])


class StillPipeline(DiffusionPipeline):
    """Flow matching with a formula for a model; a prompt's color is its digest's."""

    def __init__(self, transformer: Still, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.image_processor = VaeImageProcessor()

    def prepare_latents(self, count: int, generator: Any) -> Tensor:
        return randn_tensor((count, 3, SIDE, SIDE), generator=generator)

    def encode_prompt(self, prompt: list[str]) -> Tensor:
        return torch.stack([_color(text) for text in prompt])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        generator: Any = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        color = self.encode_prompt(prompts)
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self.prepare_latents(len(prompts), generator)
        for t in self.scheduler.timesteps:
            velocity = guidance_scale * self.transformer(latents, color)
            latents = self.scheduler.step(velocity, t, latents).prev_sample
        images = self.image_processor.postprocess(latents.clamp(-1, 1), output_type=output_type)
        return ImagePipelineOutput(images=images)


def still_checkpoint(folder: Path) -> dict[str, Any]:
    """Write the pipeline to a folder; the part of a config that names it."""
    StillPipeline(Still(), FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    return {
        "pretrained_model_name_or_path": str(folder),
        "pipeline_class": "benchmarks.still:StillPipeline",
        "torch_dtype": "fp32",
    }


def _color(text: str) -> Tensor:
    return torch.tensor([int(digest(text)[i : i + 2], 16) / 127.5 - 1 for i in (0, 2, 4)])
