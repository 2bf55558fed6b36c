"""What the networks of the shapes world learn from: scenes, their tokens, and their latents."""

from __future__ import annotations

import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shapes.build_tokenizers import CLIP_LENGTH, T5_LENGTH
from shapes.fitting import Workshop
from shapes.world import Batch, draw_light, draw_scene, pack, paint
from utils import UserError

PARTS = 16  # scenes are drawn in so many parts, however many processors there are
FIRST_SEED = 1000


@dataclass(frozen=True)
class Scenes:
    """Many scenes and their texts."""

    batch: Batch
    captions: list[str]
    negatives: list[str]  # three a scene, one scene after another


@dataclass(frozen=True)
class Examples:
    """Scenes as tokens and latents, n of them."""

    batch: Batch
    clip: Tensor  # [n, CLIP_LENGTH]
    negatives: Tensor  # [n, 3, CLIP_LENGTH]
    t5: Tensor  # [n, T5_LENGTH]
    clip_empty: Tensor  # [1, CLIP_LENGTH], of the empty caption
    t5_empty: Tensor  # [1, T5_LENGTH]
    latents: Tensor  # [n, 4, 16, 16], scaled to unit variance

    def __len__(self) -> int:
        return len(self.clip)


def draw_scenes(count: int) -> Scenes:
    """The same scenes on any machine; large numbers are drawn by all processors."""
    parts = PARTS if count >= 1000 * PARTS else 1
    jobs = [(FIRST_SEED + part, len(range(part, count, parts))) for part in range(parts)]
    if parts == 1:
        drawn = [_draw_part(job) for job in jobs]
    else:
        # Spawned, as a forked copy of a process with threads can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(parts, os.cpu_count() or 1), context) as pool:
            drawn = list(pool.map(_draw_part, jobs))
    fields = ("shapes", "colors", "geometry", "backgrounds")
    batch = Batch(*(torch.cat([getattr(part.batch, field) for part in drawn]) for field in fields))
    captions = [text for part in drawn for text in part.captions]
    return Scenes(batch, captions, [text for part in drawn for text in part.negatives])


def _draw_part(job: tuple[int, int]) -> Scenes:
    seed, count = job
    rng = random.Random(seed)
    scenes = [draw_scene(rng) for _ in range(count)]
    negatives = [text for scene in scenes for text in scene.negatives]
    return Scenes(pack(scenes), [scene.caption for scene in scenes], negatives)


def make_examples(scenes: Scenes, shop: Workshop, at_once: int) -> Examples:
    """Tokens and latents of scenes, by the tokenizers and the autoencoder in the workshop."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer, T5Tokenizer

    clip = CLIPTokenizer.from_pretrained(needed(shop.out / "tokenizer", "tokenizers"))
    t5 = T5Tokenizer.from_pretrained(needed(shop.out / "tokenizer_2", "tokenizers"))
    vae = AutoencoderKL.from_pretrained(needed(shop.out / "vae", "vae")).to(shop.device).eval()
    return Examples(
        batch=scenes.batch,
        clip=_tokens(clip, scenes.captions, CLIP_LENGTH),
        negatives=_tokens(clip, scenes.negatives, CLIP_LENGTH).unflatten(0, (-1, 3)),
        t5=_tokens(t5, scenes.captions, T5_LENGTH),
        clip_empty=_tokens(clip, [""], CLIP_LENGTH),
        t5_empty=_tokens(t5, [""], T5_LENGTH),
        latents=_latents(vae, scenes.batch, shop, at_once),
    )


def _tokens(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    """Tokens [len(texts), length] in 16 bits: 160,000 captions have to fit beside the networks."""
    different = list(dict.fromkeys(texts))
    places = {text: at for at, text in enumerate(different)}
    encoded = tokenizer(
        different, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return encoded.input_ids.short()[torch.tensor([places[text] for text in texts])]


@torch.no_grad()
def _latents(vae: Any, batch: Batch, shop: Workshop, at_once: int) -> Tensor:
    """One rendering of each scene, encoded: [n, 4, 16, 16]."""
    parts = []
    for start in range(0, len(batch), at_once):
        images = draw_images(batch[slice(start, start + at_once)].to(shop.device), shop)
        with shop.half_precision():
            mean = vae.encode(images).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


def draw_images(batch: Batch, shop: Workshop) -> Tensor:
    """Renderings of a batch on its device, in [-1, 1]: [n, 3, SIZE, SIZE]."""
    return paint(batch, draw_light(len(batch), shop.generator, shop.device))


def save_examples(examples: Examples, path: Path) -> None:
    torch.save({**vars(examples), "batch": vars(examples.batch)}, path)


def load_examples(shop: Workshop) -> Examples:
    """What the `data` stage left, on the device."""
    path = needed(shop.out / "data.pt", "data")
    saved = torch.load(path, map_location=shop.device)
    return Examples(**{**saved, "batch": Batch(**saved["batch"])})


def needed(path: Path, stage: str) -> Path:
    """The path, or an error that names the stage that makes it."""
    if not path.exists():
        raise UserError(f"There is no {path}: run the stage '{stage}' first.")
    return path
