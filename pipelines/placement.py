"""Puts a loaded pipeline where there is room for it, and makes room for others in between.

Offloading is diffusers' own. Nothing here asks a pipeline for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from pipelines.devices import on
from pipelines.memory import Decoding, Needs, Offload, Part, Placement, free_memory, needs_of
from pipelines.parts import kind_of
from utils import UserError


@dataclass(frozen=True)
class Room:
    """What a placement is chosen by. free: bytes on the device before the pipeline came there."""

    needs: Needs
    offload: str
    vae: str
    free: int | None

    def placement(self, batch: int) -> Placement:
        return self.needs.of(batch).choose(self.offload, self.vae, self.free)


class Residence:
    """A pipeline on its device, as a placement says.

    alone: it shares the device with nobody: `leave` makes room for the verifier, and `enter`,
    before the next call, takes the place back. Neither does anything where all fits at once.
    room: what the placement was chosen by, where it was.
    """

    def __init__(
        self,
        pipe: Any,
        device: str,
        placement: Placement,
        *,
        alone: bool = False,
        room: Room | None = None,
    ) -> None:
        self.placement = placement
        self.alone = alone
        self._room = room
        self._pipe = pipe
        self._device = torch.device(device)
        self._away = False
        self._hooks: list[Any] = []
        self._copies: Sequence[nn.Module] = ()
        self._ways = [(decoder, _ways(decoder)) for decoder in _decoders(pipe)]  # before ours
        _set_decoding(pipe, placement.vae)
        self._settle()

    @property
    def device(self) -> torch.device:
        return self._device

    def described(self) -> dict[str, Any]:
        """For the record of a run."""
        placement = self.placement
        return {
            "offload": placement.offload,
            "text_encoders_leave": placement.text_leaves,
            "vae": placement.vae,
            "takes_turns": self.alone,
        }

    def holds(self, batch: int) -> bool:
        """Whether the weights of a pipeline that works in batches of this size would live where
        they do now, or nearer."""
        if self._room is None or batch <= self._room.needs.batch:
            return True
        planned = self._room.placement(batch)
        return _weights_of(planned) == _weights_of(self.placement)

    def suit(self, batch: int, vae: Decoding | Literal["auto"]) -> None:
        """Settle again, as is planned for batches of this size, decoded so."""
        if self._room is None:
            return
        room = replace(self._room, needs=self._room.needs.of(batch), vae=vae)
        if room == self._room:
            return
        self._room = room
        before, self.placement = self.placement, room.placement(batch)
        for decoder, ways in self._ways:
            for way, used in ways.items():
                setattr(decoder, way, used)
        _set_decoding(self._pipe, self.placement.vae)
        if _weights_of(self.placement) != _weights_of(before):
            _let_go(self._pipe, self._device)
            self._hooks = []
            self._settle()
            self._away = False

    def enter(self) -> None:
        """The pipeline is about to run."""
        if self._away:
            _move(self._staying(), self._device)
            self._away = False

    def leave(self) -> None:
        """Others need the device. What is offloaded is not there between calls anyway."""
        if self.alone and self.placement.offload == "none" and not self._away:
            _move(self._staying(), torch.device("cpu"))
            self._away = True

    def accompanied(self, copies: Sequence[nn.Module]) -> None:
        """Copies of the pipeline's models come and go with it from now on."""
        self._copies = copies

    @property
    def encoders_leave(self) -> bool:
        """Whether text encoders leave the device once they have encoded, and have to come back."""
        return bool(self._hooks) or self.placement.offload == "model"

    def encoded(self) -> None:
        """A prompt has been encoded: text encoders may go."""
        for hook in self._hooks:
            hook.offload()

    def _settle(self) -> None:
        with on(self._device):  # group offloading makes its stream on the current one
            self._settle_there()

    def _settle_there(self) -> None:
        pipe, device = self._pipe, self._device
        try:
            if self.placement.offload == "model":
                pipe.enable_model_cpu_offload(device=device)
            elif self.placement.offload == "group":
                pipe.enable_group_offload(
                    onload_device=device,
                    offload_type="leaf_level",
                    use_stream=device.type == "cuda",
                )
            elif self.placement.offload == "sequential":
                pipe.enable_sequential_cpu_offload(device=device)
            elif self.placement.text_leaves:
                self._hook_text_encoders()
                _move(self._staying(), device)
            else:
                pipe.to(device)
        except (NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"engine_args.offload '{self.placement.offload}' does not work here: {reason}."
            ) from error

    def _hook_text_encoders(self) -> None:
        """They come to the device by themselves when they are called, whoever calls them."""
        from accelerate import cpu_offload_with_hook

        for model in _models(self._pipe, text=True):
            _, hook = cpu_offload_with_hook(model, self._device)
            self._hooks.append(hook)

    def _staying(self) -> list[nn.Module]:
        """The models that a placement without offloading keeps on the device."""
        others = [*_models(self._pipe, text=False), *self._copies]
        return others if self._hooks else others + _models(self._pipe, text=True)


def settle(
    pipe: Any,
    device: str,
    call_args: Mapping[str, Any],
    batch: int,
    *,
    offload: Offload | Literal["auto"] = "auto",
    vae: Decoding | Literal["auto"] = "auto",
    gradient: bool = False,
    take_turns: bool = False,
    others: Sequence[Callable[[], None]] = (),
    copies: Sequence[Part] = (),
) -> Residence:
    """Choose a placement by what is needed and what is free, and put the pipeline there.

    gradient: the search differentiates through pipeline and verifier, so both must stay.
    take_turns: pipeline and verifiers do not share the device, unless all of them fit. others: make
    the verifiers, which are there already, leave the device. copies: what is to come beside it.
    """
    if torch.device(device).type == "cpu":
        offload, take_turns = "none", False
    if gradient and offload not in ("auto", "none"):
        raise UserError(
            f"engine_args.offload '{offload}' cannot serve a search that needs gradients: set it to"
            " 'none'."
        )
    if gradient:
        offload, take_turns = "none", False
    free = free_memory(device)
    if free is None:
        if offload == "auto":
            offload = "model" if take_turns else "none"
        placement = Placement(offload, "plain" if vae == "auto" else vae)
        return Residence(pipe, device, placement, alone=take_turns)
    needs = needs_of(pipe, call_args, batch)
    needs = replace(needs, parts=(*needs.parts, *copies))
    placement = needs.choose(offload, vae, free)
    alone = take_turns and not _together(needs, placement, offload, free)
    if alone:
        for leave in others:
            leave()
        free = free_memory(device)
        placement = needs.choose(offload, vae, free)
    return Residence(pipe, device, placement, alone=alone, room=Room(needs, offload, vae, free))


def _together(needs: Needs, placement: Placement, wanted: str, free: int) -> bool:
    """Whether the pipeline fits beside what is on the device, with no offload but one asked for."""
    return needs.fit(placement, free) and (wanted != "auto" or placement.offload == "none")


def _weights_of(placement: Placement) -> tuple[Offload, bool]:
    """Where weights live; decoding moves none."""
    return placement.offload, placement.text_leaves


def _let_go(pipe: Any, device: torch.device) -> None:
    """Remove what moves a pipeline's weights, diffusers' and ours."""
    from diffusers.hooks import group_offloading as group

    if device.type == "cuda":  # layers may still be on their way
        torch.cuda.synchronize(device)
    pipe.remove_all_hooks()
    kinds = group._GROUP_OFFLOADING, group._LAYER_EXECUTION_TRACKER
    for layer in (layer for model in _models(pipe) for layer in model.modules()):
        hooks: Any = getattr(layer, "_diffusers_hook", None)
        for kind in (*kinds, group._LAZY_PREFETCH_GROUP_OFFLOADING) if hooks else ():
            hooks.remove_hook(kind, recurse=False)


def _decoders(pipe: Any) -> list[Any]:
    return [m for m in pipe.components.values() if kind_of(type(m)) == "decoder"]


def _ways(decoder: Any) -> dict[str, Any]:
    """Whether it decodes one by one, and in tiles."""
    names = ("use_slicing", "use_tiling")
    return {name: getattr(decoder, name) for name in names if hasattr(decoder, name)}


def _set_decoding(pipe: Any, vae: str) -> None:
    for decoder in _decoders(pipe):
        for way in ("slicing", "tiling"):
            if vae == way and not hasattr(decoder, f"use_{way}"):
                name = type(decoder).__name__
                raise UserError(f"{name} has no {way}: set engine_args.vae to 'plain'.")
        if vae != "plain" and hasattr(decoder, "use_slicing"):
            decoder.enable_slicing()
        if vae == "tiling":
            decoder.enable_tiling()


def _models(pipe: Any, *, text: bool | None = None) -> list[nn.Module]:
    """A pipeline's models; text encoders alone, or all but these."""
    models = [model for model in pipe.components.values() if isinstance(model, nn.Module)]
    return [m for m in models if text in (None, kind_of(type(m)) == "text encoder")]


def _move(models: Sequence[nn.Module], device: torch.device) -> None:
    for model in models:
        model.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
