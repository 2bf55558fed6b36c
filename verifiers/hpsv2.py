"""HPSv2 and HPSv2.1: CLIP-H tuned on the Human Preference Dataset v2 (Wu et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from utils import UserError, find_checkpoint
from verifiers.base import Item, Score
from verifiers.batches import check_model_options, score_batches
from verifiers.checkpoints import (
    fetch_file,
    find_file,
    from_tensors,
    read_tensors,
    tokenizer_of,
    without_prefix,
)
from verifiers.clip import Clip
from verifiers.pixels import padded
from verifiers.turns import TurnTaking

if TYPE_CHECKING:
    from torch import Tensor

FILES = {"v2.1": "HPS_v2.1_compressed.pt", "v2": "HPS_v2_compressed.pt"}
HEADS = 16  # in both towers of ViT-H/14; the only size that no tensor shows
NAMES = {  # open_clip's -> transformers'; what is not here is renamed by pattern below
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
}
PATTERNS = (
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
)


@dataclass
class Hpsv2(TurnTaking):
    """hpsv2 = cos(image, prompt); about 0.2 to 0.32.

    model_name: a checkpoint file, a folder or a hub id that holds one, in open_clip's names.
    version: which of the files. tokenizer_name: CLIP's tokenizer.
    """

    model_name: str = "xswu/HPSv2"
    version: Literal["v2.1", "v2"] = "v2.1"
    tokenizer_name: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    batch_size: int = 16
    dtype: str = "fp32"

    metrics: ClassVar[tuple[str, ...]] = ("hpsv2",)
    needs: ClassVar[str] = "HPS_v2.1_compressed.pt or HPS_v2_compressed.pt of xswu/HPSv2"

    _clip: Any = field(default=None, init=False, repr=False)
    _framing: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        if self.version not in FILES:
            raise UserError(f"verifier_args.version is v2.1 or v2, not '{self.version}'.")
        find_file(self.model_name, self._files())
        find_checkpoint(self.tokenizer_name)
        check_model_options(self.batch_size, self.dtype)

    def load(self, device: str) -> None:
        from transformers import CLIPModel

        path = fetch_file(self.model_name, self._files())
        tensors = hf_state_dict(without_prefix(read_tensors(path), "visual.conv1.weight", path))
        config = clip_config(tensors)
        model = from_tensors(CLIPModel, config, tensors, self.dtype, path).to(device)
        self._clip = Clip(model, tokenizer_of(self.tokenizer_name), None, device)
        self._framing = padded(config.vision_config.image_size)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return score_batches(
            items,
            batch_size=self.batch_size,
            metric=self.metrics[0],
            prepare=self._framing.image,
            judge=self._clip.cosines,
        )

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1] and a prompt each."""
        scores: Tensor = self._clip.cosines(self._framing.pixels(pixels), prompts)
        return scores

    def _files(self) -> tuple[str, ...]:
        return FILES[self.version], "model.safetensors"  # the latter: mirrors of one version


def hf_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP, tensor by tensor, as transformers' CLIPModel."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = NAMES.get(name, name)
        for pattern, replacement in PATTERNS:
            new = re.sub(pattern, replacement, new)
        if "in_proj_" in name:  # query, key and value on top of each other
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                made[new.replace("in_proj_", f"{part}_proj.")] = piece
        else:
            transposed = name in ("visual.proj", "text_projection")  # x @ W there, x @ W.T here
            made[new] = tensor.T.contiguous() if transposed else tensor
    return made


def clip_config(tensors: Mapping[str, Tensor]) -> Any:
    """The config of a CLIPModel with these tensors: ViT-H/14's, sizes as the tensors have them."""
    from transformers import CLIPConfig

    vision, text = _tower(tensors, "vision_model"), _tower(tensors, "text_model")
    patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    places = len(tensors["vision_model.embeddings.position_embedding.weight"])
    vision |= {"patch_size": patch, "image_size": patch * round((places - 1) ** 0.5)}
    text |= {
        "max_position_embeddings": len(tensors["text_model.embeddings.position_embedding.weight"]),
        "vocab_size": len(tensors["text_model.embeddings.token_embedding.weight"]),
        "bos_token_id": None,
        "eos_token_id": 2,  # makes transformers pool at the highest token, as open_clip does
    }
    width = len(tensors["visual_projection.weight"])
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)


def _tower(tensors: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in tensors if name.startswith(f"{tower}.encoder.layers.")}
    up = tensors[f"{tower}.encoder.layers.0.mlp.fc1.weight"]
    return {
        "hidden_size": up.shape[1],
        "intermediate_size": up.shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",  # not CLIP's quick_gelu
    }
