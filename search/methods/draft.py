"""Explore with few steps, then render the best again exactly, around any search over noises.

Drafts are images of a shorter schedule from the same noises, as SES's authors preview
(Spectral Evolution Search, arXiv 2602.03208) and as draft-then-commit schemes do (CachedSearch,
arXiv 2607.23159, with a feature cache in place of fewer steps). How far a draft foretells its image
depends on the model: half the steps keep most of it, a few steps little. `main.py --probe` measures
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from search.core import Candidates, Flow, Need, Rollout, Scored, Space, draft_steps, finite, joined
from search.ledger import Budget, Cost, Ledger, nfe_each
from search.play import wishes

INNER_ROUNDS = 4
OUTER_KEYS = ("search_method", "search_rounds")  # the rest are the inner search's options


@dataclass(frozen=True)
class Draft:
    """Plays `inner` on a shorter schedule and renders the `keep` noises it scored best: a round.

    inner: search_args of a search over initial noises: its search_method, options, and
    search_rounds (without a budget 4). share: the drafts' share of the steps; 1 where each step is
    cheaper (engine_args.profile). keep: noises rendered exactly; a budget that pays for fewer
    drafts than these renders fewer, and where a share of the steps is all of them every image is
    rendered at once. explore: the most NFE for drafts; None, where there is a budget: what
    rendering leaves of it.
    """

    inner: Mapping[str, Any] = field(default_factory=lambda: {"search_method": "random"})
    share: float = 0.5
    keep: int = 4
    explore: int | None = None

    needs: ClassVar[frozenset[Need]] = frozenset()
    blind: ClassVar[bool] = False
    fixed_scale: ClassVar[bool] = True  # drafts of all rounds are compared
    drafts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep}")
        if self.explore is not None and self.explore < 0:
            raise ValueError(f"explore must be at least 0, not {self.explore}")
        rounds = self.inner.get("search_rounds")
        if rounds is not None and (not isinstance(rounds, int) or rounds < 1):
            raise ValueError(f"inner.search_rounds must be at least 1, not {rounds}")
        made = self.search
        if made.needs:
            raise ValueError(
                f"inner: '{self.inner['search_method']}' does more than choose an initial noise,"
                " so its drafts cannot be rendered again: use random, zero-order, ses or evolution"
            )

    @property
    def search(self) -> Any:
        """The inner search, made of its options."""
        from search import make_search

        options = {k: v for k, v in self.inner.items() if k not in OUTER_KEYS}
        return make_search(self.inner.get("search_method", "random"), options)

    def sized(self, steps: int, nfe: int) -> Self:
        """So much for drafts that the best `keep` can be rendered with the rest.

        Where that is less than two drafts for each, fewer are rendered; with none to choose from
        every image is rendered at once.
        """
        draft = draft_steps(steps, self.share)
        if not self._cheaper(steps, draft):
            return replace(self, keep=max(1, min(self.keep, nfe // steps)), explore=0)
        keep = max(1, min(self.keep, nfe // (steps + 2 * draft)))
        left = nfe - keep * steps
        explore = left if self.explore is None else min(left, self.explore)
        return replace(self, keep=keep, explore=explore if explore >= 2 * draft else 0)

    def _cheaper(self, steps: int, draft: int) -> bool:
        """Whether drafts cost less than images; those of share 1 do by something else."""
        return draft < steps or self.share == 1

    def flow(self, space: Space) -> Flow:
        cheap, drafts = space.drafted(self.share), _Best(self.keep)
        if self._cheaper(space.steps, cheap.steps):
            yield from self._explored(cheap, drafts)
        if drafts.candidates is None:
            chosen = space.draw(self.keep)
        else:
            chosen = space.exact(drafts.candidates, cheap.steps)
        yield Rollout(chosen, until=space.steps, round=1)

    def _explored(self, cheap: Space, drafts: _Best) -> Flow:
        """The inner search's wishes as drafts, until its rounds or its NFE end."""
        limit = self.explore
        search = self.search if limit is None else self.search.sized(cheap.steps, limit)
        rounds = self.inner.get("search_rounds", INNER_ROUNDS if limit is None else None)
        ledger = Ledger(Budget(nfe=limit))
        paid = wishes(search.flow(cheap), ledger, rounds=rounds)
        wish = next(paid, None)
        while wish is not None:
            scored = yield replace(wish, draft=cheap.steps, rejectable=False, round=1)
            ledger.charge(Cost(nfe=nfe_each(wish) * len(wish.candidates)))
            drafts.take(scored)
            try:
                wish = paid.send(scored)
            except StopIteration:
                break


class _Best:
    """The best drafts so far."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._scores: list[float] = []
        self.candidates: Candidates | None = None

    def take(self, scored: Scored) -> None:
        """Compare an answer's candidates, as they set out, with those kept."""
        pool = scored.start if self.candidates is None else joined([self.candidates, scored.start])
        scores = self._scores + finite(scored.scores).tolist()
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: self._keep]
        self.candidates = pool.select(order)
        self._scores = [scores[i] for i in order]
