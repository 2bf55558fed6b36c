"""Cheaper ways to denoise drafts: to rank noises by, never to deliver.

cached: diffusers' first-block cache skips the other blocks of a step whose first block changed
little. Its decision is one for the whole batch, and its state outlives a call that was left early;
so each draft is denoised alone, from a state set back before and after.
fp8: a second copy of the denoisers in 8-bit floats. With torchao, on a GPU that can, their matrix
products are in fp8, which is faster on Hopper once compiled. Elsewhere only weights are stored so,
and computing is in the run's own number format: no faster, but the drafts such weights make.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from pipelines.memory import Part
from pipelines.quantization import kept_from_fp8, stored_in_fp8
from utils import UserError

FP8_FROM = (8, 9)  # compute capability: what torchao asserts (NVIDIA's Ada, Hopper and later)
THRESHOLD = 0.08  # ParaAttention's for FLUX.1-dev at 28 steps


class Profile(Protocol):
    """How drafts are denoised.

    alone: one at a time. copies: models made for them. compiles: whether those are worth it.
    """

    alone: bool
    copies: Sequence[nn.Module]
    compiles: bool

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within this block the pipeline denoises in this way."""
        yield

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Around each stretch: nothing of another is left."""
        yield


class Cached:
    """First-block cache over the pipeline's denoisers.

    threshold: the relative change of the first block's residual below which the others are skipped.
    """

    alone = True
    copies: Sequence[nn.Module] = ()
    compiles = False

    def __init__(self, denoisers: Mapping[str, nn.Module], threshold: float = THRESHOLD) -> None:
        self._denoisers: list[Any] = list(denoisers.values())
        self._threshold = threshold
        with self.on():
            pass  # what cannot be cached is refused here

    @contextmanager
    def on(self) -> Iterator[None]:
        from diffusers import FirstBlockCacheConfig

        enabled = []
        try:
            for model in self._denoisers:
                try:
                    model.enable_cache(FirstBlockCacheConfig(threshold=self._threshold))
                except (AttributeError, ValueError) as error:
                    raise UserError(uncached(type(model).__name__)) from error
                enabled.append(model)
            yield
        finally:
            for model in enabled:
                model.disable_cache()

    @contextmanager
    def fresh(self) -> Iterator[None]:
        try:
            self._reset()
            yield
        finally:
            self._reset()

    def _reset(self) -> None:
        for model in self._denoisers:
            model._reset_stateful_cache()


class Fp8:
    """A second set of denoisers in fp8, in the pipeline's place of the first while drafts run."""

    alone = False

    def __init__(self, pipe: Any, denoisers: Mapping[str, nn.Module]) -> None:
        self._pipe = pipe
        self._exact = dict(denoisers)
        self._copies = {name: _in_fp8(model) for name, model in denoisers.items()}
        # Else each layer has a hook, which the compiler takes for a case of its own.
        self.compiles = all(map(_has_products, denoisers.values()))
        self.copies: Sequence[nn.Module] = list(self._copies.values())

    @contextmanager
    def on(self) -> Iterator[None]:
        try:
            self._place(self._copies)
            yield
        finally:
            self._place(self._exact)

    @contextmanager
    def fresh(self) -> Iterator[None]:
        yield

    def _place(self, models: Mapping[str, nn.Module]) -> None:
        for name, model in models.items():
            setattr(self._pipe, name, model)


def _in_fp8(model: Any) -> nn.Module:
    """A copy that shares the weights which it does not keep in fp8, so that there is never more
    than one layer twice; the hooks that count rows come along."""
    shared = {id(w): nn.Parameter(w.detach(), requires_grad=False) for w in model.parameters()}
    shared |= {id(b): b.detach() for b in model.buffers()}
    twin = copy.deepcopy(model, shared)
    twin.__dict__.pop("forward", None)  # compiled, it would be the first one's
    if not _has_products(model):
        stored_in_fp8(twin, model.dtype)
        return twin
    torchao: Any = importlib.import_module("torchao.quantization")
    # A scale a row is finer, and torchao has it for bf16 alone.
    bf16 = model.dtype == torch.bfloat16
    products = torchao.Float8DynamicActivationFloat8WeightConfig(
        granularity=torchao.PerRow() if bf16 else torchao.PerTensor(),
        set_inductor_config=False,  # it holds for the whole process: exact images are compiled too
    )
    torchao.quantize_(twin, products)
    return twin


def copies_needed(name: str, denoisers: Mapping[str, nn.Module], device: str) -> tuple[Part, ...]:
    """What a profile's copies will take on a device beside the models themselves."""
    if name != "fp8":
        return ()
    products = lacking_products(device) is None
    found = []
    for part, model in denoisers.items():
        layers = [_in_fp8_bytes(model, *each, products=products) for each in model.named_modules()]
        found.append(Part(f"{part} in fp8", "other", sum(layers), max(layers)))
    return tuple(found)


def _in_fp8_bytes(model: nn.Module, name: str, layer: nn.Module, *, products: bool) -> int:
    """Bytes of a layer's own weights in a copy. products: torchao's, of linear layers alone, with
    a scale in fp32 for each output at the most."""
    if products:
        return layer.weight.numel() + 4 * len(layer.weight) if isinstance(layer, nn.Linear) else 0
    if kept_from_fp8(model, name):
        return 0
    return sum(weight.numel() for weight in layer.parameters(recurse=False))


def lacking_products(device: torch.device | str) -> str | None:
    """Why matrix products cannot be in fp8 on a device; None where they can."""
    if torch.device(device).type != "cuda":
        return "only GPUs have them"
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed"
    if torch.version.hip or torch.cuda.get_device_capability(device) < FP8_FROM:
        return "this GPU has none (NVIDIA's have from compute capability 8.9 on)"
    return None


def _has_products(model: nn.Module) -> bool:
    return lacking_products(next(model.parameters()).device) is None


def uncached(model: str) -> str:
    """Why a model cannot be cached, and what to do."""
    return (
        f"{model} has no first-block cache that works in diffusers: set engine_args.profile to"
        " 'draft', to 'fp8' or to 'exact'."
    )


def make_profile(
    name: str, pipe: Any, denoisers: Mapping[str, nn.Module], threshold: float
) -> Profile | None:
    """What a profile does to drafts beyond their number of steps; None: nothing."""
    if name == "cached":
        return Cached(denoisers, threshold)
    return Fp8(pipe, denoisers) if name == "fp8" else None


def check_profile(
    name: str, denoisers: Sequence[type], offload: str, *, settled: bool = False
) -> None:
    """Refuse what a profile cannot do, before any weight loads.

    offload: as the config asks, or, settled, as there was room for.
    """
    for each in denoisers if name == "cached" else ():
        if not hasattr(each, "enable_cache"):
            raise UserError(uncached(each.__name__))
    if name in ("cached", "fp8") and offload not in ("auto", "none"):
        if settled:
            raise UserError(
                f"There is no room here for what engine_args.profile '{name}' needs in place: set"
                " it to 'draft', or take smaller batches or a larger GPU."
            )
        raise UserError(
            f"engine_args.profile '{name}' needs the denoiser in place: set engine_args.offload to"
            " 'none', or the profile to 'draft'."
        )
