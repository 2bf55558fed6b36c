"""What the GPU benchmarks ask of a device and of the compiler."""

from __future__ import annotations

import gc
import statistics
import time

import torch

from pipelines.memory import GB

SIDE = 8192  # of the matrices whose product is timed
PRODUCTS = 10


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reset(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: str) -> float:
    return torch.cuda.max_memory_allocated(device) / GB


def graphs() -> int:
    """Graphs that were compiled since the last pipeline."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def recompilations() -> int:
    """Graphs since the last pipeline that were made since no earlier one of their function fit."""
    seen = torch._dynamo.utils.get_compilation_metrics()
    return sum(each.recompile_reason is not None for each in seen)


def fresh_compiler() -> None:
    """Forget what other pipelines compiled: their shapes would make these graphs dynamic."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._dynamo.utils.clear_compilation_metrics()


def matrix_tflops(device: str) -> float | None:
    """TFLOP/s of a bf16 product of random matrices, the median of ten; None off a GPU.

    Floors go by another day's figure (`benchmarks.floors.PEAK`): this one tells whether the device
    is as fast today.
    """
    if not device.startswith("cuda"):
        return None
    left, right = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    taken = []
    for _ in range(3 + PRODUCTS):
        wait(device)
        started = time.perf_counter()
        torch.mm(left, right)
        wait(device)
        taken.append(time.perf_counter() - started)
    return 2 * SIDE**3 / statistics.median(taken[3:]) / 1e12
