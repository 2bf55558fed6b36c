"""The driver: answers a search's wishes until it ends, its rounds do, or its budget does."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch

from search.core import Candidates, Flow, Rollout, Scored, Search, Space
from search.ledger import Cost, Ledger, nfe_each
from search.own import flow_of, sized


@dataclass(frozen=True)
class Answer:
    """One wish as it was answered, and what that cost."""

    rollout: Rollout  # as paid for: trimmed, and with its round's number
    scored: Scored
    cost: Cost
    round: int  # counted from 1


Evaluate = Callable[[Rollout], tuple[Scored, Cost]]


def play(
    search: Search,
    space: Space,
    evaluate: Evaluate,
    ledger: Ledger,
    rounds: int | None = None,
) -> Iterator[Answer]:
    """Yield each answered wish; `rounds` and the ledger's budget end the search, whichever first.

    The last wish is trimmed to what is left of the budget, answered, and its flow closed, so that
    no search ever sees half an answer. A flow that ends before its rounds or its budget do starts
    again with fresh noise, fitted to what is left, if that pays for an image. One that is ended
    before it has finished any candidate has its best one finished, for which the budget is kept.
    """
    finished, image, overdue = 0, space.steps - space.first, True
    while rounds is None or finished < rounds:
        before, left = ledger.spent.nfe, ledger.nfe_left
        if left is not None and left < image:
            return
        fitted = search if left is None else sized(search, image, left)
        flow = flow_of(fitted, space, first=finished == 0)
        paid = wishes(flow, ledger, finished, rounds, Ending(space, overdue))
        for answer in _once(paid, evaluate, ledger):
            finished = answer.round
            overdue = overdue and not finishes(answer.rollout, space)
            yield answer
        if ledger.spent.nfe == before or not (ledger.limit.bounded or rounds):
            return


def _once(
    paid: Generator[Rollout, Scored, None], evaluate: Evaluate, ledger: Ledger
) -> Iterator[Answer]:
    """One pass of the search's flow."""
    rollout = next(paid, None)
    while rollout is not None:
        assert rollout.round is not None
        scored, cost = evaluate(rollout)
        ledger.charge(replace(cost, nfe=nfe_each(rollout) * len(rollout.candidates)))
        scored = _with_lineage(scored)
        yield Answer(rollout, scored, cost, rollout.round)
        try:
            rollout = paid.send(scored)
        except StopIteration:
            break
    paid.close()


def wishes(
    flow: Flow,
    ledger: Ledger,
    offset: int = 0,
    rounds: int | None = None,
    ending: Ending | None = None,
) -> Generator[Rollout, Scored, None]:
    """A flow's wishes as they can be paid, their rounds numbered from `offset` + 1, to their end.

    Sent an answer for each, which has been charged by then. The last wish is trimmed to what is
    left, and its answer not passed on. ending: sees to it that a candidate is finished.
    """
    wish = next(flow, None)
    current, number = offset, offset
    while wish is not None:
        number = number + 1 if wish.round is None else offset + wish.round
        reserve = Cost() if ending is None else ending.reserve(wish)
        paid = None if rounds is not None and number > rounds else ledger.trim(wish, reserve)
        if paid is None:
            break
        current = number
        scored = yield replace(paid, round=current)
        if ending is not None:
            ending.take(paid, scored)
        if len(paid.candidates) < len(wish.candidates):
            break
        try:
            wish = flow.send(scored)
        except StopIteration:
            return  # of its own accord
    flow.close()
    last = None if ending is None or wish is None else ending.wish(wish, ledger)
    if last is not None:
        yield replace(last, round=max(current, offset + 1))


def finishes(rollout: Rollout, space: Space) -> bool:
    """Whether images come of it."""
    return rollout.score and not rollout.draft and rollout.until == space.steps


@dataclass
class Ending:
    """Keeps enough of a budget, and a candidate at hand, that a pass comes to one image at least.

    overdue: there is no image at all yet, so that one is made even when the time is up.
    """

    space: Space
    overdue: bool
    owed: bool = True
    _best: Candidates | None = None
    _score: float = -math.inf
    _at: tuple[int, int] = (0, 0)  # schedule and step of the best

    def reserve(self, wish: Rollout) -> Cost:
        """What finishing one candidate will take after this wish, if none is finished yet."""
        if not self.owed or finishes(wish, self.space):
            return Cost()
        point = self.space.first if wish.draft else wish.until
        return Cost(nfe=self.space.steps - point, verifications=1)

    def take(self, rollout: Rollout, scored: Scored) -> None:
        """Keep the best so far; scores of another step or schedule do not compare."""
        self.owed = self.owed and not finishes(rollout, self.space)
        best, at = scored.top(1), (rollout.draft, rollout.until)
        if at != self._at or best.best > self._score:
            self._best = best.start if rollout.draft else best.candidates
            self._score, self._at = best.best, at

    def wish(self, unpaid: Rollout, ledger: Ledger) -> Rollout | None:
        """The best candidate finished, or one of a wish that could not be paid at all."""
        if not self.owed:
            return None
        candidates, draft = self._best, self._at[0]
        if candidates is None:
            candidates, draft = unpaid.candidates.select([0]), unpaid.draft
        if draft:
            candidates = self.space.exact(candidates, draft)
        return ledger.trim(Rollout(candidates, until=self.space.steps), timed=not self.overdue)


def foreseen(
    search: Search, space: Space, ledger: Ledger, rounds: int | None = None
) -> Iterator[Rollout]:
    """The wishes that `play` will make of a blind search, worked out without an answer.

    space, ledger: copies, for they are used up.
    """

    def evaluate(rollout: Rollout) -> tuple[Scored, Cost]:
        n = len(rollout.candidates)
        unknown = torch.full((n,), torch.nan, dtype=torch.float64)
        moved = replace(rollout.candidates, step=rollout.until)
        scored = Scored(rollout.candidates, moved, unknown, (-1,) * n, unknown[:0])
        rows = ledger.rows_each * nfe_each(rollout) * n
        return scored, Cost(rows=rows, verifications=n if rollout.score else 0)

    for answer in play(search, space, evaluate, ledger, rounds):
        yield answer.rollout


def _with_lineage(scored: Scored) -> Scored:
    """The answer with each candidate's own id as the parent of whatever is made from it."""
    own = tuple((i,) for i in scored.ids)

    def named(candidates: Candidates) -> Candidates:
        return replace(candidates, parents=own)

    return replace(scored, start=named(scored.start), candidates=named(scored.candidates))
