"""A run's fresh noises that nothing chose, with their recorded scores: what simulation plays on.

Only such draws are exchangeable. Candidates that were made of others are left out, and so are
drafts; a run that gave some of its draws up is refused, for the rest are survivors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from experiment.config import VerifierArgs
from experiment.records import CandidateRecord, read_candidates, read_object
from utils import UserError

Own = Sequence[CandidateRecord]  # one candidate's rows, by step
Scores = dict[int, float]  # a draw's, by step; nan for no answer


@dataclass(frozen=True)
class Draws:
    """prompts: each one's draws. first, total: the steps at which they begin and end.

    others: finished candidates that are no draws, made of others or chosen by drafts.
    """

    folder: Path
    prompts: Sequence[Sequence[Scores]]
    first: int
    total: int
    others: int


def read_draws(folder: Path) -> Draws:
    """The draws of a run; refuses one whose scores of them would mislead."""
    rows = [row for row in read_candidates(folder) if not row.draft]
    if not rows:
        raise UserError(f"'{folder}' holds no run's records: give the folder that a run has made.")
    _refuse_pooled(folder)
    by_seed: dict[int, dict[int, list[CandidateRecord]]] = {}
    for row in sorted(rows, key=lambda row: row.step):
        by_seed.setdefault(row.prompt_index, {}).setdefault(row.seed, []).append(row)
    prompts = [[own for own in seeds.values() if _drawn(own)] for seeds in by_seed.values()]
    every = [own for prompt in prompts for own in prompt]
    _refuse_chosen(every, folder)
    finished = {(row.prompt_index, row.seed) for row in rows if row.step == row.steps}
    begins = [own[0].step - own[0].nfe for own in every]
    return Draws(
        folder=folder,
        prompts=[[{row.step: row.score for row in own} for own in prompt] for prompt in prompts],
        first=max(0, int(min(begins, default=0))),
        total=max(row.steps for row in rows),
        others=len(finished) - len(every),
    )


def _refuse_pooled(folder: Path) -> None:
    """Scores that depend on the pool would be others in another pool."""
    try:
        args = VerifierArgs.model_validate(read_object(folder / "config.json")["verifier_args"])
        pooled = args.make().pooled
    except (UserError, ValidationError, KeyError):  # one that is not here; those that pool are
        return
    if pooled:
        raise UserError(
            f"The scores in '{folder}' are by '{args.name}', which compares the candidates of a"
            " pool: in another pool they would be others, so nothing can be simulated."
        )


def _drawn(own: Own) -> bool:
    """Whether a candidate began as a fresh noise that nothing chose, a draft least of all."""
    return own[0].recipe.get("op") == "draw" and not own[0].parents


def _refuse_chosen(draws: Sequence[Own], folder: Path) -> None:
    """A search that went on with some of its draws only has left a choice of them to be read."""
    lost = sum(own[-1].step < own[-1].steps for own in draws)
    if lost:
        raise UserError(
            f"'{folder}' did not finish {lost} of its {len(draws)} drawn noises, and those that it"
            " did may be the better ones: simulate on a run that finished all, with previews, such"
            " as one of main.py --probe."
        )
    guided = sum(any(row.guidance != 1 for row in own) for own in draws)
    if guided:
        raise UserError(
            f"'{folder}' changed the guidance of {guided} of its {len(draws)} drawn noises midway,"
            " so their scores are not those of plain draws: simulate on a run of main.py --probe."
        )


def is_scored(draw: Scores, steps: Sequence[int]) -> bool:
    """Whether there is an answer at each of these steps."""
    return not any(math.isnan(draw.get(step, math.nan)) for step in steps)
