"""ImageReward: BLIP with a score head, tuned on experts' rankings (Xu et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from utils import find_checkpoint
from verifiers.base import Item, Score
from verifiers.batches import check_model_options, score_batches, tokenize
from verifiers.checkpoints import (
    fetch_file,
    find_file,
    from_tensors,
    linear_head,
    read_tensors,
    tokenizer_of,
    without_prefix,
)
from verifiers.pixels import cropped
from verifiers.turns import TurnTaking

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output on the training set
FILES = ("ImageReward.pt", "model.safetensors")
LONGEST = 35  # tokens, padded to it
HEAD_WIDTH = 64  # of the attention, in both of BLIP's towers
VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"^norm\.", "post_layernorm."),
)


@dataclass
class ImageReward(TurnTaking):
    """image_reward = (MLP(text's CLS) - mean) / std; about -2.3 to 2.1.

    The text tower reads the prompt and looks at the image in each layer (cross-attention).
    model_name: the checkpoint file, a folder or a hub id that holds it.
    """

    model_name: str = "THUDM/ImageReward"
    tokenizer_name: str = "google-bert/bert-base-uncased"
    batch_size: int = 16
    dtype: str = "fp32"

    metrics: ClassVar[tuple[str, ...]] = ("image_reward",)
    needs: ClassVar[str] = "ImageReward.pt of THUDM/ImageReward, and BERT's tokenizer"

    _vision: Any = field(default=None, init=False, repr=False)
    _text: Any = field(default=None, init=False, repr=False)
    _head: Any = field(default=None, init=False, repr=False)
    _tokenizer: Any = field(default=None, init=False, repr=False)
    _framing: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        find_file(self.model_name, FILES)
        find_checkpoint(self.tokenizer_name)
        check_model_options(self.batch_size, self.dtype)

    def load(self, device: str) -> None:
        from transformers import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        path = fetch_file(self.model_name, FILES)
        whole = without_prefix(read_tensors(path), "mlp.layers.0.weight", path)
        vision, text = vision_state_dict(whole), text_state_dict(whole)
        config = vision_config(vision)
        self._vision = from_tensors(BlipVisionModel, config, vision, self.dtype, path).to(device)
        self._text = from_tensors(
            BlipTextModel, text_config(text), text, self.dtype, path, add_pooling_layer=False
        ).to(device)
        self._head = linear_head(_under("mlp.", whole)).to(device)
        self._tokenizer = tokenizer_of(self.tokenizer_name)
        self._framing = cropped(config.image_size)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return score_batches(
            items,
            batch_size=self.batch_size,
            metric=self.metrics[0],
            prepare=self._framing.image,
            judge=self._rewards,
        )

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1] and a prompt each."""
        return self._rewards(self._framing.pixels(pixels), prompts)

    def _rewards(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:  # [n]
        tokens = tokenize(self._tokenizer, prompts, LONGEST, padding="max_length")
        seen = self._vision(prepared.to(self._vision.device, self._vision.dtype)).last_hidden_state
        read = self._text(
            input_ids=tokens.input_ids.to(seen.device),
            attention_mask=tokens.attention_mask.to(seen.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,  # else a causal mask is laid over the prompt
        ).last_hidden_state
        rewards: Tensor = self._head(read[:, 0].float()).squeeze(-1)
        return (rewards - MEAN) / STD


def vision_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's image tower (timm's ViT) as transformers' BlipVisionModel."""
    made = {}
    for name, tensor in _under("blip.visual_encoder.", tensors).items():
        for pattern, replacement in VISION:
            name = re.sub(pattern, replacement, name)
        made[name] = tensor
    return made


def text_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's text tower as transformers' BlipTextModel: the names are the same."""
    made = _under("blip.text_encoder.", tensors)
    made.pop("embeddings.position_ids", None)  # a constant
    return {name: tensor for name, tensor in made.items() if not name.startswith("pooler.")}


def vision_config(tensors: Mapping[str, Tensor]) -> Any:
    """ViT-L/16's config, sizes as the tensors have them."""
    from transformers import BlipVisionConfig

    width, _, _, patch = tensors["embeddings.patch_embedding.weight"].shape
    places = tensors["embeddings.position_embedding"].shape[1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_count("encoder.layers.", tensors),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round((places - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,  # timm's; transformers' default differs
        hidden_act="gelu",
    )


def text_config(tensors: Mapping[str, Tensor]) -> Any:
    """BERT-base's config with cross-attention, sizes as the tensors have them."""
    from transformers import BlipTextConfig

    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_count("encoder.layer.", tensors),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,  # builds the cross-attention
        bos_token_id=None,  # for writing text, which scoring never does
        sep_token_id=None,
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _count(prefix: str, tensors: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith(prefix)})
