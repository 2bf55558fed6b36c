"""Watch a pipeline's decoder for numbers that are none, and let it decode once in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def watched(pipe: Any, rows: int) -> Iterator[list[bool]]:
    """Within this block the list tells which rows' pictures were decoded to finite numbers.

    A decoder that is handed something else than a row a picture (a video in pieces) answers for
    all rows alike. A pipeline without a decoder of its own has nothing to overflow.
    """
    sound = [True] * rows
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "decode"):
        yield sound
        return

    def wrapped(decode: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **kwargs: Any) -> Any:
            output = decode(*args, **kwargs)
            pixels = output if isinstance(output, Tensor) else output[0]
            whole = [bool(row.isfinite().all()) for row in pixels]
            whole = whole if len(whole) == rows else [all(whole)] * rows
            sound[:] = [before and now for before, now in zip(sound, whole, strict=True)]
            return output

        return look

    with replaced(vae, {"decode": wrapped(vae.decode)}):
        yield sound


def coarse(pipe: Any) -> bool:
    """Whether the pipeline has a decoder whose numbers are less than 32 bits wide, and could be:
    one that is moved piece by piece as it runs cannot be widened meanwhile."""
    vae = getattr(pipe, "vae", None)
    if not isinstance(vae, torch.nn.Module) or getattr(vae, "_diffusers_hook", None) is not None:
        return False
    weights = [w for w in vae.parameters() if w.is_floating_point()]
    return any(w.itemsize < 4 for w in weights) and not any(w.is_meta for w in weights)


@contextmanager
def in_float32(vae: Any) -> Iterator[None]:
    """Within this block the decoder computes in float32, whatever it is handed."""
    dtype = vae.dtype
    methods = {name: _fed_float32(getattr(vae, name)) for name in ("encode", "decode")}
    vae.to(dtype=torch.float32)
    try:
        with replaced(vae, methods):
            yield
    finally:
        vae.to(dtype=dtype)


def _fed_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})

    return call


@contextmanager
def replaced(thing: Any, methods: dict[str, Any]) -> Iterator[None]:
    """Instance attributes, for a while."""
    before = {name: thing.__dict__[name] for name in methods if name in thing.__dict__}
    thing.__dict__.update(methods)
    try:
        yield
    finally:
        for name in methods:
            if name in before:
                thing.__dict__[name] = before[name]
            else:
                thing.__dict__.pop(name)
