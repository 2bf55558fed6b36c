"""The driver: answers a search's wishes until it ends, its rounds do, or its budget does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch

from search.core import Candidates, Flow, Rollout, Scored, Search, Space
from search.ledger import Cost, Ledger, nfe_each


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
    again with fresh noise, fitted to what is left.
    """
    finished = 0
    while rounds is None or finished < rounds:
        before = ledger.spent.nfe
        left = ledger.nfe_left
        fitted = search if left is None else search.sized(space.steps - space.first, left)
        for answer in _once(fitted, space, evaluate, ledger, finished, rounds):
            finished = answer.round
            yield answer
        if ledger.spent.nfe == before or not (ledger.limit.bounded or rounds):
            return


def _once(
    search: Search,
    space: Space,
    evaluate: Evaluate,
    ledger: Ledger,
    offset: int,
    rounds: int | None,
) -> Iterator[Answer]:
    """One pass of the search's flow, its rounds numbered from `offset` + 1."""
    paid = wishes(search.flow(space), ledger, offset, rounds)
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
    flow: Flow, ledger: Ledger, offset: int = 0, rounds: int | None = None
) -> Generator[Rollout, Scored, None]:
    """A flow's wishes as they can be paid, with the numbers of their rounds, until it ends.

    Sent an answer for each, which has been charged by then. The last wish is trimmed to what is
    left, and its answer not passed on.
    """
    wish = next(flow, None)
    current = offset
    while wish is not None:
        current = current + 1 if wish.round is None else offset + wish.round
        paid = None if rounds is not None and current > rounds else ledger.trim(wish)
        if paid is None:
            break
        scored = yield replace(paid, round=current)
        if len(paid.candidates) < len(wish.candidates):
            break
        try:
            wish = flow.send(scored)
        except StopIteration:
            break
    flow.close()


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
