"""Vision-language models by folder or hub id, for verifiers that show one an image and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils import UserError, find_checkpoint
from verifiers.base import Item, Score
from verifiers.turns import TurnTaking, on_device


@dataclass
class Vlm:
    """A loaded model and what turns chats into its inputs."""

    model: Any
    processor: Any
    device: str

    def inputs(self, asked: Sequence[Sequence[Any]], system: str = "") -> Any:
        """One padded batch of a chat each: what the user says, texts and images in their order."""
        before = [{"role": "system", "content": [_part(system)]}] if system else []
        chats = [
            [*before, {"role": "user", "content": [_part(part) for part in parts]}]
            for parts in asked
        ]
        # A model that thinks first would neither answer yes or no nor write JSON.
        thinks = "enable_thinking" in self.processor.chat_template
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,  # else a prompt could end its turn or claim an image
            processor_kwargs={"padding": True},
            **({"enable_thinking": False} if thinks else {}),
        )
        return inputs.to(self.device, dtype=self.model.dtype)

    def to(self, device: str) -> None:
        """Move the weights; nothing happens where they are there already."""
        import torch

        here, there = self.model.device, torch.device(device)
        if here.type != there.type or there.index not in (None, here.index):
            self.model.to(there)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass
class VlmVerifier(TurnTaking):
    """What verifiers that ask a vision-language model share: its options, loading and batches.

    model_name: folder or hub id of any transformers image-text-to-text model. batch_size: images
    answered at once. dtype: of the weights: fp32, fp16 or bf16. device: null for the pipeline's.
    min_pixels, max_pixels: images are resized to lie between; null for the checkpoint's own.
    """

    model_name: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    batch_size: int = 8
    dtype: str = "bf16"
    device: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    _vlm: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        from verifiers.batches import check_model_options

        find_checkpoint(self.model_name)
        check_model_options(self.batch_size, self.dtype)
        least = 1 if self.min_pixels is None else self.min_pixels
        if least < 1 or (self.max_pixels is not None and self.max_pixels < least):
            raise UserError(
                "verifier_args.min_pixels is at least 1, and max_pixels at least min_pixels."
            )

    def load(self, device: str) -> None:
        self._vlm = self._loaded(self.device or device)

    def _loaded(self, device: str) -> Vlm:
        pixels = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        limits = {name: value for name, value in pixels.items() if value is not None}
        return load_vlm(self.model_name, device, self.dtype, limits)

    def offload(self) -> None:
        """Leave the accelerator to others; `score` comes back by itself."""
        self._vlm.to("cpu")

    def onload(self) -> None:
        """Return to the device that `load` was given."""
        self._vlm.to(self._vlm.device)

    def score(self, items: Sequence[Item]) -> list[Score]:
        self.onload()
        scores: list[Score] = []
        for begin in range(0, len(items), self.batch_size):
            scores += self._batch(items[begin : begin + self.batch_size])
        return scores

    def _batch(self, items: Sequence[Item]) -> list[Score]:
        """Scores of one batch; where its inputs cannot be made, of each item alone."""
        try:
            inputs = self._inputs(items)
        except (AttributeError, OSError, TypeError, ValueError) as error:
            if len(items) == 1:
                why = f"The image cannot be shown to the model: {_reason(error)}"
                return [Score.missing(why, "invalid_image")]
            return [score for item in items for score in self._batch([item])]
        with on_device():
            return self._answers(inputs)

    def _inputs(self, items: Sequence[Item]) -> Any:
        """The model's inputs for a batch."""
        raise NotImplementedError

    def _answers(self, inputs: Any) -> list[Score]:
        """A score for each item of a batch."""
        raise NotImplementedError


def _reason(error: Exception) -> str:
    """The first line of an error that says anything."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line.rstrip(".") for line in lines if line), type(error).__name__)


def _part(shown: Any) -> dict[str, Any]:
    if isinstance(shown, str):
        # Lone surrogates, from undecodable arguments, are no text to a tokenizer.
        return {"type": "text", "text": shown.encode("utf-8", "replace").decode()}
    return {"type": "image", "image": shown.convert("RGB")}


def load_vlm(name: str, device: str, dtype: str, limits: dict[str, int]) -> Vlm:
    """The model and its processor; raises `UserError` where there is none that can be loaded."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from verifiers.checkpoints import from_pretrained

    checkpoint = find_checkpoint(name)
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        processor = load_processor(checkpoint, config, limits)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"The vision-language model '{checkpoint}' cannot be loaded: {_reason(error)}."
        ) from error
    return set_up(
        from_pretrained(AutoModelForImageTextToText, checkpoint, dtype), processor, device
    )


def set_up(model: Any, processor: Any, device: str) -> Vlm:
    """The model on its device, ready to answer."""
    _use_flash_attention(model, device)
    _answer_plainly(model, processor.tokenizer)
    return Vlm(model.to(device), processor, device)


def load_processor(checkpoint: str, config: Any, limits: dict[str, int]) -> Any:
    """The processor of images and text: that of videos is left out, for it needs torchvision."""
    from transformers import AutoImageProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"a model of type '{config.model_type}' takes no images and text")
    whole: Any = PROCESSOR_MAPPING[type(config)]

    class WithoutVideo(whole):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in whole.get_attributes() if name != "video_processor"]

    processor = WithoutVideo.from_pretrained(checkpoint)
    # PIL everywhere: torchvision, where it is installed, resizes to other pixels.
    images = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **limits)
    unknown = [name for name in limits if name not in images.valid_kwargs.__annotations__]
    if unknown:
        raise ValueError(f"its images are not resized by '{unknown[0]}'")
    processor.image_processor = images
    processor.tokenizer.padding_side = "left"  # answers begin where the padded questions end
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise ValueError("it has no chat template")
    return processor


def _use_flash_attention(model: Any, device: str) -> None:
    """Where it is installed and the model has it; transformers takes sdpa otherwise."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    halves = (torch.float16, torch.bfloat16)
    able = model._supports_flash_attn and model.dtype in halves and device.startswith("cuda")
    if able and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")


def _answer_plainly(model: Any, tokenizer: Any) -> None:
    """Drop the checkpoint's sampling defaults.

    A repetition penalty above all: it would keep a grader from giving a score twice.
    """
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
