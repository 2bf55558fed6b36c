"""What a probe's rows say of the landscape: correlations, previews and spreads within a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from experiment.probe_statistics import (
    Measured,
    Pairs,
    between_share,
    pearson,
    spearman,
    spread,
)


class Row(Protocol):
    """What is read of a row of `candidates.jsonl`."""

    @property
    def prompt_index(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def recipe(self) -> Mapping[str, Any]: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Landscape:
    """One model's scores over its noises, measured within prompts.

    by_cosine: correlation of a noise's score with that of another at this cosine, 1 downwards.
    previews: rank correlation of a step's preview with the final score. within: the scores' s.d.
    between: the share of their variance that lies between prompts. flat: prompts on which all
    images have one score.
    """

    by_cosine: Mapping[float, Measured]
    previews: Mapping[int, Measured]
    within: Measured
    between: Measured
    steps: int
    prompts: int
    flat: int

    def as_json(self) -> dict[str, Any]:
        return {
            "correlation": [{"cosine": c, **m.as_json()} for c, m in self.by_cosine.items()],
            "previews": [
                {"step": step, "share": step / self.steps, **m.as_json()}
                for step, m in self.previews.items()
            ],
            "within_prompt_sd": self.within.as_json(),
            "between_prompt_share": self.between.as_json(),
            "flat_prompts": self.flat,
        }


def landscape(rows: Iterable[Row]) -> Landscape:
    """Measure the rows of a probe."""
    prompts: dict[int, list[Row]] = {}
    for row in rows:
        prompts.setdefault(row.prompt_index, []).append(row)
    scores = [_Scores(of_prompt) for of_prompt in prompts.values()]
    draws = [list(s.drawn.values()) for s in scores]
    cosines = sorted({c for s in scores for c in s.near}, reverse=True)
    stops = sorted({step for s in scores for step in s.previews})
    return Landscape(
        by_cosine={c: pearson([s.neighbours(c) for s in scores]) for c in cosines}
        | {0.0: pearson([s.halves() for s in scores])},
        previews={k: spearman([s.previewed(k) for s in scores]) for k in stops},
        within=spread(draws),
        between=between_share(draws),
        steps=max(row.steps for of_prompt in prompts.values() for row in of_prompt),
        prompts=len(scores),
        flat=sum(_flat(of_prompt) for of_prompt in draws),
    )


def _flat(scores: Sequence[float]) -> bool:
    known = [score for score in scores if math.isfinite(score)]
    return len(known) > 1 and len(set(known)) == 1


class _Scores:
    """One prompt's scores: of the drawn noises, of their previews, and of their neighbours."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.drawn: dict[int, float] = {}  # by seed, in the order in which they were drawn
        self.previews: dict[int, dict[int, float]] = {}  # by step, then by seed
        self.near: dict[float, dict[int, float]] = {}  # by cosine, then by the centre's seed
        for row in rows:
            if row.step < row.steps:
                self.previews.setdefault(row.step, {})[row.seed] = row.score
            elif row.recipe["op"] == "perturb":
                self.near.setdefault(row.recipe["cosine"], {})[row.recipe["of"]] = row.score
            else:
                self.drawn[row.seed] = row.score

    def neighbours(self, cosine: float) -> Pairs:
        near = self.near.get(cosine, {})
        return [self.drawn[of] for of in near], list(near.values())

    def halves(self) -> Pairs:
        """Pairs of independent draws, whose cosine is 0 but for chance."""
        values = list(self.drawn.values())
        half = len(values) // 2
        return values[:half], values[half : 2 * half]

    def previewed(self, step: int) -> Pairs:
        seen = self.previews.get(step, {})
        return list(seen.values()), [self.drawn[seed] for seed in seen]
