"""Text encoders run once for the same arguments, whoever asks."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines.placement import Residence

REMEMBERED = 16  # calls: for each batch size in use a prompt, often a negative one too


class Encodings:
    """Stands in for a pipeline's `encode_prompt`, and remembers what the last calls came to."""

    def __init__(self, encode: Any, residence: Residence | None = None) -> None:
        self._encode = encode
        self._residence = residence
        self._memory: OrderedDict[Any, Any] = OrderedDict()
        functools.update_wrapper(self, encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = _frozen((args, kwargs))
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        with torch.no_grad():
            self._memory[key] = self._encode(*args, **kwargs)
        if self._residence is not None:
            self._residence.encoded()
        if len(self._memory) > REMEMBERED:
            self._memory.popitem(last=False)
        return self._memory[key]

    def forget(self) -> None:
        self._memory.clear()


def _frozen(value: Any) -> Any:
    """A hashable image of call arguments; tensors and pictures count by their content."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(v)) for name, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return (value.shape, value.dtype, hashlib.sha256(bits.numpy().tobytes()).digest())
    if hasattr(value, "tobytes"):  # PIL images, numpy arrays
        size = getattr(value, "size", None), getattr(value, "shape", None)
        return (type(value), size, hashlib.sha256(value.tobytes()).digest())
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing else, so never taken for another
    return value
