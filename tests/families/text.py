"""Tiny random text encoders, and tokenizers which need no download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

BUNDLED = Path(__file__).resolve().parents[2] / "shapes" / "models" / "shapes-flux"

SPECIAL_TOKENS = ("<pad>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer() -> CLIPTokenizer:
    """The CLIP tokenizer which ships with the repository."""
    return CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer", local_files_only=True)


def t5_tokenizer() -> T5Tokenizer:
    """The T5 tokenizer which ships with the repository."""
    return T5Tokenizer.from_pretrained(BUNDLED / "tokenizer_2", local_files_only=True)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte and a chat template."""
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        padding_side="right",
    )


def _vocabulary() -> int:
    """How many tokens `byte_tokenizer` has."""
    return len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())


def _louder(model: torch.nn.Module, factor: float = 20.0) -> None:
    """Scale the token embeddings so that hidden states depend clearly on the prompt."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(factor)  # type: ignore[operator]


def clip_text_config(width: int = 32) -> CLIPTextConfig:
    """The shape of a CLIP text encoder which fits `clip_tokenizer`."""
    return CLIPTextConfig(
        vocab_size=666,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=664,
        eos_token_id=665,
        pad_token_id=665,
    )


def clip_text_encoder(width: int = 32) -> CLIPTextModel:
    """A CLIP text encoder of the given width."""
    model = CLIPTextModel(clip_text_config(width)).eval()
    _louder(model)
    return model


def clip_projected_text_encoder(width: int = 32) -> CLIPTextModelWithProjection:
    """A CLIP text encoder with a projection of its pooled state."""
    model = CLIPTextModelWithProjection(clip_text_config(width)).eval()
    _louder(model)
    return model


def t5_encoder(width: int = 32) -> T5EncoderModel:
    """A T5 encoder which fits `t5_tokenizer`."""
    config = T5Config(
        vocab_size=125,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )
    return T5EncoderModel(config).eval()


def umt5_encoder(width: int = 32) -> UMT5EncoderModel:
    """A multilingual T5 encoder which fits `t5_tokenizer`."""
    config = UMT5Config(
        vocab_size=125,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )
    return UMT5EncoderModel(config).eval()


def qwen3(width: int = 16) -> Qwen3ForCausalLM:
    """A Qwen3 language model which fits `byte_tokenizer`."""
    config = Qwen3Config(
        vocab_size=_vocabulary(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def qwen25_vl(width: int = 16) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL model which fits `byte_tokenizer` and is only ever given text."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": _vocabulary(),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
        },
        initializer_range=0.2,
        image_token_id=0,
        video_token_id=0,
        vision_start_token_id=0,
        vision_end_token_id=0,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def gemma2(width: int = 8) -> Gemma2Model:
    """A Gemma2 model which fits `byte_tokenizer`."""
    config = Gemma2Config(
        vocab_size=_vocabulary(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Gemma2Model(config).eval()
