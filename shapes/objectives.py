"""What each network of the shapes world is trained to do: losses as functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# CLIP's own normalization, so that the stock image processor fits.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def vae_loss(vae: Any, images: Tensor, noise: Tensor) -> Tensor:
    """Rebuild images [n, 3, h, w] from latents sampled with noise [n, 4, h/8, w/8]."""
    posterior = vae.encode(images).latent_dist
    rebuilt = vae.decode(posterior.mean + posterior.std * noise).sample
    distance = (rebuilt - images).abs().mean() + 2 * functional.mse_loss(rebuilt, images)
    return distance + 3e-6 * posterior.kl().float().mean()


def clip_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as CLIP sees them: [n, 3, h, w]."""
    mean = torch.tensor(CLIP_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=images.device)[:, None, None]
    return ((images * 0.5 + 0.5).clamp(0, 1) - mean) / std


def clip_loss(model: Any, pixels: Tensor, captions: Tensor, negatives: Tensor) -> Tensor:
    """Tell each image's caption from the batch's others and from its own hard negatives.

    pixels [n, 3, h, w]; captions [n, tokens]; negatives [n, k, tokens].
    """
    seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    seen = functional.normalize(seen, dim=-1)
    said, contrary = _embedded(model, captions), _embedded(model, negatives.flatten(0, 1))
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * seen @ said.T  # [image, caption]
    # The same caption twice in a batch is no contradiction.
    diagonal = torch.eye(len(captions), dtype=torch.bool, device=captions.device)
    same = (captions[:, None] == captions[None]).all(-1) & ~diagonal
    logits = logits.masked_fill(same, -1e4)
    contrary = contrary.unflatten(0, negatives.shape[:2])
    hard = scale * torch.einsum("nd,nkd->nk", seen, contrary)
    target = torch.arange(len(captions), device=captions.device)
    over_captions = functional.cross_entropy(torch.cat([logits, hard], 1), target)
    over_images = functional.cross_entropy(logits.T, target)
    own = torch.cat([logits.diagonal()[:, None], hard], 1)
    over_negatives = functional.cross_entropy(own, torch.zeros_like(target))
    return (over_captions + over_images) / 2 + over_negatives


def _embedded(model: Any, tokens: Tensor) -> Tensor:
    """Unit embeddings of captions: [n, projection]."""
    pooled = model.text_model(input_ids=tokens).pooler_output
    return functional.normalize(model.text_projection(pooled), dim=-1)


def sd_loss(
    unet: Any,
    text: Any,
    signal: Tensor,
    latents: Tensor,
    tokens: Tensor,
    step: Tensor,
    noise: Tensor,
) -> Tensor:
    """Predict the noise in latents [n, 4, h, w] at steps [n]; signal: alpha bar of all steps."""
    alpha = signal[step][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    hidden = text(input_ids=tokens).last_hidden_state
    return functional.mse_loss(unet(noisy, step, hidden).sample.float(), noise)


def flux_loss(
    transformer: Any,
    encoders: tuple[Any, Any],
    latents: Tensor,
    tokens: tuple[Tensor, Tensor],
    sigma: Tensor,
    noise: Tensor,
) -> Tensor:
    """Predict the velocity noise - latents at x = (1 - sigma) latents + sigma noise.

    encoders and tokens are CLIP's and T5's; latents and noise [n, 4, h, w]; sigma [n].
    """
    (clip, t5), (clip_tokens, t5_tokens) = encoders, tokens
    level = sigma[:, None, None, None]
    noisy = (1 - level) * latents + level * noise
    velocity = transformer(
        hidden_states=packed(noisy),
        timestep=sigma,
        guidance=None,
        pooled_projections=clip(input_ids=clip_tokens).pooler_output,
        encoder_hidden_states=t5(input_ids=t5_tokens).last_hidden_state,
        txt_ids=torch.zeros(t5_tokens.shape[1], 3, device=latents.device),
        img_ids=positions(*(side // 2 for side in latents.shape[2:])).to(latents.device),
    ).sample
    return functional.mse_loss(velocity.float(), packed(noise - latents))


def packed(latents: Tensor) -> Tensor:
    """FLUX's tokens, one for each 2 x 2 patch: [n, h/2 * w/2, 4 * channels]."""
    n, channels, high, wide = latents.shape
    patches = latents.view(n, channels, high // 2, 2, wide // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, (high // 2) * (wide // 2), channels * 4)


def positions(high: int, wide: int) -> Tensor:
    """Row and column of each token, as FLUX's rotary embedding wants them: [high * wide, 3]."""
    places = torch.zeros(high, wide, 3)
    places[..., 1] = torch.arange(high)[:, None]
    places[..., 2] = torch.arange(wide)
    return places.reshape(high * wide, 3)
