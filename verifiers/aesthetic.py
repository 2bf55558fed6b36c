"""LAION aesthetic predictor: a linear head on CLIP-L/14's image embedding (Schuhmann 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from utils import UserError, find_checkpoint
from verifiers.base import Item, Score
from verifiers.batches import check_model_options, score_batches
from verifiers.checkpoints import (
    clip_processor_of,
    fetch_file,
    find_file,
    from_pretrained,
    linear_head,
    read_tensors,
    without_prefix,
)
from verifiers.pixels import as_processor
from verifiers.turns import TurnTaking

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FILES = ("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth", "model.safetensors")


@dataclass
class LaionAesthetic(TurnTaking):
    """laion_aesthetic_score = head(v / |v|), v CLIP's image embedding; about 4 to 7.5.

    Linear layers 768-1024-128-64-16-1 with nothing between them. The prompt is not looked at.
    model_name: of the CLIP model. head_name: a file, a folder or a hub id that holds the head.
    """

    model_name: str = "openai/clip-vit-large-patch14"
    head_name: str = "trl-lib/ddpo-aesthetic-predictor"
    batch_size: int = 16
    dtype: str = "fp32"

    metrics: ClassVar[tuple[str, ...]] = ("laion_aesthetic_score",)
    needs: ClassVar[str] = "the weights of CLIP-L/14, and the aesthetic head"

    _model: Any = field(default=None, init=False, repr=False)
    _processor: Any = field(default=None, init=False, repr=False)
    _head: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        find_checkpoint(self.model_name)
        find_file(self.head_name, FILES)
        check_model_options(self.batch_size, self.dtype)

    def load(self, device: str) -> None:
        from transformers import CLIPVisionModelWithProjection

        path = fetch_file(self.head_name, FILES)
        head = linear_head(without_prefix(read_tensors(path), "layers.0.weight", path))
        model = from_pretrained(CLIPVisionModelWithProjection, self.model_name, self.dtype)
        if head[0].in_features != model.config.projection_dim:
            raise UserError(
                f"The head '{path}' wants embeddings of {head[0].in_features}, and"
                f" '{self.model_name}' gives {model.config.projection_dim}: choose the CLIP model"
                " that it was trained on."
            )
        self._head, self._model = head.to(device), model.to(device)
        self._processor = clip_processor_of(self.model_name)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return score_batches(
            items,
            batch_size=self.batch_size,
            metric=self.metrics[0],
            prepare=self._prepare,
            judge=self._scores,
        )

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1]."""
        return self._scores(as_processor(self._processor).pixels(pixels), prompts)

    def _prepare(self, image: Image) -> Tensor:
        made = self._processor(images=[image.convert("RGB")], return_tensors="pt")
        pixels: Tensor = made.pixel_values[0]
        return pixels

    def _scores(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:  # [n]
        embeddings = self._model(prepared.to(self._model.device, self._model.dtype)).image_embeds
        scores: Tensor = self._head(torch.nn.functional.normalize(embeddings.float(), dim=-1))
        return scores.squeeze(-1)
