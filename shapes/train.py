"""Makes the bundled checkpoints anew: `python -m shapes.train STAGE --out DIR`.

Stages: tokenizers, vae, data, clip, sd, flux, in this order, or all of them. DIR then has
`shapes-clip`, `shapes-sd` and `shapes-flux`, which load with `from_pretrained`. On one large GPU
all takes about half an hour; `--smoke` runs everything in tiny in a minute on any CPU.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shapes.architectures import (
    BUNDLED,
    TINY,
    Scale,
    build_clip,
    build_ddim,
    build_flow_matching,
    build_t5,
    build_text_encoder,
    build_transformer,
    build_unet,
    build_vae,
)
from shapes.build_tokenizers import build_tokenizers
from shapes.dataset import (
    draw_images,
    draw_scenes,
    load_examples,
    make_examples,
    needed,
    save_examples,
)
from shapes.fitting import Course, Workshop, fit, open_workshop
from shapes.objectives import clip_loss, clip_pixels, flux_loss, sd_loss, vae_loss
from shapes.world import SIZE
from utils import UserError

EMPTY_SHARE = 0.1  # of captions, so that guidance has something to guide away from


@dataclass(frozen=True)
class Plan:
    """How much of everything; the defaults made the bundled weights."""

    scale: Scale = BUNDLED
    scenes: int = 160_000
    decoded: int = 40_000  # of the scenes, as the decoder draws them, for the verifier
    at_once: int = 800  # images through the autoencoder
    vae_batch: int = 96
    clip_batch: int = 768
    sd_batch: int = 768
    flux_batch: int = 1024
    vae_seconds: float = 110
    clip_seconds: float = 600
    sd_seconds: float = 745
    flux_seconds: float = 470

    def lasting(self, seconds: float) -> Plan:
        """The same with so many seconds for each network."""
        times = dict.fromkeys(
            ("vae_seconds", "clip_seconds", "sd_seconds", "flux_seconds"), seconds
        )
        return Plan(**{**vars(self), **times})


SMOKE = Plan(
    scale=TINY,
    scenes=64,
    decoded=32,
    at_once=16,
    vae_batch=4,
    clip_batch=8,
    sd_batch=16,
    flux_batch=16,
).lasting(3)


def make_tokenizers(shop: Workshop, plan: Plan) -> None:
    build_tokenizers(shop.out)


def make_data(shop: Workshop, plan: Plan) -> None:
    examples = make_examples(draw_scenes(plan.scenes), shop, plan.at_once)
    save_examples(examples, shop.out / "data.pt")
    deviation = float(examples.latents.float().std())
    print(f"data: {len(examples)} scenes, latents' standard deviation {deviation:.3f}")


def train_vae(shop: Workshop, plan: Plan) -> None:
    """The autoencoder, from renderings alone; its latents' scale is measured at the end."""
    vae = build_vae(plan.scale).to(shop.device)
    batch = draw_scenes(plan.scenes).batch.to(shop.device)
    objective = shop.compile(vae_loss)

    def images() -> Tensor:
        return draw_images(batch[shop.integers(len(batch), plan.vae_batch)], shop)

    def loss() -> Tensor:
        noise = shop.normal(plan.vae_batch, 4, SIZE // 8, SIZE // 8)
        return objective(vae, images(), noise)

    fit(Course("vae", plan.vae_seconds, rate=1e-3, weight_decay=0), [vae], loss, shop)
    with torch.no_grad():
        latents = [vae.encode(images()).latent_dist.mean for _ in range(10)]
        originals = images()
        rebuilt = vae.decode(vae.encode(originals).latent_dist.mean).sample.clamp(-1, 1)
    vae.register_to_config(scaling_factor=float(1 / torch.cat(latents).std()))
    vae.save_pretrained(shop.out / "vae")
    error = ((rebuilt - originals) / 2).pow(2).mean()
    print(f"vae: PSNR {float(-10 * error.log10()):.1f} dB")


def train_clip(shop: Workshop, plan: Plan) -> None:
    """The verifier, half on renderings and half on what the decoder makes of noisy latents."""
    examples = load_examples(shop)
    model = build_clip(plan.scale).to(shop.device)
    decoded = _decoded(examples.latents[: plan.decoded], shop, plan)
    objective = shop.compile(clip_loss)
    half = plan.clip_batch // 2

    def loss() -> Tensor:
        fresh, old = shop.integers(len(examples), half), shop.integers(len(decoded), half)
        drawn = [draw_images(examples.batch[fresh], shop), decoded[old].float() / 127.5 - 1]
        images, rows = torch.cat(drawn), torch.cat([fresh, old])
        level = shop.uniform(len(images), 1, 1, 1) * 0.1
        pixels = clip_pixels(images + level * shop.normal(*images.shape))
        return objective(model, pixels, examples.clip[rows].long(), examples.negatives[rows].long())

    fit(Course("clip", plan.clip_seconds, rate=1e-3, weight_decay=0.05), [model], loss, shop)
    save_clip(model, shop.out)


@torch.no_grad()
def _decoded(latents: Tensor, shop: Workshop, plan: Plan) -> Tensor:
    """Pictures of latents that are up to half noise, in 8 bits: [n, 3, SIZE, SIZE]."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(needed(shop.out / "vae", "vae")).to(shop.device).eval()
    pictures = []
    for part in latents.split(plan.at_once):
        noisy = part.float() + shop.normal(*part.shape) * shop.uniform(len(part), 1, 1, 1) * 0.5
        with shop.half_precision():
            images = vae.decode(noisy / vae.config.scaling_factor).sample
        pictures.append(((images.float().clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(pictures)


def train_sd(shop: Workshop, plan: Plan) -> None:
    """The UNet with its text encoder, to predict noise."""
    examples = load_examples(shop)
    unet, text = build_unet(plan.scale).to(shop.device), build_text_encoder(plan.scale)
    text, scheduler = text.to(shop.device), build_ddim()
    signal = scheduler.alphas_cumprod.to(shop.device)
    objective = shop.compile(sd_loss)

    def loss() -> Tensor:
        rows = shop.integers(len(examples), plan.sd_batch)
        latents = examples.latents[rows].float()
        empty = shop.uniform(plan.sd_batch, 1) < EMPTY_SHARE
        tokens = torch.where(empty, examples.clip_empty, examples.clip[rows]).long()
        step = shop.integers(len(signal), plan.sd_batch)
        return objective(unet, text, signal, latents, tokens, step, shop.normal(*latents.shape))

    fit(Course("sd", plan.sd_seconds, rate=1e-3), [unet, text], loss, shop)
    save_sd(unet, text, scheduler, shop.out)


def train_flux(shop: Workshop, plan: Plan) -> None:
    """The transformer with both text encoders, by flow matching."""
    examples = load_examples(shop)
    transformer, clip, t5 = (
        build(plan.scale).to(shop.device)
        for build in (build_transformer, build_text_encoder, build_t5)
    )
    running = shop.compile(transformer)

    def loss() -> Tensor:
        rows = shop.integers(len(examples), plan.flux_batch)
        latents = examples.latents[rows].float()
        empty = shop.uniform(plan.flux_batch, 1) < EMPTY_SHARE
        clip_tokens = torch.where(empty, examples.clip_empty, examples.clip[rows]).long()
        t5_tokens = torch.where(empty, examples.t5_empty, examples.t5[rows]).long()
        # Logit-normal, with more weight on the noisy side where layouts are decided.
        sigma = torch.sigmoid(shop.normal(plan.flux_batch) + 0.4)
        noise = shop.normal(*latents.shape)
        return flux_loss(running, (clip, t5), latents, (clip_tokens, t5_tokens), sigma, noise)

    fit(Course("flux", plan.flux_seconds, rate=8e-4), [transformer, clip, t5], loss, shop)
    save_flux(transformer, clip, t5, shop.out)


def _half(network: torch.nn.Module) -> Any:
    """A copy as it is published: 16 bits, on the CPU."""
    return copy.deepcopy(network).cpu().half()


def _published_vae(out: Path) -> Any:
    """The autoencoder in 16 bits, rebuilt, as a loaded one would publish the path it came from."""
    from diffusers import AutoencoderKL

    trained = AutoencoderKL.from_pretrained(out / "vae")
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(out / "vae"))
    vae.load_state_dict(trained.state_dict())
    return vae.half()


def save_clip(model: Any, out: Path) -> None:
    """The verifier's folder, with a processor that resizes to the world's images."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    _half(model).save_pretrained(out / "shapes-clip")
    CLIPProcessor(processor, tokenizer).save_pretrained(out / "shapes-clip")


def save_sd(unet: Any, text: Any, scheduler: Any, out: Path) -> None:
    """The complete Stable Diffusion pipeline's folder."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    StableDiffusionPipeline(
        vae=_published_vae(out),
        text_encoder=_half(text),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        unet=_half(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out / "shapes-sd")


def save_flux(transformer: Any, clip: Any, t5: Any, out: Path) -> None:
    """The complete FLUX pipeline's folder."""
    from diffusers import FluxPipeline
    from transformers import CLIPTokenizer, T5Tokenizer

    FluxPipeline(
        scheduler=build_flow_matching(),
        vae=_published_vae(out),
        text_encoder=_half(clip),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        text_encoder_2=_half(t5),
        tokenizer_2=T5Tokenizer.from_pretrained(out / "tokenizer_2"),
        transformer=_half(transformer),
    ).save_pretrained(out / "shapes-flux")


STAGES: dict[str, Callable[[Workshop, Plan], None]] = {
    "tokenizers": make_tokenizers,
    "vae": train_vae,
    "data": make_data,
    "clip": train_clip,
    "sd": train_sd,
    "flux": train_flux,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="where everything goes")
    parser.add_argument("--seconds", type=float, help="training time of each network")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, three seconds each")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    args = parser.parse_args(argv)
    plan = SMOKE if args.smoke else Plan()
    if args.seconds is not None:
        plan = plan.lasting(args.seconds)
    for stage in STAGES if args.stage == "all" else [args.stage]:
        # A workshop each, so that a stage does the same alone as after the others.
        shop = open_workshop(args.out, compiled=not (args.no_compile or args.smoke))
        try:
            STAGES[stage](shop, plan)
        except UserError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
