"""Which of torch's attention kernels is tried first, in any pipeline and with no code for any.

torch keeps its choice for the whole process, not for a thread. Here it holds only while a denoiser
runs its pipeline, which it does in turn with verifiers: they never see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.loading import DTYPES
from utils import UserError

# In the order in which torch tries them on most devices.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
ASKING = {
    "flash": can_use_flash_attention,
    "efficient": can_use_efficient_attention,
    "cudnn": can_use_cudnn_attention,
}


@contextmanager
def preferring(name: str) -> Iterator[None]:
    """Within this block the named kernel comes first; for what it cannot do, the others.

    "default": torch's own order, untouched. Compiled graphs keep the kernel they were traced with.
    """
    if name == "default":
        yield
        return
    first = KERNELS[name]
    others = [kernel for kernel in KERNELS.values() if kernel != first]
    # "math" does everything; and CPUs know no order, only what is allowed.
    allowed = [first] if name == "math" else [first, *others]
    # The compiler's files (torch 2.13) do not tell kernels apart: without a tag of its own, a graph
    # is taken from them that was traced with another.
    tag = f"{torch.compiler.config.cache_key_tag} attention={name}".strip()
    with (
        sdpa_kernel(allowed, set_priority=True),
        torch.compiler.config.patch(cache_key_tag=tag),  # type: ignore[attr-defined]
    ):
        yield


def can_attend(name: str, device: str, dtype: str) -> bool:
    """Whether the device has such a kernel for this number format; a shape may still lack it."""
    if name not in ASKING:
        return True
    kind = torch.device(device).type
    if kind != "cuda":
        return kind == "cpu" and name == "flash"
    x = torch.empty(1, 1, 128, 64, device=device, dtype=getattr(torch, DTYPES[dtype]))
    return ASKING[name](SDPAParams(x, x, x, None, 0.0, False, False))


def check_attention(name: str, device: str, dtype: str) -> None:
    """Refuse a kernel that the device has not, before any weight loads."""
    if not can_attend(name, device, dtype):
        raise UserError(
            f"The device '{device}' has no '{name}' attention in {dtype}: set"
            " engine_args.attention to 'auto'."
        )
