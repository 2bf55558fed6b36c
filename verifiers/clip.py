"""CLIPScore: cosine similarity of image and prompt under CLIP (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from utils import UserError, find_checkpoint
from verifiers.base import BaseVerifier, Item, Score


@dataclass
class ClipScore(BaseVerifier):
    """Any CLIP checkpoint, by folder or hub id.

    clip_score is the plain cosine in [-1, 1]: neither clipped at 0 nor scaled by 2.5 as in the
    paper, so that a ranking never ties.
    batch_size: images a forward pass. dtype: of the weights.
    """

    model_name: str = "openai/clip-vit-large-patch14"
    batch_size: int = 16
    dtype: str = "fp32"

    metrics: ClassVar[tuple[str, ...]] = ("clip_score",)

    _model: Any = field(default=None, init=False, repr=False)
    _processor: Any = field(default=None, init=False, repr=False)
    _device: str = field(default="cpu", init=False, repr=False)

    def check(self) -> None:
        find_checkpoint(self.model_name)
        if self.batch_size < 1:
            raise UserError(f"verifier_args.batch_size must be at least 1, not {self.batch_size}.")
        if self.dtype not in ("fp32", "fp16", "bf16"):
            raise UserError(f"verifier_args.dtype is fp32, fp16 or bf16, not '{self.dtype}'.")

    def load(self, device: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        checkpoint = find_checkpoint(self.model_name)
        try:
            model = CLIPModel.from_pretrained(checkpoint, dtype=dtypes[self.dtype])
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            self._processor = CLIPImageProcessorPil.from_pretrained(checkpoint)
        except OSError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"The CLIP model '{checkpoint}' cannot be loaded: {reason}.") from error
        self._model = model.to(device).eval()
        self._device = device

    def score(self, items: Sequence[Item]) -> list[Score]:
        scores = []
        for begin in range(0, len(items), self.batch_size):
            batch = items[begin : begin + self.batch_size]
            cosines = self._cosines([item.media for item in batch], [i.prompt for i in batch])
            scores += [Score.of(clip_score=cosine) for cosine in cosines]
        return scores

    def _cosines(self, images: list[Any], prompts: list[str]) -> list[float]:
        import torch

        pixels = self._processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        longest = self._model.config.text_config.max_position_embeddings
        texts = self._tokenizer(
            prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.no_grad():
            # `pooler_output` is the projected embedding already, since transformers 5.
            image = self._model.get_image_features(
                pixels.pixel_values.to(self._device, self._model.dtype)
            ).pooler_output
            text = self._model.get_text_features(
                input_ids=texts.input_ids.to(self._device),
                attention_mask=texts.attention_mask.to(self._device),
            ).pooler_output
        cosines: list[float] = torch.cosine_similarity(image.float(), text.float()).tolist()
        return cosines
