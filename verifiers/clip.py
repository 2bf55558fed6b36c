"""CLIPScore: cosine similarity of image and prompt under CLIP (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from utils import find_checkpoint
from verifiers.base import Item, Score
from verifiers.batches import check_model_options, score_batches, tokenize
from verifiers.checkpoints import clip_processor_of, from_pretrained, tokenizer_of
from verifiers.pixels import as_processor
from verifiers.turns import TurnTaking

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its tokenizer and image processor, on a device."""

    model: Any
    tokenizer: Any
    processor: Any
    device: str

    @classmethod
    def load(cls, model_name: str, processor_name: str, dtype: str, device: str) -> Clip:
        from transformers import CLIPModel

        model = from_pretrained(CLIPModel, model_name, dtype).to(device)
        return cls(model, tokenizer_of(processor_name), clip_processor_of(processor_name), device)

    def prepare(self, image: Image) -> Tensor:  # [3, side, side]
        """The published preprocessing, in PIL."""
        made = self.processor(images=[image.convert("RGB")], return_tensors="pt")
        pixels: Tensor = made.pixel_values[0]
        return pixels

    def prepare_pixels(self, pixels: Tensor) -> Tensor:  # [n, 3, side, side]
        """The same on pixels in [0, 1], differentiable; `pixels.TOLERANCE` apart."""
        return as_processor(self.processor).pixels(pixels)

    def cosines(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:  # [n]
        # `pooler_output` is the projected embedding already, since transformers 5.
        image = self.model.get_image_features(
            prepared.to(self.device, self.model.dtype)
        ).pooler_output
        return torch.cosine_similarity(image.float(), self._texts(prompts).float())

    def scaled_cosines(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:  # [n]
        """The model's own logits: exp(logit_scale) * cosine."""
        scale: Tensor = self.model.logit_scale.float().exp()
        return scale * self.cosines(prepared, prompts)

    def _texts(self, prompts: Sequence[str]) -> Tensor:  # [n, width]
        """Embeddings of the prompts; a search asks about one prompt many times over."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        longest = self.model.config.text_config.max_position_embeddings
        tokens = tokenize(self.tokenizer, list(places), longest, padding=True).to(self.device)
        embeddings: Tensor = self.model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return embeddings[[places[prompt] for prompt in prompts]]


@dataclass
class ClipScore(TurnTaking):
    """Any CLIP checkpoint, by folder or hub id.

    clip_score is the plain cosine in [-1, 1]: neither clipped at 0 nor scaled by 2.5 as in the
    paper, so that a ranking never ties.
    batch_size: images a forward pass. dtype: of the weights.
    """

    model_name: str = "openai/clip-vit-large-patch14"
    batch_size: int = 16
    dtype: str = "fp32"

    metrics: ClassVar[tuple[str, ...]] = ("clip_score",)
    needs: ClassVar[str] = "the weights of a CLIP model"

    _clip: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        find_checkpoint(self.model_name)
        check_model_options(self.batch_size, self.dtype)

    def load(self, device: str) -> None:
        self._clip = Clip.load(self.model_name, self.model_name, self.dtype, device)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return score_batches(
            items,
            batch_size=self.batch_size,
            metric=self.metrics[0],
            prepare=self._clip.prepare,
            judge=self._clip.cosines,
        )

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1] and a prompt each."""
        scores: Tensor = self._clip.cosines(self._clip.prepare_pixels(pixels), prompts)
        return scores
