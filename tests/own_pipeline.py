"""A pipeline as a user writes one: a loop of its own, latents in a packing of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


class WovenPipeline(DiffusionPipeline):
    """Its latents are a row of columns [n, width, channels * height], the last column first."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.image_processor = VaeImageProcessor()

    def prepare_latents(self, count: int, side: int, generator: Any, dtype: torch.dtype) -> Tensor:
        shape = (count, self.unet.config.in_channels, side, side)
        device = self._execution_device
        return self.woven(randn_tensor(shape, generator=generator, device=device, dtype=dtype))

    @staticmethod
    def woven(latents: Tensor) -> Tensor:
        return latents.permute(0, 3, 1, 2).flatten(2).flip(1)

    def unwoven(self, latents: Tensor) -> Tensor:
        n, side, _ = latents.shape
        return latents.flip(1).reshape(n, side, -1, side).permute(0, 2, 3, 1)

    def read(self, prompt: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
        )
        encoded: Tensor = self.text_encoder(tokens.input_ids.to(self._execution_device))[0]
        return encoded

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        side: int = 64,
        num_inference_steps: int = 4,
        strictness: float = 2.0,
        generator: Any = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts = torch.cat([self.read([""] * len(prompts)), self.read(prompts)])
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = self.prepare_latents(len(prompts), side // 8, generator, texts.dtype)
        for t in self.scheduler.timesteps:
            picture = self.unwoven(latents)
            noise = self.unet(torch.cat([picture] * 2), t, encoder_hidden_states=texts).sample
            blank, asked = noise.chunk(2)
            guided = self.woven(blank + strictness * (asked - blank))
            latents = self.scheduler.step(guided, t, latents).prev_sample
        pixels = self.vae.decode(self.unwoven(latents) / self.vae.config.scaling_factor).sample
        return ImagePipelineOutput(
            images=self.image_processor.postprocess(pixels, output_type=output_type)
        )
