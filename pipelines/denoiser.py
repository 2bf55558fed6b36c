"""Draw, denoise and decode with an unmodified diffusers pipeline, and count what that costs.

Every call takes one prompt and a batch of candidates; how big a batch may be is the caller's
business. Encoded prompts are remembered, rows through the denoiser are counted by a hook.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.layout import Layout, index_noise
from pipelines.schedule import Level, levels
from pipelines.window import Halt, StepWindow, Stretch, window
from utils import UserError

ENCODED_PROMPTS = 32  # remembered encodings: a prompt has one for each batch size in use


@dataclass(frozen=True)
class Drawn:
    """Fresh noise as the pipeline draws it, and where on the schedule it stands."""

    latents: Tensor
    step: int


@dataclass(frozen=True)
class Denoised:
    """Latents further on, the last step's estimate of the clean ones, rows denoised on the way."""

    latents: Tensor
    clean: Tensor
    rows: int


@dataclass(frozen=True)
class Decoded:
    """What people see of each candidate: a PIL image, or a video's list of PIL frames."""

    media: list[Any]
    filtered: list[bool]  # blackened by the pipeline's own safety checker


class Denoiser:
    """One loaded pipeline with the arguments of its call."""

    def __init__(self, pipe: Any, call_args: Mapping[str, Any]) -> None:
        self.pipe = pipe
        self.call_args = dict(call_args)
        self._accepts = set(inspect.signature(type(pipe).__call__).parameters)
        self._rows = 0
        self._layout: Layout | None = None
        self._halt_at_forward = False
        pipe.set_progress_bar_config(disable=True)
        if hasattr(pipe, "encode_prompt"):
            object.__setattr__(pipe, "encode_prompt", _remembered(pipe.encode_prompt))
        for module in denoisers(pipe):
            module.register_forward_pre_hook(self._hook(module), with_kwargs=True)

    @functools.cached_property
    def video(self) -> bool:
        return "num_frames" in self._accepts

    @property
    def label(self) -> str | None:
        """The class asked for, where the pipeline is class-conditional."""
        labels = self.call_args.get("class_labels")
        return None if labels is None else str(labels[0] if isinstance(labels, list) else labels)

    def draw(self, prompt: str, seeds: Sequence[int]) -> Drawn:
        """The noise plain diffusers would start from with a CPU generator for each seed.

        Latents: [n, ...] in the loop's own layout and scale. Costs no denoiser row.
        """
        seen = self._run(prompt, Stretch(0, None, None, tuple(seeds)), halt_at_forward=True)
        assert seen.state is not None
        return Drawn(seen.state, seen.first)

    def denoise(
        self,
        prompt: str,
        latents: Tensor,
        seeds: Sequence[int],
        start: int,
        until: int,
        guidance: float = 1.0,
    ) -> Denoised:
        """Take steps [start, until); `guidance` is a factor on the pipeline's guidance scale."""
        before = self._rows
        stretch = Stretch(start, until, latents, tuple(seeds))
        seen = self._run(prompt, stretch, extra=self._guided(guidance))
        if seen.taken != until - start:
            raise RuntimeError(
                f"{type(self.pipe).__name__} took {seen.taken} steps instead of {until - start}"
            )
        assert seen.state is not None and seen.clean is not None
        return Denoised(seen.state, seen.clean, self._rows - before)

    def decode(self, prompt: str, latents: Tensor, seeds: Sequence[int], steps: int) -> Decoded:
        """Images, or videos, of clean latents, by the pipeline's own way after its last step."""
        output: dict[str, Any] = {}
        stretch = Stretch(steps, steps, latents, tuple(seeds), finish=True)
        self._run(prompt, stretch, output=output)
        values = list(output.values())
        flags = output.get("nsfw_content_detected") or [False] * len(seeds)
        return Decoded(list(values[0]), [bool(flag) for flag in flags])

    def layout(self, prompt: str) -> Layout:
        """How the loop's latents at step 0 are a permutation of spatial noise."""
        if self._layout is None:
            if self.draw(prompt, [0]).step:
                raise UserError("A pipeline that starts from an image has no noise to lay out.")
            with index_noise(self.pipe) as digits:
                self._layout = digits.read(lambda: self.draw(prompt, [0]).latents)
        return self._layout

    def schedule(self, prompt: str, rows: int = 1) -> tuple[Level, ...]:
        """Signal and noise level before each step and after the last (so one more than steps).

        rows: the batch size at which the prompt is encoded on the way, and remembered.
        """
        stretch = Stretch(0, None, None, (0,) * rows)
        return levels(self._run(prompt, stretch, halt_at_forward=True).scheduler)

    def _guided(self, factor: float) -> dict[str, float]:
        """The call arguments that scale guidance by a factor; none for a factor of 1."""
        if factor == 1.0:
            return {}
        # A true classifier-free scale beside a distilled one (FLUX, Qwen-Image) is used when set.
        for name in ("true_cfg_scale", "guidance_scale"):
            chosen = self.call_args.get(name)
            if chosen is None and name == "guidance_scale" and name in self._accepts:
                chosen = inspect.signature(type(self.pipe).__call__).parameters[name].default
            if chosen is not None:
                return {name: float(chosen) * factor}
        raise UserError(f"{type(self.pipe).__name__} has no guidance scale that could be changed.")

    def _run(
        self,
        prompt: str,
        stretch: Stretch,
        *,
        extra: Mapping[str, Any] | None = None,
        halt_at_forward: bool = False,
        output: dict[str, Any] | None = None,
    ) -> StepWindow:
        arguments = {**self._batched(prompt, stretch.seeds), **(extra or {})}
        with window(self.pipe, stretch) as seen:
            self._halt_at_forward = halt_at_forward
            try:
                result = self.pipe(**arguments)
                if output is not None:
                    output.update(result)
            except Halt:
                self.pipe.maybe_free_model_hooks()  # the call's own end was not reached
            finally:
                self._halt_at_forward = False
        return seen

    def _batched(self, prompt: str, seeds: Sequence[int]) -> dict[str, Any]:
        """The call's arguments for a batch: its texts in lists, a generator for each seed."""
        n = len(seeds)
        arguments = {
            name: [value] * n if isinstance(value, str) and "prompt" in name else value
            for name, value in self.call_args.items()
        }
        if "prompt" in self._accepts:
            arguments["prompt"] = [prompt] * n
        if "class_labels" in arguments:
            labels = arguments["class_labels"]
            arguments["class_labels"] = (labels if isinstance(labels, list) else [labels]) * n
        if "output_type" in self._accepts:
            arguments["output_type"] = "pil"
        arguments["generator"] = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        return arguments

    def _hook(self, module: torch.nn.Module) -> Any:
        first = next(iter(inspect.signature(module.forward).parameters))

        def before_forward(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._halt_at_forward:
                raise Halt
            self._rows += len(args[0] if args else kwargs[first])

        return before_forward


def denoisers(pipe: Any) -> list[torch.nn.Module]:
    """The pipeline's diffusers models that are no autoencoders: UNet, transformer, its experts."""
    from diffusers import ModelMixin

    return [
        part
        for part in pipe.components.values()
        if isinstance(part, ModelMixin) and not hasattr(part, "decode")
    ]


def _remembered(encode: Any) -> Any:
    """`encode_prompt` that runs the text encoders once for the same arguments."""
    memory: OrderedDict[Any, Any] = OrderedDict()

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        key = _frozen((args, kwargs))
        if key in memory:
            memory.move_to_end(key)
        else:
            with torch.no_grad():
                memory[key] = encode(*args, **kwargs)
            if len(memory) > ENCODED_PROMPTS:
                memory.popitem(last=False)
        return memory[key]

    return encode_prompt


def _frozen(value: Any) -> Any:
    """A hashable image of call arguments; tensors and other objects count by identity."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(v)) for name, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, Tensor):
        return id(value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
