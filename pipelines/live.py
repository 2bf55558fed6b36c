"""How many bytes a computation keeps alive at once, told by running it on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(compute: Callable[[], Any]) -> int:
    """The most bytes that the results of its operations take at one time."""
    with _Fused(), _Alive() as alive:
        compute()
    return int(alive.peak)


class _Alive(TorchDispatchMode):
    """Adds up the storages that operations have made and that nobody has let go of yet."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                self._alive[ref.cdata] = (ref, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


class _Fused(TorchFunctionMode):
    """Attention as accelerators compute it, without the matrix of all its weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **named)
        query, _, value = args[:3] if args else (named["query"], named["key"], named["value"])
        return query.new_empty(*query.shape[:-1], value.shape[-1])
