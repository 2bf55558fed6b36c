"""Which share of a run's time its models were at work, and its device."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pipelines.parts import denoisers

Span = tuple[Any, Any]
EVERY = 0.2  # seconds between two looks at the device


class Busy:
    """Within this block every pass through the denoiser, every decoding and every pass through
    other models (a judge's) is timed.

    On a GPU by events on its own clock, else by the processor's. What lies between two passes, a
    scheduler's step for one, counts as idle, as the encoding of prompts does; what the device waits
    for within a pass counts as work, so `device_share` stands beside.
    """

    def __init__(self, pipe: Any, others: Sequence[nn.Module] = ()) -> None:
        self._pipe = pipe
        self._others = others
        self._cuda = next(denoisers(pipe)[0].parameters()).is_cuda
        self._making: list[Span] = []
        self._judging: list[Span] = []
        self._handles: list[Any] = []
        self._device = Sampled() if self._cuda else None

    def __enter__(self) -> Busy:
        for module in denoisers(self._pipe):
            self._watch(module, self._making)
        for module in self._others:
            self._watch(module, self._judging)
        vae = self._pipe.vae
        object.__setattr__(vae, "decode", self._timed(vae.decode))
        if self._device is not None:
            self._device.start()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        object.__delattr__(self._pipe.vae, "decode")
        if self._device is not None:
            self._device.stop()

    def told(self) -> dict[str, Any]:
        """Shares of the time from the first pass to the last decoding, in which images are made.

        busy_share: some model works. made_share: the denoiser or the decoder. device_share: kernels
        run, as NVML samples it over the whole run; None where it does not, with the reason.
        """
        if self._cuda:
            torch.cuda.synchronize()
        first = self._making[0][0]
        making, judging = self._times(first, self._making), self._times(first, self._judging)
        phase = max(end for _, end in making)
        return {
            "busy_share": covered([*making, *judging], phase) / phase,
            "made_share": covered(making, phase) / phase,
            "device_share": None if self._device is None else self._device.share,
            **({"device_unsampled": self._device.why} if self._device and self._device.why else {}),
        }

    def _times(self, first: Any, spans: Iterable[Span]) -> list[tuple[float, float]]:
        return [(self._since(first, begin), self._since(first, end)) for begin, end in spans]

    def _since(self, first: Any, now: Any) -> float:
        return float(first.elapsed_time(now) if self._cuda else now - first)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _watch(self, module: nn.Module, spans: list[Span]) -> None:
        begun: list[Any] = []
        before = module.register_forward_pre_hook(lambda *_: begun.append(self._now()))
        after = module.register_forward_hook(lambda *_: spans.append((begun.pop(), self._now())))
        self._handles += [before, after]

    def _timed(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(decode)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = self._now()
            try:
                return decode(*args, **kwargs)
            finally:
                self._making.append((begun, self._now()))

        return timed


def covered(spans: Iterable[tuple[float, float]], until: float) -> float:
    """How much of the time from 0 to `until` lies in one span at least."""
    total = reached = 0.0
    for begin, end in sorted(spans):
        begin, end = max(begin, reached), min(end, until)
        if end > begin:
            total, reached = total + end - begin, end
    return total


class Sampled:
    """The share of time in which the GPU runs kernels, as NVML tells it every now and then."""

    def __init__(self) -> None:
        self.why: str | None = None  # it was not told
        self._seen: list[int] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def share(self) -> float | None:
        return sum(self._seen) / len(self._seen) / 100 if self._seen else None

    def _look(self) -> None:
        while not self._stopped.wait(EVERY):
            try:
                self._seen.append(torch.cuda.utilization())
            except Exception as error:  # no NVML, or one that does not tell: it has many ways
                self.why = f"{type(error).__name__}: {error}"
                return
