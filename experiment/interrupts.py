"""Signals that ask a run to end: the batch in flight is finished first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from experiment.stops import STOPPED

CODES = {  # exit codes; a scheduler that is about to take the machine away may send SIGUSR1
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGUSR1: STOPPED,
}


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end, and it has come to a good place."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = CODES[signal.Signals(number)]


def warned_while_loading() -> None:
    """From now on, and until a search begins, a scheduler's warning ends the process at once: with
    the exit code of a run to go on with, for nothing has been begun."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, leave)


class Interrupts:
    """Within this context the first signal is only noted, and the second ends the process at once.

    Nothing is done outside the main thread, nor within another such context.
    """

    _watching: ClassVar[Interrupts | None] = None

    def __init__(self) -> None:
        self._noted: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        if main and Interrupts._watching is None:
            Interrupts._watching = self
            # Also where a shell has set SIGINT to be ignored, as it does for background jobs.
            self._before = {number: signal.signal(number, self._note) for number in CODES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if Interrupts._watching is self:
            Interrupts._watching = None
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @staticmethod
    def check() -> None:
        """Raise `Interrupted` if a signal has come."""
        watching = Interrupts._watching
        if watching is not None and watching._noted is not None:
            raise Interrupted(watching._noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is not None and number == signal.SIGUSR1:
            return  # no more than a warning
        if self._noted is not None:
            os._exit(CODES[signal.Signals(number)])
        self._noted = number
        text = f"\n{signal.Signals(number).name}: finishing the batch in flight; once more to leave"
        os.write(2, f"{text} at once.\n".encode())
