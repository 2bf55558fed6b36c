"""PickScore: CLIP-H tuned on people's choices between two images (Kirstain et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from utils import find_checkpoint, find_path
from verifiers.base import Item, Score
from verifiers.batches import check_model_options, score_batches
from verifiers.clip import Clip
from verifiers.turns import TurnTaking

if TYPE_CHECKING:
    from torch import Tensor

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the model card's


@dataclass
class PickScore(TurnTaking):
    """pickscore = exp(logit_scale) * cos(image, prompt); about 18 to 24 with PickScore_v1.

    The softmax of two images' scores is the share of people who prefer the first.
    processor_name: of the tokenizer and the image processor; the model's own where its folder has
    them, else the one PickScore_v1 was published with.
    """

    model_name: str = "yuvalkirstain/PickScore_v1"
    processor_name: str | None = None
    batch_size: int = 16
    dtype: str = "fp32"

    metrics: ClassVar[tuple[str, ...]] = ("pickscore",)
    needs: ClassVar[str] = "the weights of yuvalkirstain/PickScore_v1"

    _clip: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        find_checkpoint(self.model_name)
        find_checkpoint(self._processor())
        check_model_options(self.batch_size, self.dtype)

    def load(self, device: str) -> None:
        self._clip = Clip.load(self.model_name, self._processor(), self.dtype, device)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return score_batches(
            items,
            batch_size=self.batch_size,
            metric=self.metrics[0],
            prepare=self._clip.prepare,
            judge=self._clip.scaled_cosines,
        )

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1] and a prompt each."""
        scores: Tensor = self._clip.scaled_cosines(self._clip.prepare_pixels(pixels), prompts)
        return scores

    def _processor(self) -> str:
        if self.processor_name is not None:
            return self.processor_name
        folder = find_path(self.model_name)
        return self.model_name if folder is not None and _has_processor(folder) else PROCESSOR


def _has_processor(folder: Path) -> bool:
    """Whether a model's folder holds its tokenizer and image processor too."""
    processors = ("processor_config.json", "preprocessor_config.json")
    return (folder / "tokenizer_config.json").is_file() and any(
        (folder / name).is_file() for name in processors
    )
