"""How far a search goes, found by playing it in a space without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from experiment.config import ExperimentConfig
from search.core import Candidates, Rollout, Scored, draft_steps
from search.ledger import Cost, Ledger, nfe_each
from search.play import play
from utils import UserError

MOST_AT_ONCE = 2**20


@dataclass(frozen=True)
class Extent:
    """How far one prompt's search goes.

    stops: how often a candidate stops between two steps.
    """

    rounds: int
    images: int
    nfe: int
    stops: int


def extents(config: ExperimentConfig, steps: int, first: int) -> tuple[Extent, Extent]:
    """The least and the most, of answers that get ever better and of answers that get ever worse.

    steps: of the full schedule. first: the step at which sampling starts.
    """
    ends = [_played(config, steps, first, answer) for answer in (_rising, _falling)]
    least, most = (
        Extent(
            **{each.name: which(getattr(end, each.name) for end in ends) for each in fields(Extent)}
        )
        for which in (min, max)
    )
    return least, most


def _played(
    config: ExperimentConfig, steps: int, first: int, answer: Callable[[int], float]
) -> Extent:
    """Play the search against answers made up by `answer` from the candidate's number."""
    counted = 0
    # Rows an NFE and seconds are known only once the pipeline runs.
    ledger = Ledger(replace(config.budget.build(), seconds=None, rows=None))

    def evaluate(rollout: Rollout) -> tuple[Scored, Cost]:
        nonlocal counted
        n = len(rollout.candidates)
        ids = tuple(range(counted, counted + n))
        counted += n
        scored = Scored(
            start=rollout.candidates,
            candidates=replace(rollout.candidates, step=rollout.until),
            scores=_answers(answer, ids),
            ids=ids,
            rival_scores=_answers(answer, rollout.rivals),
            gradient=torch.ones_like(rollout.candidates.latents) if rollout.gradient else None,
        )
        return scored, Cost(nfe=nfe_each(rollout) * n, verifications=n if rollout.score else 0)

    images = rounds = stops = 0
    search = config.search_args.build()
    for played in play(search, Nowhere(steps, first), evaluate, ledger, config.rounds):
        rounds = played.round
        finished = played.rollout.until == steps and not played.rollout.draft
        images += len(played.rollout.candidates) if finished else 0
        cut = played.rollout.until < steps and not played.rollout.draft
        stops += len(played.rollout.candidates) if cut else 0
    return Extent(rounds, images, ledger.spent.nfe, stops)


def _rising(number: int) -> float:
    return float(number)


def _falling(number: int) -> float:
    return -float(number)


def _answers(answer: Callable[[int], float], ids: Iterable[int]) -> Tensor:
    return torch.tensor([answer(i) for i in ids], dtype=torch.float64)


class Nowhere:
    """A space whose points hold two numbers: enough to count them and to search over."""

    def __init__(self, steps: int, first: int = 0) -> None:
        self.steps = steps
        self.first = first
        self.rng = torch.Generator().manual_seed(0)

    def draw(self, n: int) -> Candidates:
        return self._points(n, self.first)

    def perturb(self, around: Candidates, n: int, cosine: float) -> Candidates:
        return self._points(len(around) * n, around.step)

    def renoise(self, candidates: Candidates, to: int) -> Candidates:
        return self._points(len(candidates), to)

    def fork(self, candidates: Candidates, index: Tensor | Iterable[int]) -> Candidates:
        return candidates.select(index)

    def place(self, latents: Tensor, parents: Sequence[tuple[int, ...]]) -> Candidates:
        return self._points(len(latents), self.first)

    def step_below(self, share: float) -> int:
        """As if the level fell evenly from noise to clean."""
        return max(1, min(int((1 - share) * self.steps) + 1, self.steps - 1))

    def drafted(self, share: float) -> Nowhere:
        self._refuse_picture()
        return Nowhere(draft_steps(self.steps, share))

    def exact(self, drafts: Candidates, steps: int) -> Candidates:
        return drafts

    def spatial(self, latents: Tensor) -> Tensor:
        self._refuse_picture()
        return latents.reshape(-1, 1, 1, 2)

    def from_spatial(self, unit: Tensor) -> Tensor:
        self._refuse_picture()
        return unit.reshape(-1, 2)

    def _refuse_picture(self) -> None:
        if self.first:
            raise UserError(
                "This search works on pure noise, and sampling that starts from a picture has none:"
                " use random, zero-order, or a search that branches on the way."
            )

    @staticmethod
    def _points(n: int, step: int) -> Candidates:
        if n > MOST_AT_ONCE:
            raise UserError(
                f"A round would ask for {n} candidates at once: lower search_args.search_rounds or"
                " the budget."
            )
        return Candidates(torch.ones(n, 2), step, tuple(range(n)))
