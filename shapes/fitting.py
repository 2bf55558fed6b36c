"""The training loop of the shapes world: AdamW against the clock, averaged weights, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WARM_UP = 500  # steps
AVERAGING = 0.999


@dataclass(frozen=True)
class Workshop:
    """Where training runs: the folder, the device, and all of its randomness."""

    out: Path
    device: torch.device
    generator: torch.Generator
    compiled: bool

    def compile(self, function: Any) -> Any:
        return torch.compile(function) if self.compiled else function

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def integers(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator, device=self.device)

    def half_precision(self) -> torch.autocast:
        """bfloat16 where it is quicker."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def open_workshop(out: Path, *, compiled: bool, seed: int = 0) -> Workshop:
    """A folder to train in, on the accelerator if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        # Fused kernels fail on attention with a bias that is trained.
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)  # initial weights have no generator of their own
    generator = torch.Generator(device).manual_seed(seed)
    return Workshop(out, device, generator, compiled and device.type == "cuda")


class Average:
    """An exponential average of networks' weights, quicker to forget in the beginning."""

    def __init__(self, networks: Sequence[torch.nn.Module]) -> None:
        self.weights: list[Tensor] = [p for network in networks for p in network.parameters()]
        self.averages = [p.detach().clone() for p in self.weights]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        keep = min(AVERAGING, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.averages, self.weights, 1 - keep)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the networks their average weights, for good."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.copy_(average)


@dataclass(frozen=True)
class Course:
    """How one network is trained: for so long, so fast."""

    name: str
    seconds: float
    rate: float
    weight_decay: float = 0.01


def learning_rate(course: Course, step: int, share: float) -> float:
    """Warm up by steps, hold for half of the time, then anneal to a twentieth by a cosine."""
    fall = math.cos(math.pi * max(0.0, (share - 0.5) / 0.5))
    return course.rate * min(1.0, (step + 1) / WARM_UP) * (0.5 * (1 + fall) * 0.95 + 0.05)


def fit(
    course: Course, networks: Sequence[torch.nn.Module], loss: Callable[[], Tensor], shop: Workshop
) -> None:
    """Train on a loss that draws its own batch; the networks end with their average weights.

    At least one step is taken. `NAME.ckpt` lets a later call with more time go on from here.
    """
    weights = [p for network in networks for p in network.parameters()]
    optimizer = torch.optim.AdamW(
        weights,
        lr=course.rate,
        weight_decay=course.weight_decay,
        betas=(0.9, 0.99),
        fused=shop.device.type == "cuda",
    )
    average = Average(networks)
    file = shop.out / f"{course.name}.ckpt"
    step = first = _resume(file, networks, optimizer, average, shop)
    start, spent, total = time.monotonic(), 0.0, torch.zeros((), device=shop.device)
    while spent < course.seconds or step == first:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(course, step, min(1.0, spent / max(course.seconds, 1e-9)))
        with shop.half_precision():
            value = loss()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        if step - first < 5 and not bool(torch.isfinite(norm)):  # each check waits for the device
            raise ArithmeticError(f"{course.name}: loss {float(value)}, gradient {float(norm)}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        step, total = step + 1, total + value.detach()
        spent = time.monotonic() - start
        if step % 500 == 0:
            print(f"{course.name}: step {step}, loss {float(total) / 500:.4f}, {spent:.0f} s")
            total.zero_()
    _save(file, step, networks, optimizer, average, shop)
    average.apply()
    print(f"{course.name}: {step} steps")


def _save(
    file: Path,
    step: int,
    networks: Sequence[torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    average: Average,
    shop: Workshop,
) -> None:
    state = {
        "step": step,
        "networks": [network.state_dict() for network in networks],
        "optimizer": optimizer.state_dict(),
        "averages": average.averages,
        "averaged": average.steps,
        "generator": shop.generator.get_state(),
    }
    torch.save(state, file)


def _resume(
    file: Path,
    networks: Sequence[torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    average: Average,
    shop: Workshop,
) -> int:
    """Load what an earlier call left, if any, and return its number of steps."""
    if not file.exists():
        return 0
    state = torch.load(file, map_location=shop.device)
    for network, weights in zip(networks, state["networks"], strict=True):
        network.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        for mine, theirs in zip(average.averages, state["averages"], strict=True):
            mine.copy_(theirs)
    average.steps = state["averaged"]
    shop.generator.set_state(state["generator"].cpu())
    return int(state["step"])
