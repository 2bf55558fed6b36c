"""Which share of a run's time its denoiser and decoder were at work."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from pipelines.denoiser import denoisers


class Busy:
    """Within this block every pass through the denoiser and every decoding is timed.

    On a GPU by events on its own clock, else by the processor's. What lies between two passes, a
    scheduler's step for one, counts as idle, as the encoding of prompts does.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._cuda = next(denoisers(pipe)[0].parameters()).is_cuda
        self._spans: list[tuple[Any, Any]] = []
        self._begun: Any = None
        self._handles: list[Any] = []

    def __enter__(self) -> Busy:
        for module in denoisers(self._pipe):
            self._handles.append(module.register_forward_pre_hook(lambda *_: self._begin()))
            self._handles.append(module.register_forward_hook(lambda *_: self._end()))
        vae = self._pipe.vae
        object.__setattr__(vae, "decode", self._timed(vae.decode))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        object.__delattr__(self._pipe.vae, "decode")

    @property
    def share(self) -> float:
        """Of the time from the first pass to the last decoding."""
        if self._cuda:
            torch.cuda.synchronize()
        first = self._spans[0][0]
        ends = [(self._since(first, begin), self._since(first, end)) for begin, end in self._spans]
        return sum(end - begin for begin, end in ends) / max(end for _, end in ends)

    def _since(self, first: Any, now: Any) -> float:
        return first.elapsed_time(now) if self._cuda else now - first

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _begin(self) -> None:
        self._begun = self._now()

    def _end(self) -> None:
        self._spans.append((self._begun, self._now()))

    def _timed(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(decode)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            try:
                return decode(*args, **kwargs)
            finally:
                self._end()

        return timed
