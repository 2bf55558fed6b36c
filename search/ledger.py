"""What a search may spend, what it has spent, and the part of a wish that the rest can pay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace

from search.core import Rollout

GRADIENT_NFE = 3  # a backward pass costs about two forward passes (Ma et al. 2025, appendix)


@dataclass(frozen=True)
class Cost:
    """Work done.

    nfe: scheduler steps of real candidates, guidance counted once, as the papers count.
    rows: rows through the denoiser, guidance included, measured; `padding_rows` are apart.
    """

    nfe: int = 0
    rows: int = 0
    padding_rows: int = 0
    decodes: int = 0
    verifications: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.nfe + other.nfe,
            self.rows + other.rows,
            self.padding_rows + other.padding_rows,
            self.decodes + other.decodes,
            self.verifications + other.verifications,
            self.seconds + other.seconds,
        )

    def share(self, k: int, n: int) -> Cost:
        """What k of the n candidates cost that all of this was spent on."""
        return Cost(
            self.nfe * k // n,
            self.rows * k // n,
            self.padding_rows * k // n,
            self.decodes * k // n,
            self.verifications * k // n,
            self.seconds * k / n,
        )


NOTHING = Cost()


@dataclass(frozen=True)
class Budget:
    """Limits for one prompt; None means no limit."""

    nfe: int | None = None
    rows: int | None = None
    verifications: int | None = None
    seconds: float | None = None

    @property
    def bounded(self) -> bool:
        return any(limit is not None for limit in astuple(self))


def nfe_each(rollout: Rollout) -> int:
    """Denoiser calls that a rollout costs per candidate."""
    calls = rollout.until - rollout.candidates.step
    return calls * GRADIENT_NFE if rollout.gradient else calls


@dataclass
class Ledger:
    """Keeps the account of one prompt.

    rows_each: rows through the denoiser that one NFE takes: 1, with guidance often 2.
    """

    limit: Budget
    rows_each: int = 1
    clock: Callable[[], float] = time.monotonic
    spent: Cost = Cost()
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def nfe_left(self) -> int | None:
        """What the budgets of NFE and of rows leave."""
        left = []
        if self.limit.nfe is not None:
            left.append(self.limit.nfe - self.spent.nfe)
        if self.limit.rows is not None:
            left.append((self.limit.rows - self.spent.rows) // self.rows_each)
        return min(left, default=None)

    @property
    def seconds_left(self) -> float | None:
        if self.limit.seconds is None:
            return None
        return self.limit.seconds - (self.clock() - self.started)

    def affordable(self, rollout: Rollout, reserve: Cost, timed: bool) -> int:
        """How many of a wish's candidates the rest of the budget can pay."""
        n = len(rollout.candidates)
        each = nfe_each(rollout)
        if self.nfe_left is not None and each:
            n = min(n, (self.nfe_left - reserve.nfe) // each)
        if self.limit.verifications is not None:
            left = self.limit.verifications - self.spent.verifications - reserve.verifications
            n = min(n, left) if rollout.score or left < 0 else n
        if timed and self.seconds_left is not None and self.seconds_left <= 0:
            n = 0
        return max(n, 0)

    def trim(
        self, rollout: Rollout, reserve: Cost = NOTHING, *, timed: bool = True
    ) -> Rollout | None:
        """The first candidates of a wish, as many as can be paid; None when that is none.

        reserve: what is not to be touched. timed: none when the time is up.
        """
        n = self.affordable(rollout, reserve, timed)
        if n == len(rollout.candidates):
            return rollout
        return replace(rollout, candidates=rollout.candidates.select(range(n))) if n else None

    def charge(self, cost: Cost) -> None:
        self.spent = self.spent + cost
