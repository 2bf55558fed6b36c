"""Tensor maths that several searches share: points on a shell."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def on_shell(centre: Tensor, direction: Tensor, cosine: float) -> Tensor:
    """Points at this cosine to `centre`, at its norm, towards `direction` (Ma et al. 2025, §4).

    centre, direction: [n, ...]; the part of `direction` along `centre` is taken out, so that a
    Gaussian direction gives a uniform point of the shell. Computed in float64, returned in the
    centre's dtype.
    """
    c = centre.double().flatten(1)
    v = direction.to(centre.device).double().flatten(1)
    norm = c.norm(dim=1, keepdim=True)
    unit = c / norm
    tangent = v - (v * unit).sum(1, keepdim=True) * unit
    tangent = tangent / tangent.norm(dim=1, keepdim=True)
    moved = norm * (cosine * unit + math.sqrt(max(0.0, 1 - cosine**2)) * tangent)
    return moved.reshape(centre.shape).to(centre.dtype)


def repeat_each(n: int, times: int) -> list[int]:
    """Positions 0..n-1, each `times` times in a row."""
    return torch.arange(n).repeat_interleave(times).tolist()
