"""What a prompt's search came to: as the summary has it, and as people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.journal import Journal
from experiment.prompts import Prompt
from experiment.rounds import RoundBook, RoundResult, recorded
from search.ledger import Cost
from utils import json_number, significant

TOTALS = ("nfe", "rows", "seconds")


@dataclass(frozen=True)
class Outcome:
    """One prompt's search, ended."""

    prompt: Prompt
    book: RoundBook
    spent: Cost
    journal: Journal

    def summary(self) -> dict[str, Any]:
        best = self.book.best
        return {
            "prompt": self.prompt.text,
            "prompt_index": self.prompt.index,
            "category": self.prompt.category,
            "best": best
            and {
                "id": best.id,
                "score": json_number(self.book.value(best)),
                "round": best.round,
                "seed": best.seed,
                "path": best.path,
                "judges": recorded(best.judged),
            },
            **_cost(self.spent),
            "statuses": dict(self.book.statuses),
        }


def unsearched(prompt: Prompt, reason: str) -> dict[str, Any]:
    """The summary of a prompt whose search left nothing to sum up."""
    told = {"prompt": prompt.text, "prompt_index": prompt.index, "category": prompt.category}
    return {**told, "best": None, **_cost(Cost()), "statuses": {}, "failed": reason}


def summed_up(prompts: Sequence[Prompt], summaries: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The run's summary, from those of its prompts."""
    each = [summaries[prompt.index] for prompt in prompts]
    total = {name: round(sum(summary[name] for summary in each), 3) for name in TOTALS}
    return {"prompts": each, "total": total}


class Failed(Exception):
    """A prompt's search has failed; the outcome is what it came to so far."""

    def __init__(self, outcome: Outcome, error: Exception) -> None:
        super().__init__(str(error))
        self.outcome = outcome
        self.error = error


def report(outcome: Outcome, failed: str | None = None) -> str:
    """A prompt's rounds as people read them."""
    text = " ".join(outcome.prompt.text.split())
    lines = [f"\n{text if len(text) <= 100 else text[:97] + '...'}"]
    lines += [_round_line(result) for result in outcome.book.results]
    best = outcome.book.best
    if failed is not None:
        return "\n".join([*lines, f"  failed: {failed}"])
    assert best is not None, "a prompt without one has failed"
    lines.append(
        f"  best     {significant(outcome.book.value(best)):>7}  {best.path}"
        f"  ({outcome.spent.nfe} NFE, {outcome.spent.seconds:.1f} s)"
    )
    return "\n".join(lines)


def _round_line(result: RoundResult) -> str:
    if result.rejected:
        return f"  round {result.round:<3}rejected: none beat its pivot"
    if result.winner is None:
        return f"  round {result.round:<3}no score"
    winner = result.winner
    judged = "".join(
        f"  {judge} {significant(score.value)}" for judge, score in winner.judged.items()
    )
    return (
        f"  round {result.round:<3}{significant(result.value):>7}"
        f"  of {result.num_noises:<4} seed {winner.seed:<11}{judged}"
    )


def _cost(cost: Cost) -> dict[str, Any]:
    return {"nfe": cost.nfe, "rows": cost.rows, "seconds": round(cost.seconds, 3)}
