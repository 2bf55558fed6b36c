"""The preference models against references written here, their key maps at full size, and HTTP.

The references are the originals' architectures in plain torch, with the originals' names: open_clip
for HPSv2, timm's ViT and BLIP's BERT for ImageReward. Their random weights are saved as the
originals save theirs, and loaded as a user's checkpoint is.
"""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import verifiers as bench
from utils import UserError
from verifiers import build_verifier, verifier_class
from verifiers import http as http_scorer
from verifiers.aesthetic import LaionAesthetic
from verifiers.base import Chosen, DifferentiableVerifier, Item, Score
from verifiers.checkpoints import linear_head, read_tensors
from verifiers.clip import ClipScore
from verifiers.contrast import Contrast
from verifiers.hpsv2 import Hpsv2, clip_config, hf_state_dict
from verifiers.http import HttpScorer
from verifiers.image_reward import (
    ImageReward,
    text_config,
    text_state_dict,
    vision_config,
    vision_state_dict,
)
from verifiers.pickscore import PROCESSOR, PickScore
from verifiers.pixels import TOLERANCE, as_processor, cropped, of_image, padded

CLIP = bench.CLIP
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
PROMPTS = ["a red square", "two green rings on a black background", "a blue star"]
MODELS = ("clip", "pickscore", "hpsv2", "image_reward", "laion_aesthetic")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """The hardest picture to resize alike: every pixel on its own."""
    light = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (height, width, 3), generator=light, dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def pictures(n: int) -> list[Image.Image]:
    images = [Image.new("RGB", (128, 128), "gray") for _ in range(n)]
    for i, image in enumerate(images):
        image.paste(["red", "green", "blue", "white"][i % 4], (10 + 9 * i, 20, 70 + 9 * i, 90))
    return images


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return bench.small_options(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def models(options: dict[str, dict[str, Any]]) -> dict[str, Chosen]:
    return {name: bench.loaded(name, options[name]) for name in (*MODELS, "contrast")}


@pytest.fixture(params=(*MODELS, "contrast"))
def verifier(request: pytest.FixtureRequest, models: dict[str, Chosen]) -> Chosen:
    return models[request.param]


def climbable(verifier: Chosen) -> Any:
    """The verifier itself, without what shows it keyframes."""
    return verifier.verifier.verifier


def close_to(values: Sequence[float], verifier: Chosen) -> Any:
    """Within 1e-5, what processors differ by; of the cosine, where a score is a multiple of it."""
    scaled = isinstance(climbable(verifier), PickScore)
    scale = float(climbable(verifier)._clip.model.logit_scale.exp()) if scaled else 1.0
    return pytest.approx(values, rel=0, abs=1e-5 * scale)


# The contract -----------------------------------------------------------------------------------


def test_order_is_kept_and_every_metric_given(verifier: Chosen) -> None:
    items = [Item(image, prompt) for image, prompt in zip(pictures(3), PROMPTS, strict=True)]
    scores = verifier.score(items)
    assert len({score.value for score in scores}) == 3
    backwards = verifier.score(items[::-1])[::-1]
    assert [s.value for s in scores] == close_to([s.value for s in backwards], verifier)
    for score in scores:
        assert score.status == "ok" and set(score.aspects) == set(verifier.verifier.metrics)


def test_a_batch_scores_as_its_images_do_alone(verifier: Chosen) -> None:
    items = [Item(image, PROMPTS[i % 3]) for i, image in enumerate(pictures(5))]
    together = [score.value for score in verifier.score(items)]
    alone = [verifier.score([item])[0].value for item in items]
    assert together == close_to(alone, verifier)


def test_batches_of_any_size_change_nothing(options: dict[str, dict[str, Any]]) -> None:
    items = [Item(image, "a red square") for image in pictures(5)]
    for name in MODELS:
        whole, pairs = (bench.loaded(name, {**options[name], "batch_size": n}) for n in (16, 2))
        expected = close_to([score.value for score in pairs.score(items)], pairs)
        assert [score.value for score in whole.score(items)] == expected, name


@pytest.mark.parametrize("prompt", ["", "word " * 2000, "猫 🎨 \x00", "a\n\t", "lone \udcff"])
def test_any_prompt_gets_an_answer(verifier: Chosen, prompt: str) -> None:
    (score,) = verifier.score([Item(pictures(1)[0], prompt)])
    assert score.status == "ok" and math.isfinite(score.value)


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (300, 20), (3, 400), (512, 512)])
def test_any_image_size_gets_an_answer(verifier: Chosen, size: tuple[int, int]) -> None:
    (score,) = verifier.score([Item(noise(*size), "a red circle")])
    assert score.status == "ok" and math.isfinite(score.value)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_image_mode_gets_an_answer(verifier: Chosen, mode: str) -> None:
    (score,) = verifier.score([Item(pictures(1)[0].convert(mode), "a red circle")])
    assert score.status == "ok"


def test_a_broken_image_costs_its_own_score_only(verifier: Chosen) -> None:
    whole = [Item(image, "a red square") for image in pictures(2)]
    first, broken, last = verifier.score([whole[0], Item(None, "a red square"), whole[1]])
    assert broken.status == "invalid_image" and math.isnan(broken.value) and broken.explanation
    expected = [score.value for score in verifier.score(whole)]
    assert [first.value, last.value] == close_to(expected, verifier)


def test_nothing_to_score_is_no_error(verifier: Chosen) -> None:
    assert verifier.score([]) == []


# CLIP and PickScore -----------------------------------------------------------------------------


def test_clip_and_pickscore_are_the_logits_of_clips_own_forward(models: dict[str, Chosen]) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()
    images = pictures(3)
    tokens = AutoTokenizer.from_pretrained(CLIP)(PROMPTS, padding=True, return_tensors="pt")
    made = CLIPImageProcessorPil.from_pretrained(CLIP)(images=images, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=made.pixel_values).logits_per_image.diag()
        cosines = logits / model.logit_scale.exp()
    items = [Item(image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert [s.value for s in models["pickscore"].score(items)] == pytest.approx(
        logits.tolist(), rel=1e-6
    )
    assert [s.value for s in models["clip"].score(items)] == pytest.approx(
        cosines.tolist(), abs=1e-6
    )


def test_pickscore_takes_the_models_own_processor_where_it_has_one(tmp_path: Path) -> None:
    assert PickScore(model_name=CLIP)._processor() == CLIP
    assert PickScore()._processor() == PROCESSOR
    assert PickScore(model_name=str(tmp_path))._processor() == PROCESSOR
    assert PickScore(model_name=str(tmp_path), processor_name=CLIP)._processor() == CLIP


# HPSv2 ------------------------------------------------------------------------------------------


class OpenClipBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, inner))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(inner, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClipTransformer(nn.Module):
    def __init__(self, width: int, layers: int, inner: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(OpenClipBlock(width, inner, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class OpenClipVision(nn.Module):
    def __init__(self, tower: bench.Tower, heads: int, patch: int, places: int, out: int) -> None:
        super().__init__()
        width = tower.width
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(places, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = OpenClipTransformer(width, tower.layers, tower.inner, heads)
        self.proj = nn.Parameter(torch.zeros(width, out))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenClip(nn.Module):
    def __init__(
        self, vision: bench.Tower, text: bench.Tower, heads: int, patch: int, places: int,
        vocabulary: int, context: int, out: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.visual = OpenClipVision(vision, heads, patch, places, out)
        self.transformer = OpenClipTransformer(text.width, text.layers, text.inner, heads)
        self.token_embedding = nn.Embedding(vocabulary, text.width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.zeros(text.width, out))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        causal = torch.full((context, context), -math.inf).triu_(1)
        self.register_buffer("attn_mask", causal, persistent=False)

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask))
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


SMALL = bench.Tower(64, 2, 128)
WIDE = bench.Tower(128, 2, 256)


def filled(model: nn.Module) -> Any:
    """The model with random weights of a size that lets a signal through."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = {k: v for k, v in bench.random_tensors(shapes).items() if "position_ids" not in k}
    model.load_state_dict(weights, strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def open_clip() -> OpenClip:
    made: OpenClip = filled(OpenClip(WIDE, SMALL, 16, 14, 17, 666, 77, 32))
    return made


@pytest.fixture(scope="module")
def hpsv2(open_clip: OpenClip, tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "state_dict": open_clip.state_dict()}, path)
    return bench.loaded("hpsv2", {"model_name": str(path), "tokenizer_name": CLIP})


def test_open_clips_features_are_those_of_the_mapped_model(
    open_clip: OpenClip, hpsv2: Chosen
) -> None:
    model = climbable(hpsv2)._clip.model
    pixels = torch.randn(3, 3, 56, 56)
    ids = torch.tensor([[664, 5, 7, 9, 665] + [0] * 72, [664, 3, 665] + [0] * 74])
    with torch.no_grad():
        image = model.get_image_features(pixels).pooler_output
        text = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(image, open_clip.visual(pixels), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text, open_clip.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert model.logit_scale == open_clip.logit_scale


@pytest.mark.parametrize("size", [(128, 128), (200, 75), (31, 40), (56, 20)])
def test_hpsv2_is_the_cosine_of_a_padded_picture(
    open_clip: OpenClip, hpsv2: Chosen, size: tuple[int, int]
) -> None:
    from transformers import AutoTokenizer

    image, prompt = noise(*size), PROMPTS[1]
    scale = 56 / max(size)
    width, height = round(size[0] * scale), round(size[1] * scale)
    canvas = Image.new("RGB", (56, 56))  # black, before normalisation
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(small, ((56 - width) // 2, (56 - height) // 2))
    ids = AutoTokenizer.from_pretrained(CLIP)(prompt).input_ids
    tokens = torch.tensor([ids + [0] * (77 - len(ids))])
    with torch.no_grad():
        v, t = open_clip.visual(as_input(canvas)), open_clip.encode_text(tokens)
    expected = float((v @ t.T) / (v.norm() * t.norm()))
    (score,) = hpsv2.score([Item(image, prompt)])
    assert score.value == pytest.approx(expected, abs=1e-6)


def as_input(image: Image.Image) -> Tensor:  # [1, 3, H, W]
    values = torch.tensor(list(image.tobytes()), dtype=torch.float32)
    return ((values.view(image.height, image.width, 3).permute(2, 0, 1) / 255 - MEAN) / STD)[None]


# ImageReward ------------------------------------------------------------------------------------


class VitAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, width))


class VitBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = VitAttention(width, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, tower: bench.Tower, heads: int, patch: int, places: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, tower.width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, tower.width, patch, patch)
        self.blocks = nn.Sequential(
            *(VitBlock(tower.width, tower.inner, heads) for _ in range(tower.layers))
        )
        self.norm = nn.LayerNorm(tower.width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))


class BertAttention(nn.Module):
    """Attention of the text to itself or to the image, with the residual and its norm."""

    def __init__(self, width: int, seen: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self, self.output = nn.Module(), nn.Module()
        self.self.query = nn.Linear(width, width)
        self.self.key, self.self.value = nn.Linear(seen, width), nn.Linear(seen, width)
        self.output.dense = nn.Linear(width, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            project(y).view(n, -1, self.heads, width // self.heads).transpose(1, 2)
            for project, y in (
                (self.self.query, x), (self.self.key, seen), (self.self.value, seen)
            )
        )  # fmt: skip
        weights = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        if mask is not None:
            weights = weights.masked_fill(mask[:, None, None, :] == 0, -math.inf)
        mixed = (weights.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width)
        return self.output.LayerNorm(self.output.dense(mixed) + x)


class BertLayer(nn.Module):
    def __init__(self, tower: bench.Tower, seen: int, heads: int) -> None:
        super().__init__()
        self.attention = BertAttention(tower.width, tower.width, heads)
        self.crossattention = BertAttention(tower.width, seen, heads)
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense = nn.Linear(tower.width, tower.inner)
        self.output.dense = nn.Linear(tower.inner, tower.width)
        self.output.LayerNorm = nn.LayerNorm(tower.width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), seen, None)
        y = self.output.dense(nn.functional.gelu(self.intermediate.dense(x)))
        return self.output.LayerNorm(y + x)


class Bert(nn.Module):
    def __init__(
        self, tower: bench.Tower, seen: int, heads: int, vocabulary: int, context: int
    ) -> None:
        super().__init__()
        self.embeddings, self.encoder = nn.Module(), nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(vocabulary, tower.width)
        self.embeddings.position_embeddings = nn.Embedding(context, tower.width)
        self.embeddings.LayerNorm = nn.LayerNorm(tower.width, eps=1e-12)
        self.embeddings.register_buffer("position_ids", torch.arange(context)[None])
        self.encoder.layer = nn.ModuleList(
            BertLayer(tower, seen, heads) for _ in range(tower.layers)
        )

    def forward(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        at = self.embeddings
        x = at.word_embeddings(ids) + at.position_embeddings(at.position_ids[:, : ids.shape[1]])
        x = at.LayerNorm(x)
        for layer in self.encoder.layer:
            x = layer(x, mask, seen)
        return x


def head(width: int) -> nn.Module:
    """The score head as it was trained, dropout included."""
    model = nn.Module()
    model.layers = nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
    return model


class Blip(nn.Module):
    """ImageReward as published: `blip` and `mlp`."""

    def __init__(self) -> None:
        super().__init__()
        self.blip = nn.Module()
        self.blip.visual_encoder = Vit(WIDE, 2, 16, 17)
        self.blip.text_encoder = Bert(SMALL, WIDE.width, 1, 64, 40)
        self.blip.vision_proj = nn.Linear(WIDE.width, 256)
        self.blip.text_proj = nn.Linear(SMALL.width, 256)
        self.mlp = head(SMALL.width)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        read = self.blip.text_encoder(ids, mask, self.blip.visual_encoder(pixels))
        rewards = self.mlp.layers(read[:, 0])[:, 0]
        return (rewards - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def blip() -> Blip:
    made: Blip = filled(Blip())
    return made


@pytest.fixture(scope="module")
def image_reward(
    blip: Blip, options: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Chosen:
    path = tmp_path_factory.mktemp("reward") / "ImageReward.pt"
    torch.save(blip.state_dict(), path)
    return bench.loaded("image_reward", {**options["image_reward"], "model_name": str(path)})


def test_image_rewards_towers_are_those_of_the_original(blip: Blip, image_reward: Chosen) -> None:
    ours = climbable(image_reward)
    pixels, ids = torch.randn(3, 3, 64, 64), torch.randint(5, 60, (3, 35))
    mask = (torch.arange(35) < torch.tensor([[5], [35], [20]])).long()
    with torch.no_grad():
        seen = ours._vision(pixels).last_hidden_state
        expected = blip.blip.visual_encoder(pixels)
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
        read = ours._text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=expected,
            encoder_attention_mask=torch.ones(3, 17, dtype=torch.long), is_decoder=False,
        ).last_hidden_state  # fmt: skip
        told = blip.blip.text_encoder(ids, mask, expected)
    kept = mask.bool()
    torch.testing.assert_close(read[kept], told[kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (101, 64), (71, 97)])
def test_image_reward_is_the_originals(
    blip: Blip, image_reward: Chosen, size: tuple[int, int]
) -> None:
    """Down to the crop: torchvision's Resize rounds down, its CenterCrop to the nearest."""
    image, (width, height) = noise(*size), size
    if width <= height:
        small = image.resize((64, int(64 * height / width)), Image.Resampling.BICUBIC)
    else:
        small = image.resize((int(64 * width / height), 64), Image.Resampling.BICUBIC)
    left, top = round((small.width - 64) / 2), round((small.height - 64) / 2)
    square = small.crop((left, top, left + 64, top + 64))
    words = {word: place for place, word in enumerate(bench.WORDS)}
    ids = [words[w] for w in ["[CLS]", "a", "red", "square", "[SEP]"]] + [0] * 30
    mask = [1] * 5 + [0] * 30
    with torch.no_grad():
        expected = blip(as_input(square), torch.tensor([ids]), torch.tensor([mask]))
    (score,) = image_reward.score([Item(image, "A red square")])
    assert score.value == pytest.approx(float(expected), abs=1e-5)


# LAION aesthetic and contrast -------------------------------------------------------------------


def test_the_aesthetic_score_is_the_head_on_the_normed_embedding(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel

    mlp = filled(head(128))
    torch.save(mlp.state_dict(), tmp_path / "aesthetic-model.pth")
    verifier = bench.loaded("laion_aesthetic", {"model_name": CLIP, "head_name": str(tmp_path)})
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()
    made = CLIPImageProcessorPil.from_pretrained(CLIP)(images=pictures(3), return_tensors="pt")
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=made.pixel_values).pooler_output
        embedding = model.visual_projection(pooled)
        expected = mlp.layers(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]
    scores = verifier.score([Item(image, "") for image in pictures(3)])
    assert [score.value for score in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_head_for_another_clip_is_refused(tmp_path: Path) -> None:
    torch.save(bench.random_tensors(bench.head_shapes(768)), tmp_path / "head.pth")
    with pytest.raises(UserError, match="wants embeddings of 768"):
        bench.loaded("laion_aesthetic", {"model_name": CLIP, "head_name": f"{tmp_path}/head.pth"})


def test_contrast_is_its_formula() -> None:
    flat, split = Image.new("RGB", (40, 20), "gray"), Image.new("RGB", (40, 20), "black")
    split.paste("white", (0, 0, 20, 20))
    grey = Image.new("RGB", (2, 1))
    grey.putpixel((1, 0), (51, 51, 51))  # 0 and 0.2: variance 0.01, gradient 0.2 / 2
    verifier = Contrast()
    found = verifier.score([Item(image, "") for image in (flat, split, grey)])
    # the split: variance 0.25, cut to 1; one step of 1 among the 39 of each row, none in columns
    expected = [0.0, 0.6 + 0.4 * 5 * (1 / 39) / 2, 0.6 * 0.1 + 0.4 * 5 * 0.1]
    assert [score.value for score in found] == pytest.approx(expected, abs=1e-6)


# Key maps at full size --------------------------------------------------------------------------


def full_size(shapes: bench.Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def assert_loads(build: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        model = build()
    model.load_state_dict(tensors, strict=True, assign=True)  # names and shapes


def test_the_shapes_that_the_key_maps_are_tried_on_are_the_references() -> None:
    """The formulas that give the full-size key lists give the small references' too."""
    reference = {k: tuple(v.shape) for k, v in Blip().state_dict().items()}
    made = bench.image_reward_shapes(WIDE, SMALL, places=17, vocabulary=64, context=40)
    assert made == reference
    clip = OpenClip(WIDE, SMALL, 16, 14, 17, 666, 77, 32)
    reference = {k: tuple(v.shape) for k, v in clip.state_dict().items()}
    assert bench.hpsv2_shapes(WIDE, SMALL, places=17, vocabulary=666, embedding=32) == reference
    assert bench.head_shapes(768) == {k: tuple(v.shape) for k, v in head(768).state_dict().items()}


def test_hpsv2s_key_map_fills_vit_h_14() -> None:
    from transformers import CLIPConfig, CLIPModel

    tensors = hf_state_dict(full_size(bench.hpsv2_shapes()))
    published = CLIPConfig(  # of laion/CLIP-ViT-H-14-laion2B-s32B-b79K
        projection_dim=1024,
        text_config={"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                     "num_hidden_layers": 24, "hidden_act": "gelu", "projection_dim": 1024},
        vision_config={"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16,
                       "num_hidden_layers": 32, "patch_size": 14, "hidden_act": "gelu",
                       "projection_dim": 1024},
    )  # fmt: skip
    assert_loads(lambda: CLIPModel(published), tensors)
    assert_loads(lambda: CLIPModel(clip_config(tensors)), tensors)
    ours = clip_config(tensors)
    for tower in ("vision_config", "text_config"):
        for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
            assert getattr(getattr(ours, tower), name) == getattr(getattr(published, tower), name)
    assert ours.vision_config.image_size == 224


def test_image_rewards_key_maps_fill_blip_large() -> None:
    from transformers import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    whole = full_size(bench.image_reward_shapes())
    vision, text = vision_state_dict(whole), text_state_dict(whole)
    assert_loads(lambda: BlipVisionModel(vision_config(vision)), vision)
    assert_loads(lambda: BlipTextModel(text_config(text), add_pooling_layer=False), text)
    seen, read = vision_config(vision), text_config(text)
    assert (seen.image_size, seen.num_attention_heads, seen.layer_norm_eps) == (224, 16, 1e-6)
    assert (read.num_attention_heads, read.encoder_hidden_size, read.is_decoder) == (12, 1024, True)
    used = len(vision) + len(text) + len(bench.head_shapes())
    assert len(whole) - used == 5  # both projections (4) and position_ids are of no use here


def test_the_aesthetic_heads_layers_are_all_used() -> None:
    built = linear_head(full_size(bench.head_shapes()))
    assert [(layer.in_features, layer.out_features) for layer in built] == [
        (768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)
    ]  # fmt: skip


# Preprocessing ----------------------------------------------------------------------------------

SIZES = [(128, 128), (512, 512), (37, 53), (1, 1), (700, 90), (64, 1000), (1024, 768)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_framed_as_pil_images_are(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    image = noise(*size)
    pixels = of_image(image)[None]
    for processor in (CLIPImageProcessorPil(), CLIPImageProcessorPil.from_pretrained(CLIP)):
        exact = processor(images=[image], return_tensors="pt").pixel_values
        assert (as_processor(processor).pixels(pixels) - exact).abs().max() <= TOLERANCE
    for framing in (cropped(224), padded(224)):
        exact = framing.image(image)
        assert exact.shape == (3, 224, 224)
        assert (framing.pixels(pixels)[0] - exact).abs().max() <= TOLERANCE


def test_what_needs_no_resizing_is_exact() -> None:
    image = noise(224, 224)
    expected = as_input(image)
    for framing in (cropped(224), padded(224)):
        torch.testing.assert_close(framing.image(image)[None], expected, atol=1e-6, rtol=1e-6)
        made = framing.pixels(of_image(image)[None])
        torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-6)


def test_pixels_score_as_pil_images_do(models: dict[str, Chosen]) -> None:
    """Within 3 % of the standard deviation between pictures (1.2 % measured)."""
    items = [Item(item.media.resize((512, 384)), item.prompt) for item in bench.scenes(16)]
    pixels = torch.stack([of_image(item.media) for item in items])
    for name, verifier in models.items():
        exact = torch.tensor([score.value for score in verifier.score(items)])
        found = climbable(verifier).score_pixels(pixels, [item.prompt for item in items])
        assert found.dtype == torch.float32 and found.shape == (16,)
        apart = ((found - exact).abs().max() / exact.std()).item()
        assert apart <= 0.03, f"{name}: {apart:.2g}"


# Gradients --------------------------------------------------------------------------------------


def test_a_step_along_the_gradient_raises_the_score(verifier: Chosen) -> None:
    judge = climbable(verifier)
    assert isinstance(judge, DifferentiableVerifier)
    light = torch.Generator().manual_seed(0)
    pixels = 0.4 + 0.2 * torch.rand(2, 3, 96, 160, generator=light)
    pixels.requires_grad_()
    before = judge.score_pixels(pixels, PROMPTS[:2])
    before.sum().backward()
    slope = pixels.grad
    assert slope is not None and torch.isfinite(slope).all()
    assert (slope.flatten(1).norm(dim=1) > 0).all()
    step = 0.02 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        after = judge.score_pixels(pixels + step, PROMPTS[:2])
    assert (after > before).all()


def test_no_weight_keeps_a_gradient(models: dict[str, Chosen]) -> None:
    judge = climbable(models["image_reward"])
    parts = [climbable(models["clip"])._clip.model, judge._vision, judge._text, judge._head]
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


def test_half_precision_scores_are_near(options: dict[str, dict[str, Any]]) -> None:
    items = [Item(image, "a red square") for image in pictures(2)]
    for name in MODELS:
        exact, half = (
            [s.value for s in bench.loaded(name, {**options[name], "dtype": dtype}).score(items)]
            for dtype in ("fp32", "bf16")
        )
        assert half == pytest.approx(exact, rel=0.05, abs=0.05), name


# Checkpoints ------------------------------------------------------------------------------------


class Malice:
    """A pickle that writes a file when it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x, 2))])
@pytest.mark.parametrize("name", ["hpsv2", "image_reward", "laion_aesthetic"])
def test_a_malicious_pickle_is_not_run(
    name: str, save: Callable[[Any, Path], None], tmp_path: Path, options: dict[str, Any]
) -> None:
    proof, path = tmp_path / "proof", tmp_path / "weights.pt"
    save({"state_dict": Malice(proof)}, path)
    option = "head_name" if name == "laion_aesthetic" else "model_name"
    with pytest.raises(UserError, match="could run code"):
        bench.loaded(name, {**options[name], option: str(path)})
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_file_is_refused_in_one_sentence(
    content: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value) and " copy" in str(refused.value)


def test_safetensors_with_a_wrapped_model_are_read(open_clip: OpenClip, tmp_path: Path) -> None:
    """As mirrors have them: everything under `model.`."""
    from safetensors.torch import save_file

    tensors = {f"model.{k}": v.contiguous() for k, v in open_clip.state_dict().items()}
    save_file({**tensors, "other.buffer": torch.ones(1)}, tmp_path / "model.safetensors")
    made = bench.loaded("hpsv2", {"model_name": str(tmp_path), "tokenizer_name": CLIP})
    assert made.score([Item(noise(50, 50), "a red ring")])[0].status == "ok"


@pytest.mark.parametrize("wrong", ["lacks", "has an unknown"])
def test_a_checkpoint_with_other_tensors_is_refused(
    wrong: str, open_clip: OpenClip, tmp_path: Path
) -> None:
    tensors = dict(open_clip.state_dict())
    if wrong == "lacks":
        del tensors["visual.ln_post.bias"]
    else:
        tensors["visual.extra.weight"] = torch.ones(2)
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=wrong):
        bench.loaded("hpsv2", {"model_name": f"{tmp_path}/weights.pt", "tokenizer_name": CLIP})


def test_a_clip_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill the rest with noise, and every score be worthless."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(CLIP)
    tensors = {k: v for k, v in model.state_dict().items() if k != "visual_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(UserError, match="lacks 'visual_projection"):
        bench.loaded("clip", {"model_name": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hpsv2", {"model_name": "weights/hps.pt"}, "There is no file 'weights/hps.pt'"),
        ("hpsv2", {"model_name": "configs"}, "has no HPS_v2.1_compressed.pt"),
        ("hpsv2", {"version": "v3"}, "v2.1 or v2"),
        ("hpsv2", {"tokenizer_name": "no such folder"}, "no checkpoint"),
        ("image_reward", {"model_name": "nowhere.pt"}, "There is no file"),
        ("image_reward", {"tokenizer_name": "./nowhere"}, "no checkpoint"),
        ("laion_aesthetic", {"head_name": "heads/none.pth"}, "There is no file"),
        ("laion_aesthetic", {"model_name": "./nowhere"}, "no checkpoint"),
        ("pickscore", {"model_name": "./nowhere"}, "no checkpoint"),
        ("pickscore", {"processor_name": "./nowhere"}, "no checkpoint"),
        ("clip", {"model_name": "./nowhere"}, "no checkpoint"),
        *((name, {"batch_size": 0}, "at least 1") for name in MODELS),
        *((name, {"dtype": "int8"}, "fp32, fp16 or bf16") for name in MODELS),
    ],
)
def test_what_cannot_work_is_refused_before_loading(
    name: str, options: dict[str, Any], said: str
) -> None:
    path = bench.CLASSES[name]
    with pytest.raises(UserError, match=said):
        build_verifier(path, verifier_class(path).metrics[0], options)


@pytest.mark.parametrize(
    "verifier", [ClipScore(), PickScore(), Hpsv2(), ImageReward(), LaionAesthetic()]
)
def test_weights_out_of_reach_are_told_in_one_sentence(
    verifier: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    verifier.check()
    with pytest.raises(UserError, match="give the path of a local copy") as refused:
        verifier.load("cpu")
    assert "\n" not in str(refused.value)


# HTTP -------------------------------------------------------------------------------------------

Answer = Callable[[dict[str, Any]], Any]


class Server(ThreadingHTTPServer):
    """A scorer: `answer` gives what to send back, or an int for a status, or None to hang up."""

    daemon_threads = True
    answer: Answer
    asked: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(asked)
        answer = server.answer(asked)
        if answer is None:
            self.close_connection = True
            return
        if isinstance(answer, int):
            self.send_error(answer)
            return
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http_scorer, "PAUSE", 0.001)
    running = Server(("127.0.0.1", 0), Handler)
    running.asked = []
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def asked_items(n: int) -> list[Item]:
    return [Item(image, f"prompt {i}", label=f"{i}") for i, image in enumerate(pictures(n))]


def width_scores(asked: dict[str, Any]) -> dict[str, Any]:
    """The number in each prompt, so that order shows."""
    return {"scores": [float(item["prompt"].split()[-1]) for item in asked["items"]]}


def values(scores: Sequence[Score]) -> list[float | None]:
    return [score.value if score.status == "ok" else None for score in scores]


def test_http_posts_what_it_documents(server: Server) -> None:
    server.answer = width_scores
    image = pictures(1)[0]
    video = Item([image, image, image], "prompt 1")
    scores = HttpScorer(server.url).score([Item(image, "prompt 0", label="cat"), video])
    assert values(scores) == [0.0, 1.0]
    (asked,) = server.asked
    still, clip = asked["items"]
    assert set(still) == {"image", "prompt", "label"} and still["label"] == "cat"
    assert set(clip) == {"frames", "prompt", "label"} and len(clip["frames"]) == 3
    sent = Image.open(io.BytesIO(base64.b64decode(still["image"])))
    assert sent.format == "PNG" and sent.tobytes() == image.tobytes()


def test_http_keeps_the_order_over_batches(server: Server) -> None:
    server.answer = width_scores
    scores = HttpScorer(server.url, batch_size=3).score(asked_items(7))
    assert values(scores) == [float(i) for i in range(7)]
    assert sorted(len(asked["items"]) for asked in server.asked) == [1, 3, 3]


def test_http_reads_numbers_objects_and_null(server: Server) -> None:
    server.answer = lambda _: {
        "scores": [0.5, {"beauty": 0.25, "fit": 1, "more": "x"}, None, {"fit": None}, "high",
                   True, {"fit": 2, "beauty": [1]}],
        "explanations": ["good", "fair", "blurred", None, None, None, None],
    }  # fmt: skip
    verifier = HttpScorer(server.url, metrics=("beauty", "fit"))
    number, whole, null, empty, text, flag, part = verifier.score(asked_items(7))
    assert number.aspects == {"beauty": 0.5} and number.explanation == "good"
    assert whole.aspects == {"beauty": 0.25, "fit": 1.0} and whole.explanation == "fair"
    assert null.status == "unscored" and null.explanation == "blurred"
    assert [s.status for s in (empty, text, flag)] == ["unscored"] * 3
    assert part.aspects == {"fit": 2.0}
    by_fit = Chosen(verifier, "http", "fit").score(asked_items(7))
    assert values(by_fit) == [None, 1.0, None, None, None, None, 2.0]
    assert len(server.asked) == 2  # nothing was asked again


@pytest.mark.parametrize("body", [b'{"scores": [NaN, Infinity]}', b'{"scores": [1e999, 1]}'])
def test_http_takes_no_infinite_number(server: Server, body: bytes) -> None:
    server.answer = lambda _: body
    assert HttpScorer(server.url).score(asked_items(2))[0].status == "unscored"


@pytest.mark.parametrize(
    ("answer", "said", "requests"),
    [
        ({"scores": [1.0]}, "1 scores for 2 items", 3),  # then each item alone, which fits
        ({"scores": 1.0}, "no list of 'scores'", 3),
        ([], "no list of 'scores'", 3),
        (b"<html>", "no JSON", 3),
        (b"\xff\xfe", "no JSON", 3),
        (b"[" * 100_000, "no JSON", 3),
        (400, "status 400", 3),
        (500, "status 500", 5),  # three times together, then each alone
        (None, "dropped the connection", 5),
    ],
)
def test_http_failures_are_scores_with_a_reason(
    server: Server, answer: Any, said: str, requests: int
) -> None:
    server.answer = lambda _: answer
    scores = HttpScorer(server.url).score(asked_items(2))
    assert len(server.asked) == requests
    if answer == {"scores": [1.0]}:
        assert values(scores) == [1.0, 1.0]
    else:
        assert all(s.status == "failed" and said in s.explanation for s in scores)
        assert all(math.isnan(s.value) for s in scores)


def test_http_one_bad_item_costs_no_other_its_score(server: Server) -> None:
    def choking(asked: dict[str, Any]) -> Any:
        prompts = [item["prompt"] for item in asked["items"]]
        return 500 if "prompt 2" in prompts else width_scores(asked)

    server.answer = choking
    broken = Item("no image", "prompt 9")
    scores = HttpScorer(server.url, max_retries=1).score([*asked_items(4), broken])
    assert values(scores) == [0.0, 1.0, None, 3.0, None]
    assert [s.status for s in scores[2:]] == ["failed", "ok", "invalid_image"]


def test_http_tries_again_what_may_pass(server: Server) -> None:
    replies = iter([503, None, 429])
    server.answer = lambda asked: next(replies, width_scores(asked))
    scores = HttpScorer(server.url, max_retries=3).score(asked_items(2))
    assert values(scores) == [0.0, 1.0] and len(server.asked) == 4


def test_http_waits_no_longer_than_its_timeout(server: Server) -> None:
    server.answer = lambda _: time.sleep(0.6)
    begin = time.perf_counter()
    scores = HttpScorer(server.url, timeout=0.1, max_retries=1).score(asked_items(3))
    assert time.perf_counter() - begin < 0.5  # two requests; the items are not tried one by one
    assert all("no answer" in score.explanation for score in scores)


def test_http_survives_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}"
    scores = HttpScorer(url, max_retries=0).score(asked_items(2))
    assert all("no connection" in score.explanation for score in scores)


def test_http_offers_the_metrics_that_are_configured(server: Server) -> None:
    server.answer = lambda _: {"scores": [{"beauty": 0.75}]}
    path, options = "verifiers.http:HttpScorer", {"url": server.url, "metrics": ["beauty"]}
    chosen = build_verifier(path, "beauty", options)
    assert values(chosen.score(asked_items(1))) == [0.75]
    assert HttpScorer.metrics == ("score",)  # the others' are untouched
    with pytest.raises(UserError, match="no metric 'score'"):
        build_verifier(path, "score", options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "http or https URL"),
        ({"url": "file:///etc/passwd"}, "http or https URL"),
        ({"url": "http://"}, "http or https URL"),
        ({"url": "http://x", "metrics": []}, "at least one metric"),
        ({"url": "http://x", "batch_size": 0}, "at least 1"),
        ({"url": "http://x", "timeout": 0}, "timeout above 0"),
    ],
)
def test_http_refuses_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        HttpScorer(**options).check()


# The benchmark ----------------------------------------------------------------------------------


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--quick"])
    out = capsys.readouterr().out
    for name in bench.CLASSES:
        assert f"\n{name} " in out
