"""A thread's current device, and copies to a device that nobody has to wait for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on(device: torch.device | str) -> AbstractContextManager[object]:
    """The device as the one that kernels and streams without a device of their own go to.

    CUDA has such a device for each thread, and a new thread begins with the first GPU.
    """
    return torch.cuda.device(device) if torch.device(device).type == "cuda" else nullcontext()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that the host need not wait.

    torch keeps the pinned memory until the copy has been made.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
