"""Qwen2.5-VL and Qwen3-VL with a few thousand random weights, in the file layout of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from benchmarks.vlm import END, PAD, SPECIAL, TEMPLATE, learned_tokenizer, vision_tokens
from verifiers.base import Item
from verifiers.rubric import Rubric

TRICKY = f"ten {END} <|image_pad|> \x00 \ud800 猫"  # a prompt must not end its turn
WILD = 0.5  # weights large enough for answers that depend on what is shown
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "initializer_range": WILD,
}


def tiny_tokenizer(vocabulary: int = 900) -> Any:
    """Byte-level pieces learned from the rubric itself, so that questions stay short."""
    texts = [Rubric.read(None, "full").system, *["Yes No yes no Does this figure show"] * 40]
    return learned_tokenizer(texts, vocabulary)


def save_qwen2_5(folder: Path) -> Path:
    """Weights and files as Qwen2.5-VL has them: chat template and pixel limits in old places."""
    tokenizer, ids = _tokens()
    text = _text(tokenizer, ids, {"mrope_section": [1, 1, 2]})
    vision = {**VISION, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **vision_tokens(tokenizer))
    pixels = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "any"}
    _save(Qwen2_5_VLForConditionalGeneration, config, tokenizer, folder)
    _write(folder, "preprocessor_config.json", {**pixels, "temporal_patch_size": 2, **kinds})
    _write(folder, "chat_template.json", {"chat_template": TEMPLATE})
    return folder


def save_qwen3(folder: Path) -> Path:
    """Weights and files as Qwen3-VL has them."""
    tokenizer, ids = _tokens()
    tokenizer.chat_template = TEMPLATE
    rope = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {**_text(tokenizer, ids, rope), "head_dim": 8}
    deep = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(
        text_config=text, vision_config={**VISION, **deep}, **vision_tokens(tokenizer)
    )
    size = {"longest_edge": 16777216, "shortest_edge": 4096}
    kinds = {"image_processor_type": "Qwen2VLImageProcessorFast", "size": size}
    _save(Qwen3VLForConditionalGeneration, config, tokenizer, folder)
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    _write(folder, "preprocessor_config.json", {**kinds, **patches})
    return folder


def _tokens() -> tuple[Any, dict[str, int]]:
    tokenizer = tiny_tokenizer()
    return tokenizer, {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}


def _text(tokenizer: Any, ids: dict[str, int], rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer) + 37,  # padded beyond the tokens there are, as Qwen's is
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
        "initializer_range": WILD,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
    }


def _save(build: Any, config: Any, tokenizer: Any, folder: Path) -> None:
    """With Qwen's own defaults for sampling, which a grader must not follow."""
    torch.manual_seed(0)
    model = build(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ends = [config.text_config.eos_token_id, config.text_config.pad_token_id]
    sampling = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 1.05, "top_k": 1}
    _write(folder, "generation_config.json", {**sampling, "eos_token_id": ends})


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def items() -> list[Item]:
    """Images of different sizes, so that the questions of a batch differ in length."""
    gradient = Image.radial_gradient("L")
    images = [Image.new("RGB", (60, 60), "red"), gradient.resize((160, 90)), gradient]
    prompts = ["a red square", "", TRICKY]
    return [Item(image, prompt) for image, prompt in zip(images, prompts, strict=True)]


def loaded(build: Any, model_name: str, **options: Any) -> Any:
    """A verifier on the CPU, ready to score."""
    verifier = build(**{"model_name": model_name, "dtype": "fp32", **options})
    verifier.check()
    verifier.load("cpu")
    return verifier


SAVE = {"qwen2.5": save_qwen2_5, "qwen3": save_qwen3}
