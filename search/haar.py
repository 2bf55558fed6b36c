"""The low band of spatial noise: what Haar wavelets of some level keep, block averages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COARSEST = 4  # blocks on the shorter side: what level 4 leaves of 64 x 64 latents


def block_grid(shape: torch.Size, level: int) -> tuple[int, int]:
    """How many blocks of side 2**level the last two axes hold; smaller blocks if the axes are."""
    height, width = shape[-2:]
    while level and math.ceil(min(height, width) / 2**level) < COARSEST:
        level -= 1
    return math.ceil(height / 2**level), math.ceil(width / 2**level)


def low_band(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[..., H, W] to [..., *grid]: each block's sum over the root of its size, so that unit
    noise stays unit noise.

    The blocks are as equal as can be. Where they divide the axes these are the coefficients that
    repeated 2 x 2 Haar sums give; padding the other axes, as wavelet libraries do, would raise
    the variance at their ends.
    """
    rows, columns = _bases(x, grid)
    return rows @ x @ columns.T


def with_low_band(x: Tensor, low: Tensor) -> Tensor:
    """x with another low band, its high band as it is; `low` may hold a batch for a single x."""
    grid = (low.shape[-2], low.shape[-1])
    rows, columns = _bases(x, grid)
    return x + rows.T @ (low - low_band(x, grid)) @ columns


def _bases(x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = x.shape[-2:]
    return _basis(height, grid[0], x), _basis(width, grid[1], x)


def _basis(size: int, blocks: int, like: Tensor) -> Tensor:
    """[blocks, size], orthonormal rows: each is constant over its block and zero elsewhere."""
    block = torch.arange(size) * blocks // size
    member = torch.nn.functional.one_hot(block, blocks).T.to(like)
    return member / member.sum(1, keepdim=True).sqrt()
