"""How a device says that it has no memory left."""

from __future__ import annotations

import gc

import torch

SAID = (  # by drivers and libraries that do not raise torch's own error
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it comes from, says that memory ran out."""
    seen: BaseException | None = error
    while seen is not None:
        said = isinstance(seen, RuntimeError) and any(text in str(seen) for text in SAID)
        if said or isinstance(seen, torch.OutOfMemoryError):
            return True
        seen = seen.__cause__
    return False


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
