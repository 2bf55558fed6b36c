"""Why a run stops before its end, so that it can be resumed."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from utils import UserError
from verifiers.base import NO_ANSWER, Score

UNSCORED_IN_A_ROW = 32
FAILED_IN_A_ROW = 5  # prompts
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SILENT = NO_ANSWER | {"invalid_image"}  # a blocked image is an answer
STOPPED = 4  # the exit code


class Stopped(UserError):
    """The run cannot go on as things are; what it has done is kept."""

    code = STOPPED


class Silent(Stopped):
    """The verifier has not answered for a long time."""


class Halted(Stopped):
    """Another prompt, searched for at the same time, has ended the run."""


class Vigil:
    """Counts the images in a row, over all prompts, that got no score.

    of: whose score, in words.
    """

    def __init__(self, of: str = "") -> None:
        self._of, self._missing, self._reason = of, 0, ""

    def see(self, scores: Sequence[Score]) -> None:
        for score in scores:
            if score.status == "ok":
                self._missing = 0
            elif score.status in SILENT:
                self._missing += 1
                self._reason = score.explanation
        if self._missing >= UNSCORED_IN_A_ROW:
            raise Silent(
                f"{self._missing} images in a row got no score{self._of}, the last one"
                f" because: {self._reason.rstrip('.')}. Mend that and resume."
            )


def disk_full(error: BaseException) -> bool:
    """Whether there is no room left for a file."""
    return isinstance(error, OSError) and error.errno in FULL


class Watch:
    """What has come of a process's work so far: one of a run, or of all runs of a comparison."""

    def __init__(self) -> None:
        self.worked = False  # whether a batch has been made, judged and kept
        self._vigils: dict[str, Vigil] = {}
        self.failed = 0  # prompts in a row

    def scored(self, scores: Sequence[Score], judge: str | None = None) -> None:
        """Images were judged, by the verifier or by this judge; raises after a long silence."""
        of = "" if judge is None else f" from the judge '{judge}'"
        self._vigils.setdefault(of, Vigil(of)).see(scores)

    def searched(self, failed: str | None) -> None:
        """A prompt's search has ended, or failed for this reason; raises after several."""
        self.failed = 0 if failed is None else self.failed + 1
        if self.failed >= FAILED_IN_A_ROW:
            raise Stopped(f"{self.failed} prompts in a row failed, the last one: {failed}")
