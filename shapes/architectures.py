"""The networks of the bundled checkpoints, and the same ones in tiny."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shapes.build_tokenizers import CLIP_LENGTH
from shapes.world import SIZE

# The tokenizers' sizes and CLIP's special tokens.
CLIP_TOKENS, T5_TOKENS, CLIP_START, CLIP_END = 666, 125, 664, 665


@dataclass(frozen=True)
class Scale:
    """How wide and how deep the networks are; the defaults are the bundled ones."""

    vae_channels: tuple[int, int, int, int] = (24, 48, 64, 96)
    text_width: int = 128  # of CLIP's text encoder and of T5
    text_inner: int = 384
    t5_inner: int = 256
    text_layers: int = 3
    vision_width: int = 144
    vision_inner: int = 432
    vision_layers: int = 5
    unet_channels: tuple[int, int, int] = (64, 128, 160)
    unet_groups: int = 16
    flux_heads: int = 6
    flux_layers: int = 3
    flux_single_layers: int = 5


BUNDLED = Scale()
TINY = Scale(
    vae_channels=(8, 8, 16, 16),
    text_width=32,
    text_inner=48,
    t5_inner=48,
    text_layers=1,
    vision_width=24,
    vision_inner=48,
    vision_layers=1,
    unet_channels=(16, 32, 32),
    unet_groups=8,
    flux_heads=1,
    flux_layers=1,
    flux_single_layers=1,
)


def build_vae(scale: Scale) -> Any:
    """The autoencoder of both pipelines: 8 times smaller latents of 4 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=scale.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        shift_factor=0.0,
        force_upcast=False,
    )


def text_config(scale: Scale) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=CLIP_TOKENS,
        hidden_size=scale.text_width,
        intermediate_size=scale.text_inner,
        num_hidden_layers=scale.text_layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        projection_dim=128,
        bos_token_id=CLIP_START,
        eos_token_id=CLIP_END,
        pad_token_id=CLIP_END,
        hidden_act="quick_gelu",
    )


def build_text_encoder(scale: Scale) -> Any:
    """CLIP's text encoder, as both pipelines condition on it."""
    from transformers import CLIPTextModel

    return CLIPTextModel(text_config(scale))


def build_t5(scale: Scale) -> Any:
    """T5's encoder with plain attention: fused kernels have no gradient for its trainable bias."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=T5_TOKENS,
        d_model=scale.text_width,
        d_kv=32,
        d_ff=scale.t5_inner,
        num_layers=scale.text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    return T5EncoderModel(config)


def build_clip(scale: Scale) -> Any:
    """The contrastive verifier."""
    from transformers import CLIPConfig, CLIPModel

    vision = dict(
        hidden_size=scale.vision_width,
        intermediate_size=scale.vision_inner,
        num_hidden_layers=scale.vision_layers,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=16,
        projection_dim=128,
        hidden_act="quick_gelu",
    )
    text = text_config(scale).to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def build_unet(scale: Scale) -> Any:
    """The denoiser of the Stable Diffusion pipeline."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=scale.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=scale.text_width,
        attention_head_dim=4,
        norm_num_groups=scale.unet_groups,
    )


def build_ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        num_train_timesteps=1000,
    )


def build_transformer(scale: Scale) -> Any:
    """The denoiser of the FLUX pipeline, over latents packed two by two."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=scale.flux_layers,
        num_single_layers=scale.flux_single_layers,
        attention_head_dim=32,
        num_attention_heads=scale.flux_heads,
        joint_attention_dim=scale.text_width,
        pooled_projection_dim=scale.text_width,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def build_flow_matching() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
