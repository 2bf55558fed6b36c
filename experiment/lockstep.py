"""Prompts that are searched for in lockstep, so that their candidates share batches.

Each prompt's search hands in its next batch, and waits until all others of its company have; then
those of one kind are made together, in the prompts' order, as many as fit. So what is in a batch
depends on what the searches ask for and never on time. An interrupted company is searched again:
what a journal knows takes part in the same turn as before, and is made again only to fill a batch
for what was lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from experiment.batches import Made
from experiment.making import Maker, Order
from experiment.prompts import Prompt, grouped
from experiment.stops import Halted
from pipelines.memory_errors import free

logger = logging.getLogger(__name__)

LOOK_UP = 0.1  # seconds after which who waits looks whether the run has ended


class Seat(Protocol):
    """Where an evaluator has its batches made."""

    def make(self, order: Order, most: int) -> Made:
        """An order made; `most`: candidates that a batch may hold."""

    def known(self, order: Order, most: int, apart: bool) -> None:
        """An order was made before; `apart`: when its prompt shared batches no more."""

    def leave(self) -> None:
        """From here on orders are made by themselves."""


@dataclass(frozen=True)
class Alone:
    """The seat of a prompt that shares no batches."""

    maker: Maker

    def make(self, order: Order, most: int) -> Made:
        return self.maker.make([order])[0]

    def known(self, order: Order, most: int, apart: bool) -> None:
        return

    def leave(self) -> None:
        return


@dataclass(frozen=True)
class _Call:
    """An order handed in. known: it was made before; apart: in a batch of its own, for sharing had
    been given up."""

    order: Order
    most: int
    known: bool = False
    apart: bool = False


_Served = Made | Exception | None  # an exception where making it raised; None: it was known


@dataclass
class Company:
    """Prompts in lockstep, by their numbers. check: raises where the run ends early.

    Batches are shared until one cannot be made: for lack of memory, or because its prompts' texts
    do not fit together. From then on each order has a batch of its own.
    """

    members: set[int]
    maker: Maker
    check: Callable[[], None]
    _here: threading.Condition = field(default_factory=threading.Condition)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _served: dict[int, _Served] = field(default_factory=dict)
    _apart: bool = False
    _stopped: bool = False

    @property
    def ended(self) -> bool:
        """Whether all of its searches have, or go on by themselves."""
        return not self.members

    def leave(self, index: int) -> None:
        """This prompt's search has ended, or goes on by itself."""
        with self._here:
            self.members.discard(index)
            self._here.notify_all()

    def stop(self) -> None:
        """The run ends: no batch is made without those who should have shared it."""
        with self._here:
            self._stopped = True
            self._here.notify_all()

    def turn(self, index: int, call: _Call) -> Made | None:
        """Wait for the others' calls, and for what comes of one's own; None for one that was known.

        Raises what making it raised.
        """
        with self._here:
            self._calls[index] = call
            try:
                self._wait(index)
            finally:
                self._calls.pop(index, None)
            served = self._served.pop(index)
        if isinstance(served, Exception):
            raise served
        return served

    def _wait(self, index: int) -> None:
        while index not in self._served:
            self.check()
            if self._stopped:
                raise Halted("The run has ended.")
            if self._calls.keys() >= self.members:
                self._serve()
                self._here.notify_all()
            else:
                self._here.wait(LOOK_UP)

    def _serve(self) -> None:
        for calls in _batches(self._calls):
            self._served |= self._made(calls)
        self._calls.clear()

    def _made(self, calls: Mapping[int, _Call]) -> dict[int, _Served]:
        """What becomes of the calls that may share a batch."""
        asked = {index: call.order for index, call in calls.items() if not call.known}
        self._apart |= any(call.apart for call in calls.values())
        found = None
        if asked and len(calls) > 1 and not self._apart:
            found = self._shared({index: call.order for index, call in calls.items()})
        if found is None:
            found = {index: self._alone(order) for index, order in asked.items()}
        return {index: found[index] if index in asked else None for index in calls}

    def _shared(self, orders: Mapping[int, Order]) -> dict[int, _Served] | None:
        """All of them made in one batch; None where they cannot be."""
        try:
            return dict(zip(orders, self.maker.make(list(orders.values())), strict=True))
        except Exception as error:
            logger.warning(
                "Batches of several prompts are given up for %d of them: %s", len(orders), error
            )
        self._apart = True
        free()  # outside the handler, which holds on to what had been made
        return None

    def _alone(self, order: Order) -> _Served:
        try:
            return replace(self.maker.make([order])[0], apart=self._apart)
        except Exception as error:  # raised where it is waited for
            return error


@dataclass(frozen=True)
class Place:
    """The seat of one of a company's prompts."""

    company: Company
    index: int

    def make(self, order: Order, most: int) -> Made:
        if not self._joins(order):
            return self.company.maker.make([order])[0]
        made = self.company.turn(self.index, _Call(order, most))
        assert made is not None
        return made

    def known(self, order: Order, most: int, apart: bool) -> None:
        if self._joins(order):
            self.company.turn(self.index, _Call(order, most, known=True, apart=apart))

    def leave(self) -> None:
        self.company.leave(self.index)

    def _joins(self, order: Order) -> bool:
        return self.index in self.company.members and not order.rollout.gradient


def _batches(calls: Mapping[int, _Call]) -> list[dict[int, _Call]]:
    """The calls of each batch, in the prompts' order: into the first that has room for them."""
    most = min(call.most for call in calls.values())
    batches: list[dict[int, _Call]] = []
    for index in sorted(calls):
        call = calls[index]
        room = (batch for batch in batches if _fits(call.order, batch.values(), most))
        batch = next(room, None)
        if batch is None:
            batches.append({index: call})
        else:
            batch[index] = call
    return batches


def _fits(order: Order, batch: Collection[_Call], most: int) -> bool:
    size = sum(len(call.order) for call in batch)
    return size + len(order) <= most and all(call.order.kind == order.kind for call in batch)


def companies(
    prompts: Sequence[Prompt],
    left: Collection[int],
    size: int,
    maker: Maker,
    check: Callable[[], None],
) -> dict[int, Company]:
    """The company of each prompt that has one, by its number.

    prompts: all of the run's; so many in a row keep company, whichever of them are left.
    """
    found: dict[int, Company] = {}
    for group in grouped(prompts, size):
        members = {prompt.index for prompt in group} & set(left)
        if len(members) > 1:
            company = Company(members, maker, check)
            found |= dict.fromkeys(members, company)
    return found


Tried = TypeVar("Tried")


def settled(
    tried: Iterable[tuple[Prompt, Tried]], companies: Mapping[int, Company]
) -> Iterator[tuple[Prompt, Tried]]:
    """What was tried, in its order, once the prompt's whole company has been: until then all of
    its journals are needed to make the same batches again."""
    held: list[tuple[Prompt, Tried]] = []
    for prompt, came in tried:
        held.append((prompt, came))
        if all(companies[p.index].ended for p, _ in held if p.index in companies):
            yield from held
            held = []
    yield from held
