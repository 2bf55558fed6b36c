"""Images per second of the local verifiers, in batches beside one by one.

    python -m benchmarks.verifiers --images 64

clip and pickscore run on the bundled CLIP. hpsv2, image_reward and laion_aesthetic run on random
weights of the originals' layout and a small size, made in a temporary folder: their rows compare
batches with single images, and say nothing of the speed of the published checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shapes.world import draw_scene, render
from verifiers import build_verifier, verifier_class
from verifiers.base import Chosen, Item

CLIP = "shapes/models/shapes-clip"
CLASSES = {
    "clip": "verifiers.clip:ClipScore",
    "pickscore": "verifiers.pickscore:PickScore",
    "hpsv2": "verifiers.hpsv2:Hpsv2",
    "image_reward": "verifiers.image_reward:ImageReward",
    "laion_aesthetic": "verifiers.aesthetic:LaionAesthetic",
    "contrast": "verifiers.contrast:Contrast",
    "shapes_oracle": "verifiers.shapes_oracle:ShapesOracle",
}
BATCH = 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "ring", "star",
         "square", "circle", "two", "on", "black", "background"]  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tower:
    """The size of a transformer: width, layers, width of its MLP."""

    width: int
    layers: int
    inner: int


def linear_shapes(name: str, wide: int, high: int) -> Shapes:
    return {f"{name}.weight": (high, wide), f"{name}.bias": (high,)}


def norm_shapes(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def hpsv2_shapes(
    vision: Tower = Tower(1280, 32, 5120),
    text: Tower = Tower(1024, 24, 4096),
    *,
    patch: int = 14,
    places: int = 257,
    vocabulary: int = 49408,
    context: int = 77,
    embedding: int = 1024,
) -> Shapes:
    """Every tensor of open_clip's CLIP; by default of ViT-H/14, which HPSv2 is."""
    shapes: Shapes = {
        "positional_embedding": (context, text.width),
        "text_projection": (text.width, embedding),
        "logit_scale": (),
        "visual.class_embedding": (vision.width,),
        "visual.positional_embedding": (places, vision.width),
        "visual.proj": (vision.width, embedding),
        "visual.conv1.weight": (vision.width, 3, patch, patch),
        "token_embedding.weight": (vocabulary, text.width),
        **norm_shapes("visual.ln_pre", vision.width),
        **norm_shapes("visual.ln_post", vision.width),
        **norm_shapes("ln_final", text.width),
    }
    for prefix, tower in (("visual.transformer", vision), ("transformer", text)):
        for layer in range(tower.layers):
            at = f"{prefix}.resblocks.{layer}"
            shapes[f"{at}.attn.in_proj_weight"] = (3 * tower.width, tower.width)
            shapes[f"{at}.attn.in_proj_bias"] = (3 * tower.width,)
            shapes |= linear_shapes(f"{at}.attn.out_proj", tower.width, tower.width)
            shapes |= linear_shapes(f"{at}.mlp.c_fc", tower.width, tower.inner)
            shapes |= linear_shapes(f"{at}.mlp.c_proj", tower.inner, tower.width)
            shapes |= norm_shapes(f"{at}.ln_1", tower.width)
            shapes |= norm_shapes(f"{at}.ln_2", tower.width)
    return shapes


def image_reward_shapes(
    vision: Tower = Tower(1024, 24, 4096),
    text: Tower = Tower(768, 12, 3072),
    *,
    patch: int = 16,
    places: int = 197,
    vocabulary: int = 30524,
    context: int = 512,
) -> Shapes:
    """Every tensor of ImageReward.pt; by default in its own size."""
    eye, mouth = "blip.visual_encoder", "blip.text_encoder"
    shapes: Shapes = {
        f"{eye}.cls_token": (1, 1, vision.width),
        f"{eye}.pos_embed": (1, places, vision.width),
        f"{eye}.patch_embed.proj.weight": (vision.width, 3, patch, patch),
        f"{eye}.patch_embed.proj.bias": (vision.width,),
        **norm_shapes(f"{eye}.norm", vision.width),
        f"{mouth}.embeddings.position_ids": (1, context),
        f"{mouth}.embeddings.word_embeddings.weight": (vocabulary, text.width),
        f"{mouth}.embeddings.position_embeddings.weight": (context, text.width),
        **norm_shapes(f"{mouth}.embeddings.LayerNorm", text.width),
        **linear_shapes("blip.vision_proj", vision.width, 256),
        **linear_shapes("blip.text_proj", text.width, 256),
        **head_shapes(text.width, "mlp."),
    }
    for layer in range(vision.layers):
        at = f"{eye}.blocks.{layer}"
        shapes |= norm_shapes(f"{at}.norm1", vision.width)
        shapes |= norm_shapes(f"{at}.norm2", vision.width)
        shapes |= linear_shapes(f"{at}.attn.qkv", vision.width, 3 * vision.width)
        shapes |= linear_shapes(f"{at}.attn.proj", vision.width, vision.width)
        shapes |= linear_shapes(f"{at}.mlp.fc1", vision.width, vision.inner)
        shapes |= linear_shapes(f"{at}.mlp.fc2", vision.inner, vision.width)
    for layer in range(text.layers):
        at = f"{mouth}.encoder.layer.{layer}"
        for attention, seen in (("attention", text.width), ("crossattention", vision.width)):
            shapes |= linear_shapes(f"{at}.{attention}.self.query", text.width, text.width)
            shapes |= linear_shapes(f"{at}.{attention}.self.key", seen, text.width)
            shapes |= linear_shapes(f"{at}.{attention}.self.value", seen, text.width)
            shapes |= linear_shapes(f"{at}.{attention}.output.dense", text.width, text.width)
            shapes |= norm_shapes(f"{at}.{attention}.output.LayerNorm", text.width)
        shapes |= linear_shapes(f"{at}.intermediate.dense", text.width, text.inner)
        shapes |= linear_shapes(f"{at}.output.dense", text.inner, text.width)
        shapes |= norm_shapes(f"{at}.output.LayerNorm", text.width)
    return shapes


def head_shapes(width: int = 768, prefix: str = "") -> Shapes:
    """Every tensor of a score head; the numbers left out are dropout."""
    widths = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    shapes: Shapes = {}
    for number, (wide, high) in widths.items():
        shapes |= linear_shapes(f"{prefix}layers.{number}", wide, high)
    return shapes


def random_tensors(shapes: Shapes) -> dict[str, Tensor]:
    """Weights that let a signal through: matrices of norm about 1, layer norms near 1."""
    light = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=light) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        + (1.0 if "norm" in name.lower() or ".ln_" in name else 0.0) * name.endswith("weight")
        for name, shape in shapes.items()
    }


def small_options(folder: Path) -> dict[str, dict[str, Any]]:
    """Options for each verifier; small random checkpoints and a tokenizer are put into `folder`."""
    from transformers import BertTokenizer

    small = Tower(64, 2, 128)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    hps = hpsv2_shapes(small, small, places=17, vocabulary=666, embedding=32)
    reward = image_reward_shapes(Tower(128, 2, 256), small, places=17, vocabulary=64, context=40)
    torch.save({"state_dict": random_tensors(hps)}, folder / "HPS_v2.1_compressed.pt")
    torch.save(random_tensors(reward), folder / "ImageReward.pt")
    torch.save(random_tensors(head_shapes(128)), folder / "aesthetic-model.pth")
    return {
        "clip": {"model_name": CLIP},
        "pickscore": {"model_name": CLIP},
        "hpsv2": {"model_name": str(folder), "tokenizer_name": CLIP},
        "image_reward": {"model_name": str(folder), "tokenizer_name": str(folder / "bert")},
        "laion_aesthetic": {"model_name": CLIP, "head_name": str(folder)},
        "contrast": {},
        "shapes_oracle": {},
    }


def loaded(name: str, options: Mapping[str, Any]) -> Chosen:
    """A verifier ready to score, without a word on the way."""
    path = CLASSES[name]
    built = build_verifier(path, verifier_class(path).metrics[0], options)
    with contextlib.redirect_stderr(io.StringIO()):
        built.load("cpu")
    return built


def scenes(n: int) -> list[Item]:
    """Pictures of the shapes world with their captions."""
    rng, light = random.Random(0), torch.Generator().manual_seed(0)
    drawn = [draw_scene(rng) for _ in range(n)]
    pixels = ((render(drawn, generator=light) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [
        Item(Image.fromarray(image.numpy()), str(scene.claim))
        for scene, image in zip(drawn, pixels, strict=True)
    ]


def speed(verifier: Chosen, items: Sequence[Item], batch: int, repeats: int) -> float:
    """Images per second, the fastest of the repeats, after a first one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        for at in range(0, len(items), batch):
            verifier.score(items[at : at + batch])
        seconds.append(time.perf_counter() - begin)
    return len(items) / min(seconds[1:])


def table(images: int, repeats: int) -> str:
    """A line a verifier."""
    items = scenes(images)
    lines = [f"{'images/s':<17}{'one by one':>12}{f'in {BATCH}s':>12}{'ratio':>8}"]
    with tempfile.TemporaryDirectory() as folder:
        for name, options in small_options(Path(folder)).items():
            verifier = loaded(name, options)
            single, batched = (speed(verifier, items, n, repeats) for n in (1, BATCH))
            lines.append(f"{name:<17}{single:>12.1f}{batched:>12.1f}{batched / single:>8.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--images", type=int, default=64, help="images a turn (default 64)")
    flags.add_argument("--repeats", type=int, default=3, help="turns; the fastest counts")
    flags.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    flags.add_argument("--quick", action="store_true", help="see that it runs: 4 images, one turn")
    args = flags.parse_args(argv)
    torch.set_num_threads(args.threads)
    images, repeats = (4, 1) if args.quick else (args.images, args.repeats)
    print(f"{images} images of 128 x 128, {args.threads} thread(s), torch {torch.__version__}")
    print(table(images, repeats))


if __name__ == "__main__":
    main()
