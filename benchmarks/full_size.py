"""Six published pipelines at full size with random weights, built from their configs alone.

Sizes are those of the released config.json files. `tiny` holds what differs in a small build of the
same shape. Tokenizers are the bundled models': vocabularies differ, the numbers of tokens do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import ROOT

Config = Mapping[str, Any]
BUNDLED = ROOT / "shapes/models/shapes-flux"


@dataclass(frozen=True)
class Model:
    """One model of a pipeline: its class and config, and what a tiny build changes."""

    library: str
    name: str
    config: Config
    tiny: Config

    def sized(self, tiny: bool) -> dict[str, Any]:
        return {**self.config, **(self.tiny if tiny else {})}

    @property
    def build(self) -> Any:
        return getattr(import_module(self.library), self.name)

    def make(self, tiny: bool) -> nn.Module:
        """The model; its parameters have no data, its buffers do."""
        from accelerate import init_empty_weights

        config = self.sized(tiny)
        with init_empty_weights(include_buffers=False):
            if self.library == "diffusers":
                made: nn.Module = self.build.from_config(config)
            else:
                made = self.build(self.build.config_class(**config))
        return made.eval()


@dataclass(frozen=True)
class Pipeline:
    """A pipeline with the arguments of its call."""

    name: str
    models: Mapping[str, Model]
    scheduler: tuple[str, Config]
    tokenizers: Mapping[str, str]
    call_args: Config
    tiny_args: Config
    dtype: str
    extras: Config = field(default_factory=dict)
    chat: bool = False  # its prompts are turns of a chat, which the bundled tokenizers know not of

    def arguments(self, tiny: bool) -> dict[str, Any]:
        return {**self.call_args, **(self.tiny_args if tiny else {})}

    def make(self, tiny: bool, device: str, *, stays: bool = False) -> Any:
        """The pipeline; its weights are drawn on `device`, and go to the CPU unless they stay."""
        import diffusers
        from transformers import AutoTokenizer

        parts: dict[str, Any] = {}
        dtype = getattr(torch, {"fp16": "float16", "bf16": "bfloat16"}[self.dtype])
        for name, model in self.models.items():
            made = model.make(tiny)
            own = torch.float32 if device == "cpu" else dtype
            fill(made, own, device)
            if model.library == "diffusers":  # which loads buffers in the weights' number format
                nn.Module.to(made, dtype=own)
            parts[name] = made.to(device if stays else "cpu")
        for name, folder in self.tokenizers.items():
            parts[name] = AutoTokenizer.from_pretrained(BUNDLED / folder)
            if self.chat:
                parts[name].chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        scheduler, options = self.scheduler
        parts["scheduler"] = getattr(diffusers, scheduler)(**options)
        return getattr(diffusers, self.name)(**parts, **self.extras)

    def write(self, folder: Path, *, tiny: bool = False) -> None:
        """A checkpoint of configs alone, without weights or tokenizers."""
        import diffusers

        index: dict[str, Any] = {"_class_name": self.name}
        for name, model in self.models.items():
            index[name] = [model.library, model.name]
            (folder / name).mkdir(parents=True)
            content = json.dumps({"_class_name": model.name, **model.sized(tiny)})
            (folder / name / "config.json").write_text(content)
        scheduler, options = self.scheduler
        index["scheduler"] = ["diffusers", scheduler]
        getattr(diffusers, scheduler)(**options).save_pretrained(folder / "scheduler")
        index |= {name: [None, None] for name, value in self.extras.items() if value is None}
        (folder / "model_index.json").write_text(json.dumps(index))


def fill(model: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Draw the weights: small matrices' entries from N(0, 0.02), norms 1, biases 0.

    Values keep activations finite; zeros everywhere would run faster than a real model does.
    """
    generator = torch.Generator(device).manual_seed(0)
    drawn: dict[int, nn.Parameter] = {}  # tied weights stay one
    for layer in model.modules():
        for name, old in list(layer.named_parameters(recurse=False)):
            if id(old) not in drawn:
                new = torch.empty(old.shape, dtype=dtype, device=device)
                if old.dim() < 2:
                    new.fill_(1.0 if name == "weight" else 0.0)
                else:
                    new.normal_(0.0, 0.02, generator=generator)
                drawn[id(old)] = nn.Parameter(new, requires_grad=False)
            setattr(layer, name, drawn[id(old)])


def _clip(name: str = "CLIPTextModel", **config: Any) -> Model:
    usual = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
             "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
             "hidden_act": "quick_gelu", "projection_dim": 768, "bos_token_id": 0,
             "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    small = {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 32,
             "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}  # fmt: skip
    return Model("transformers", name, {**usual, **config}, small)


def _t5(name: str = "T5EncoderModel", **config: Any) -> Model:
    usual = {"vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64,
             "num_layers": 24, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True,
             "tie_word_embeddings": False}  # fmt: skip
    small = {"vocab_size": 1000, "d_model": 32, "d_ff": 32, "d_kv": 8, "num_heads": 2,
             "num_layers": 1}  # fmt: skip
    return Model("transformers", name, {**usual, **config}, small)


def _kl(**config: Any) -> Model:
    usual = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
             "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32,
             "down_block_types": ["DownEncoderBlock2D"] * 4,
             "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 1024}  # fmt: skip
    small = {"block_out_channels": [4] * 4, "norm_num_groups": 1, "layers_per_block": 1}
    return Model("diffusers", "AutoencoderKL", {**usual, **config}, small)


def _unet(tiny: Config, **config: Any) -> Model:
    usual = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    small = {"layers_per_block": 1, "norm_num_groups": 2, "sample_size": 8, **tiny}
    return Model("diffusers", "UNet2DConditionModel", {**usual, **config}, small)


SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

FLUX = Pipeline(
    "FluxPipeline",
    {
        "transformer": Model(
            "diffusers",
            "FluxTransformer2DModel",
            {"patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
             "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
             "pooled_projection_dim": 768, "guidance_embeds": True,
             "axes_dims_rope": [16, 56, 56]},
            {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
             "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
             "axes_dims_rope": [4, 4, 8]},
        ),
        "text_encoder": _clip(),
        "text_encoder_2": _t5(),
        "vae": _kl(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
                   scaling_factor=0.3611, shift_factor=0.1159, force_upcast=True),
    },
    ("FlowMatchEulerDiscreteScheduler",
     {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}),
    {"tokenizer": "tokenizer", "tokenizer_2": "tokenizer_2"},
    {"height": 1024, "width": 1024, "max_sequence_length": 512, "guidance_scale": 3.5},
    {"height": 64, "width": 64, "max_sequence_length": 16},
    "bf16",
)  # fmt: skip

PIXART = Pipeline(
    "PixArtSigmaPipeline",
    {
        "transformer": Model(
            "diffusers",
            "PixArtTransformer2DModel",
            {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
             "out_channels": 8, "num_layers": 28, "sample_size": 128, "patch_size": 2,
             "cross_attention_dim": 1152, "caption_channels": 4096, "interpolation_scale": 2,
             "use_additional_conditions": False},
            {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
             "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 32},
        ),
        "text_encoder": _t5(),
        "vae": _kl(scaling_factor=0.13025, force_upcast=True),
    },
    ("DPMSolverMultistepScheduler", {}),
    {"tokenizer": "tokenizer_2"},
    {"height": 1024, "width": 1024, "max_sequence_length": 300, "guidance_scale": 4.5,
     "clean_caption": False},
    {"height": 64, "width": 64, "max_sequence_length": 16, "use_resolution_binning": False},
    "fp16",
)  # fmt: skip

SDXL = Pipeline(
    "StableDiffusionXLPipeline",
    {
        "unet": _unet(
            {"block_out_channels": [4, 8, 8], "attention_head_dim": 2,
             "transformer_layers_per_block": 1, "cross_attention_dim": 64,
             "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80},
            block_out_channels=[320, 640, 1280], sample_size=128,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "text_encoder": _clip(),
        "text_encoder_2": _clip(
            "CLIPTextModelWithProjection", hidden_size=1280, intermediate_size=5120,
            num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
            projection_dim=1280,
        ),
        "vae": _kl(scaling_factor=0.13025, force_upcast=True),
    },
    ("EulerDiscreteScheduler", {**SCALED, "steps_offset": 1, "timestep_spacing": "leading"}),
    {"tokenizer": "tokenizer", "tokenizer_2": "tokenizer"},
    {"height": 1024, "width": 1024, "guidance_scale": 5.0},
    {"height": 64, "width": 64},
    "fp16",
)  # fmt: skip

SD15 = Pipeline(
    "StableDiffusionPipeline",
    {
        "unet": _unet(
            {"block_out_channels": [4, 8, 8, 8], "attention_head_dim": 2,
             "cross_attention_dim": 32},
            block_out_channels=[320, 640, 1280, 1280], sample_size=64,
            cross_attention_dim=768, attention_head_dim=8,
            down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        ),
        "text_encoder": _clip(),
        "vae": _kl(sample_size=512, scaling_factor=0.18215),
    },
    ("PNDMScheduler", {**SCALED, "skip_prk_steps": True, "steps_offset": 1}),
    {"tokenizer": "tokenizer"},
    {"height": 512, "width": 512, "guidance_scale": 7.5},
    {"height": 64, "width": 64},
    "fp16",
    {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)  # fmt: skip

WAN = Pipeline(
    "WanPipeline",
    {
        "transformer": Model(
            "diffusers",
            "WanTransformer3DModel",
            {"patch_size": [1, 2, 2], "num_attention_heads": 12, "attention_head_dim": 128,
             "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256,
             "ffn_dim": 8960, "num_layers": 30, "rope_max_seq_len": 1024},
            {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "freq_dim": 16,
             "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32},
        ),
        "text_encoder": _t5("UMT5EncoderModel", vocab_size=256384),
        "vae": Model(
            "diffusers",
            "AutoencoderKLWan",
            {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
             "temperal_downsample": [False, True, True]},
            {"base_dim": 4, "num_res_blocks": 1},
        ),
    },
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True,
                                 "flow_shift": 3.0}),
    {"tokenizer": "tokenizer_2"},
    {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0,
     "max_sequence_length": 512},
    {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16},
    "bf16",
)  # fmt: skip

KLEIN = Pipeline(
    "Flux2KleinPipeline",
    {
        "transformer": Model(
            "diffusers",
            "Flux2Transformer2DModel",
            {"patch_size": 1, "in_channels": 128, "num_layers": 5, "num_single_layers": 20,
             "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 7680,
             "guidance_embeds": False},
            {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
             "num_attention_heads": 2, "joint_attention_dim": 96, "axes_dims_rope": [4, 4, 4, 4],
             "timestep_guidance_channels": 32},
        ),
        "text_encoder": Model(
            "transformers",
            "Qwen3ForCausalLM",
            {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
             "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
             "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40960},
            {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 32,
             "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
             "head_dim": 16},
        ),
        "vae": Model(
            "diffusers",
            "AutoencoderKLFlux2",
            {"block_out_channels": [128, 256, 512, 512]},
            {"block_out_channels": [4] * 4, "norm_num_groups": 1, "layers_per_block": 1},
        ),
    },
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
    {"tokenizer": "tokenizer_2"},
    {"height": 1024, "width": 1024, "max_sequence_length": 512, "guidance_scale": 1.0},
    {"height": 64, "width": 64, "max_sequence_length": 16, "text_encoder_out_layers": [0, 1, 2]},
    "bf16",
    {"is_distilled": True},
    chat=True,
)  # fmt: skip

PIPELINES: dict[str, Pipeline] = {
    "flux.1-dev": FLUX,
    "pixart-sigma": PIXART,
    "sdxl": SDXL,
    "sd1.5": SD15,
    "wan2.1-1.3b": WAN,
    "flux.2-klein-4b": KLEIN,
}
