"""What a vision model sees in an image: features, and classes where it classifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from utils import UserError, find_checkpoint
from verifiers.base import BaseVerifier, Item, Score
from verifiers.batches import check_model_options
from verifiers.checkpoints import DTYPES

# How transformers shows that a checkpoint cannot be used, or that a model is not for images.
FAILURES = (
    OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One image under a model: its features, and class log-probabilities where there are any."""

    features: Tensor  # [d], fp32
    log_probs: Tensor | None  # [k], fp32


class VisionModel:
    """A vision checkpoint of transformers with its own preprocessing, by folder or hub id.

    Features are what a classifier's last linear layer reads (as the pool3 features of Inception in
    the Fréchet Inception Distance), the projected embedding of a CLIP-like model, and the pooled
    output of any other, or its first token where the checkpoint has no weights for pooling.
    """

    def __init__(
        self, name: str, *, batch_size: int, dtype: str, device: str, classifies: bool
    ) -> None:
        self.name = name
        self._batch_size = batch_size
        self._device = device
        try:
            self._load(find_checkpoint(name), DTYPES[dtype], classifies)
            self.width = self._probe()
        except FAILURES as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            wanted = "image classifier" if classifies else "vision model"
            raise UserError(f"The {wanted} '{name}' cannot be loaded: {reason}.") from error

    @property
    def labels(self) -> list[str]:
        """The classes' names, by index."""
        names = self._model.config.id2label
        return [str(names[index]) for index in sorted(names)]

    def see(self, images: Sequence[Any]) -> list[Seen | Score]:
        """What is seen of each image, in order; one that cannot be read costs itself only."""
        return [
            seen
            for begin in range(0, len(images), self._batch_size)
            for seen in self._batch(images[begin : begin + self._batch_size])
        ]

    def _load(self, checkpoint: str, dtype: torch.dtype, classifies: bool) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
        from transformers import AutoModelForImageClassification as Classifying

        # `trust_remote_code` unset would ask at the terminal.
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        self._processor = AutoImageProcessor.from_pretrained(
            checkpoint, backend="pil", trust_remote_code=False
        )
        saved = config.architectures or ()  # only their names tell whether there is a head
        self._classifies = classifies or any("ForImageClassification" in name for name in saved)
        build = Classifying if self._classifies else AutoModel
        model, told = build.from_pretrained(
            checkpoint, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        unpooled = [name for name in told["missing_keys"] if name.startswith("pooler.")]
        missing = set(told["missing_keys"]) - set(unpooled)
        if missing:
            raise ValueError(f"it lacks '{min(missing)}' and {len(missing) - 1} more tensors")
        self._pooled = not unpooled
        self._model = model.requires_grad_(False).eval().to(self._device)
        if self._classifies:
            self._keep_features(model)

    def _keep_features(self, model: nn.Module) -> None:
        """Have the input of the last linear layer with an output for each class kept."""
        classes = len(self.labels)
        for module in reversed(list(model.modules())):
            if isinstance(module, nn.Linear) and module.out_features == classes:
                module.register_forward_pre_hook(self._keep)
                return
        raise ValueError(f"it has no linear layer for its {classes} classes")

    def _keep(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._kept = given[0]

    def _probe(self) -> int:
        """The features' width; an image that fits no model is found out before any is made."""
        from PIL import Image

        features, _ = self._forward(self._prepared(Image.new("RGB", (64, 64), "gray"))[None])
        return features.shape[1]

    def _prepared(self, image: Any) -> Tensor:  # [3, height, width]
        made = self._processor(images=[image.convert("RGB")], return_tensors="pt")
        pixels: Tensor = made.pixel_values[0]
        return pixels

    def _batch(self, images: Sequence[Any]) -> list[Seen | Score]:
        seen: dict[int, Seen | Score] = {}
        shapes: dict[torch.Size, dict[int, Tensor]] = {}  # not every preprocessing ends in a square
        for i, image in enumerate(images):
            try:
                pixels = self._prepared(image)
                shapes.setdefault(pixels.shape, {})[i] = pixels
            except (OSError, ValueError, TypeError, AttributeError, MemoryError) as error:
                seen[i] = Score.missing(f"The image cannot be read: {error}", "invalid_image")
        for alike in shapes.values():
            features, log_probs = self._forward(torch.stack(list(alike.values())))
            for row, i in enumerate(alike):
                seen[i] = _sound(features[row], None if log_probs is None else log_probs[row])
        return [seen[i] for i in range(len(images))]

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:  # [n, d], [n, k]
        pixels = pixels.to(self._device, self._model.dtype)
        if self._classifies:
            logits = self._model(pixel_values=pixels).logits.float()
            return self._kept.flatten(1).float().cpu(), logits.log_softmax(dim=-1).cpu()
        if hasattr(self._model, "get_image_features"):
            # `pooler_output` is the projected embedding already, since transformers 5.
            features = self._model.get_image_features(pixel_values=pixels).pooler_output
        else:
            output = self._model(pixel_values=pixels)
            pooled = output.get("pooler_output") if self._pooled else None
            features = output.last_hidden_state[:, 0] if pooled is None else pooled
        return features.flatten(1).float().cpu(), None


@dataclass
class VisionVerifier(BaseVerifier):
    """A verifier that judges by what a vision model sees.

    model_name: a folder or hub id. batch_size: images a forward pass. dtype: of the weights.
    """

    model_name: str = "facebook/dinov2-base"
    batch_size: int = 16
    dtype: str = "fp32"

    needs: ClassVar[str] = "the weights of a vision model (model_name)"
    classifies: ClassVar[bool] = False

    _vision: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        find_checkpoint(self.model_name)
        check_model_options(self.batch_size, self.dtype)

    def load(self, device: str) -> None:
        self._vision = VisionModel(
            self.model_name,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=device,
            classifies=self.classifies,
        )

    def score(self, items: Sequence[Item]) -> list[Score]:
        views = self._vision.see([item.media for item in items])
        return [
            seen if isinstance(seen, Score) else self.judge(item, seen)
            for item, seen in zip(items, views, strict=True)
        ]

    def judge(self, item: Item, seen: Seen) -> Score:
        """The score of an item that could be seen."""
        raise NotImplementedError

    def seen_in(self, item: Item) -> list[Seen]:
        """What is seen in an item that was chosen: its image, or each frame of its video."""
        frames = item.media if isinstance(item.media, list) else [item.media]
        return [seen for seen in self._vision.see(frames) if isinstance(seen, Seen)]


def _sound(features: Tensor, log_probs: Tensor | None) -> Seen | Score:
    for numbers in (features, log_probs):
        if numbers is not None and not bool(numbers.isfinite().all()):
            return Score.missing("the model's numbers are not finite: try dtype fp32", "failed")
    return Seen(features, log_probs)
