"""Qwen2.5-VL-7B as our own verifier `qwen` asks it, with random weights, built without the hub.

Its config is the released one. Its tokenizer is not to be had offline: one is learned here from the
rubric and an answer to it, so that a question and an answer take about as many tokens as they do
with Qwen's own; both numbers are told beside the seconds. What it answers means nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.full_size import Model, fill
from verifiers.base import Chosen, Item
from verifiers.qwen import Qwen
from verifiers.rubric import ASPECTS, OVERALL, Rubric
from verifiers.vlm import Vlm, load_processor, set_up

END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = [PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
    "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip
VOCABULARY = 4000  # learned pieces: the rubric's words are whole ones
TEXT = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
    "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
}  # fmt: skip
SMALL_TEXT = {
    "vocab_size": VOCABULARY + 37, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}  # fmt: skip
SMALL_VISION = {
    "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip
OPTIONS = {"mode": "scores_only", "choice_of_metric": OVERALL}


@dataclass
class RandomQwen(Qwen):
    """The verifier `qwen`, whose model is drawn on its device instead of read from files."""

    tiny: bool = False

    def check(self) -> None:
        Rubric.read(self.prompt_path, self.mode)

    def _loaded(self, device: str) -> Vlm:
        tokenizer = learned_tokenizer([Rubric.read(None, "scores_only").system, ANSWER], VOCABULARY)
        model = _model(tokenizer).make(self.tiny)
        with tempfile.TemporaryDirectory() as folder:
            processor = _processor(tokenizer, model.config, Path(folder))
        fill(model, torch.float32 if device == "cpu" else torch.bfloat16, device)
        return set_up(model, processor, device)

    @property
    def model(self) -> torch.nn.Module:
        model: torch.nn.Module = self._vlm.model
        return model

    def asked_tokens(self, items: Sequence[Item]) -> int:
        """Tokens of the longest question, its picture's included."""
        return int(self._inputs(items)["input_ids"].shape[1])


def judge(device: str, tiny: bool) -> Chosen:
    """The verifier with its model on the device; it answers with scores alone."""
    built = Chosen(RandomQwen(mode="scores_only", tiny=tiny), "qwen", OVERALL)
    built.load(device)
    return built


def alone(judge: Chosen, size: tuple[int, int], wait: Any) -> dict[str, Any]:
    """Seconds an image of judging one batch, with nothing else to do, after a first one.

    size: of a picture. wait: until the device is done.
    """
    verifier: Any = judge.verifier
    images = [Image.effect_noise(size, 64).convert("RGB") for _ in range(verifier.batch_size)]
    items = [Item(image, "a red circle left of a blue square") for image in images]
    judge.score(items[:1])
    judge.score(items)
    wait()
    started = time.perf_counter()
    scores = judge.score(items)
    taken = time.perf_counter() - started
    return {
        "seconds_an_image": taken / len(items),
        "batch_size": len(items),
        "asked_tokens": verifier.asked_tokens(items[:1]),
        "answered_tokens": max(score.details.get("output_tokens", 0) for score in scores),
        "unscored": sum(score.status != "ok" for score in scores),
    }


ANSWER = json.dumps(dict.fromkeys(ASPECTS, 7.5))


def learned_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level pieces learned from the texts, in the class of Qwen's tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    learned.train_from_iterator(texts, trainer)
    model = json.loads(learned.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=SPECIAL,
    )


def vision_tokens(tokenizer: Any) -> dict[str, int]:
    """The config's names for the tokens of pictures."""
    names = ("image", "video", "vision_start", "vision_end")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(names, tokens, strict=True)
    }


def _model(tokenizer: Any) -> Model:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    full: Mapping[str, Any] = {
        "text_config": {**TEXT, **ends}, "vision_config": VISION, **vision_tokens(tokenizer)
    }  # fmt: skip
    small = {"text_config": {**SMALL_TEXT, **ends}, "vision_config": SMALL_VISION}
    return Model("transformers", "Qwen2_5_VLForConditionalGeneration", full, small)


def _processor(tokenizer: Any, config: Any, folder: Path) -> Any:
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    template = json.dumps({"chat_template": TEMPLATE})
    (folder / "chat_template.json").write_text(template, encoding="utf-8")
    return load_processor(str(folder), config, {})
