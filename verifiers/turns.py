"""A device that verifiers share with a pipeline: they say what they need it for, others say when.

What a verifier does outside of `on_device` (pictures resized, texts cut into tokens) goes on while
images are denoised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from verifiers.base import BaseVerifier

_FREE: AbstractContextManager[object] = nullcontext()
_turn: ContextVar[AbstractContextManager[object]] = ContextVar("turn", default=_FREE)


def on_device() -> AbstractContextManager[object]:
    """Within this block the device is the verifier's own; entering it may take a while."""
    return _turn.get()


class TurnTaking(BaseVerifier):
    """A verifier that needs the device only within `on_device`."""

    @property
    def takes_turns(self) -> bool:
        return True


@contextmanager
def taking(turn: AbstractContextManager[object]) -> Iterator[None]:
    """Within this block and thread, `on_device` waits for this turn."""
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)
