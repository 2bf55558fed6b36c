"""Which calls of a compiled function share a graph, told to torch before each of them.

Left to itself, torch 2.13 makes a graph for the first batch size, another for all sizes from 2 on
when it meets a second, and one for a single row in any case; where two of them fit, the one that
ran last is taken. With marks each batch size has one graph that it can go to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# What torch 2.13 leaves on a tensor that is marked.
MARKS = ("_dynamo_weak_dynamic_indices", "_dynamo_static_indices", "_has_dynamo_dim_marking")


def sharing_graphs(compiled: Callable[..., Any], *, first_apart: bool) -> Callable[..., Any]:
    """The function with one graph for a single row and one for all batches from 2 rows on.

    first_apart: the size of the first batch has a graph of its own, made for that size alone.
    """
    first: int | None = None

    @functools.wraps(compiled)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        tensors = list(_tensors((args, kwargs)))
        rows = tensors[0].shape[0] if tensors else 1
        first = first or rows
        if rows == 1:  # a case of its own to torch, whatever is marked
            return compiled(*args, **kwargs)
        with _marked(tensors, rows, static=first_apart and rows == first):
            return compiled(*args, **kwargs)

    return called


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors within arguments that have a first dimension, in their order."""
    if isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


@contextmanager
def _marked(tensors: Sequence[Tensor], rows: int, *, static: bool) -> Iterator[None]:
    """Their first dimensions have this size for good, or any from 2 on.

    The second holds for tables too, by rows or not: where a table meets what has a fixed size,
    torch fixes its own. If only what has as many rows as the batch were marked, a batch of as many
    as a table would need a graph more.
    """
    for each in tensors:
        if static and each.shape[0] == rows:
            torch._dynamo.mark_static(each, 0)
        elif not static and each.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(each, 0)
    try:
        yield
    finally:  # another model may take the same tensor for its first batch
        for each in tensors:
            for mark in MARKS:
                if hasattr(each, mark):
                    delattr(each, mark)
