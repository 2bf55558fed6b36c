"""Builders of tiny diffusers pipelines with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from . import text


def _kl(depth: int = 1, **overrides: Any) -> AutoencoderKL:
    """A small autoencoder which halves the image `depth - 1` times."""
    config: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (4,) * depth,
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(**{**config, **overrides})


def _amplify(module: torch.nn.Module, *kinds: type[torch.nn.Module]) -> None:
    """Double the weights of layers of these kinds, so that the prompt and the seed show clearly."""
    for layer in module.modules():
        if isinstance(layer, kinds):
            layer.weight.data.mul_(2.0)  # type: ignore[operator]


def _ddim() -> DDIMScheduler:
    """The DDIM scheduler of Stable Diffusion 1.5."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _flow(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    """The Euler scheduler of a flow-matching model."""
    return FlowMatchEulerDiscreteScheduler(**config)


def _dynamic_flow() -> FlowMatchEulerDiscreteScheduler:
    """A flow-matching Euler scheduler which shifts with the size of the image."""
    return _flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def _sd15_parts(scheduler: Any) -> dict[str, Any]:
    """The components shared by the two Stable Diffusion 1.5 pipelines."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    _amplify(unet, torch.nn.Linear)
    return {
        "unet": unet,
        "scheduler": scheduler or _ddim(),
        "vae": _kl(depth=4),
        "text_encoder": text.clip_text_encoder(),
        "tokenizer": text.clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sd15(scheduler: Any = None) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 with DDIM."""
    return StableDiffusionPipeline(**_sd15_parts(scheduler))


def sd15_img2img(scheduler: Any = None) -> StableDiffusionImg2ImgPipeline:
    """Stable Diffusion 1.5 image-to-image with DDIM."""
    return StableDiffusionImg2ImgPipeline(**_sd15_parts(scheduler))


def sdxl(scheduler: Any = None) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL with the Euler scheduler."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=2,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=1,
    )
    _amplify(unet, torch.nn.Linear)
    euler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    return StableDiffusionXLPipeline(
        unet=unet,
        scheduler=scheduler or euler,
        vae=_kl(depth=2),
        text_encoder=text.clip_text_encoder(),
        tokenizer=text.clip_tokenizer(),
        text_encoder_2=text.clip_projected_text_encoder(),
        tokenizer_2=text.clip_tokenizer(),
        add_watermarker=False,
    )


def pixart(scheduler: Any = None) -> PixArtSigmaPipeline:
    """PixArt-Sigma with DDIM."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=scheduler or DDIMScheduler(),
        vae=_kl(depth=2),
        text_encoder=text.t5_encoder(),
        tokenizer=text.t5_tokenizer(),
    )


def sd3(scheduler: Any = None) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with flow-matching Euler."""
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler or _flow(shift=3.0),
        vae=_kl(depth=2, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=text.clip_projected_text_encoder(),
        tokenizer=text.clip_tokenizer(),
        text_encoder_2=text.clip_projected_text_encoder(),
        tokenizer_2=text.clip_tokenizer(),
        text_encoder_3=text.t5_encoder(64),
        tokenizer_3=text.t5_tokenizer(),
    )


def _flux_parts(scheduler: Any) -> dict[str, Any]:
    """The components shared by the two FLUX pipelines."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=[4, 4, 8],
    )
    _amplify(transformer, torch.nn.Linear)
    return {
        "transformer": transformer,
        "scheduler": scheduler or _dynamic_flow(),
        "vae": _kl(depth=2, shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": text.clip_text_encoder(),
        "tokenizer": text.clip_tokenizer(),
        "text_encoder_2": text.t5_encoder(),
        "tokenizer_2": text.t5_tokenizer(),
    }


def flux(scheduler: Any = None) -> FluxPipeline:
    """FLUX.1 with flow-matching Euler and a dynamic shift."""
    return FluxPipeline(**_flux_parts(scheduler))


def flux_img2img(scheduler: Any = None) -> FluxImg2ImgPipeline:
    """FLUX.1 image-to-image with flow-matching Euler and a dynamic shift."""
    return FluxImg2ImgPipeline(**_flux_parts(scheduler))


def klein(scheduler: Any = None) -> Flux2KleinPipeline:
    """FLUX.2-klein with flow-matching Euler and a dynamic shift."""
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    _amplify(transformer, torch.nn.Linear)
    vae = AutoencoderKLFlux2(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        transformer=transformer,
        scheduler=scheduler or _dynamic_flow(),
        vae=vae,
        text_encoder=text.qwen3(),
        tokenizer=text.byte_tokenizer(),
        is_distilled=False,
    )


def sana(scheduler: Any = None) -> SanaPipeline:
    """Sana with flow-matching Euler."""
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        transformer=transformer,
        scheduler=scheduler or _flow(shift=7.0),
        vae=vae,
        text_encoder=text.gemma2(),
        tokenizer=text.byte_tokenizer(),
    )


def qwen_image(scheduler: Any = None) -> QwenImagePipeline:
    """Qwen-Image with flow-matching Euler and a dynamic shift."""
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    _amplify(transformer, torch.nn.Linear)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(
        transformer=transformer,
        scheduler=scheduler or _dynamic_flow(),
        vae=vae,
        text_encoder=text.qwen25_vl(),
        tokenizer=text.byte_tokenizer(),
    )


def z_image(scheduler: Any = None) -> ZImagePipeline:
    """Z-Image with flow-matching Euler."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():  # the two pad tokens start as uninitialised memory
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return ZImagePipeline(
        transformer=transformer,
        scheduler=scheduler or _flow(shift=3.0),
        vae=_kl(depth=2, latent_channels=16, scaling_factor=0.36, shift_factor=0.12),
        text_encoder=text.qwen3(),
        tokenizer=text.byte_tokenizer(),
    )


def ltx(scheduler: Any = None) -> LTXPipeline:
    """LTX-Video with flow-matching Euler."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    _amplify(transformer, torch.nn.Linear)
    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return LTXPipeline(
        transformer=transformer,
        scheduler=scheduler or _flow(),
        vae=vae,
        text_encoder=text.t5_encoder(),
        tokenizer=text.t5_tokenizer(),
    )


def wan(scheduler: Any = None) -> WanPipeline:
    """Wan with flow-matching Euler."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    _amplify(transformer, torch.nn.Linear)
    _amplify(vae, torch.nn.Conv2d, torch.nn.Conv3d)
    return WanPipeline(
        transformer=transformer,
        transformer_2=None,
        scheduler=scheduler or _flow(shift=7.0),
        vae=vae,
        text_encoder=text.umt5_encoder(),
        tokenizer=text.t5_tokenizer(),
    )


def dit(scheduler: Any = None) -> DiTPipeline:
    """The class-conditional DiT with DDIM."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return DiTPipeline(
        transformer=transformer, scheduler=scheduler or DDIMScheduler(), vae=_kl(depth=2)
    )
