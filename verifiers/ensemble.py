"""Several verifiers as one: mean rank (Ma et al. 2025, §4), mean z-score, or a weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any, ClassVar, Literal

from utils import UserError, free_name
from verifiers.base import BaseVerifier, Chosen, Item, Score
from verifiers.turns import on_device

METRIC = "ensemble_score"


@dataclass
class Ensemble(BaseVerifier):
    """verifiers: the members, each as `verifier_args` has it, and a `weight` (1 by default).

    combine: "rank" and "zscore" compare a candidate with all of its prompt's candidates that were
    scored at the same step, so its value moves as more arrive; "weighted" is the weighted mean of
    the members' own values. A rank counts as the share of the others that a candidate beats, ties
    half, which orders candidates as the mean rank does. A member without an answer for a candidate
    is left out of that candidate's mean.
    """

    verifiers: list[dict[str, Any]] = field(default_factory=list)
    combine: Literal["rank", "zscore", "weighted"] = "rank"

    metrics: ClassVar[tuple[str, ...]] = (METRIC,)
    needs: ClassVar[str] = "what its members need"
    video: ClassVar[bool] = True  # each member sees to its own keyframes

    members: dict[str, Chosen] = field(default_factory=dict, init=False, repr=False)
    _weights: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        from verifiers import make_verifier

        if self.combine not in ("rank", "zscore", "weighted"):
            raise UserError(f"'combine' is rank, zscore or weighted, not '{self.combine}'.")
        if not self.verifiers:
            raise UserError("An ensemble needs members: list them under 'verifiers'.")
        for spec in self.verifiers:
            options = dict(spec)
            if not isinstance(name := options.pop("name", None), str):
                raise UserError("Each member of an ensemble needs a 'name'.")
            weight = options.pop("weight", 1.0)
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise UserError(f"The weight of '{name}' must be a number above 0, not {weight!r}.")
            metric = options.pop("choice_of_metric", None)
            key = free_name(name, self.members)
            self.members[key] = make_verifier(name, metric, options)
            if self.members[key].pooled:
                raise UserError(
                    f"'{name}' judges by a pool of its own and cannot be a member: name its members"
                    ' here, or give it "combine": "weighted".'
                )
            self._weights[key] = weight

    @property
    def pooled(self) -> bool:
        return self.combine != "weighted"

    @property
    def remote(self) -> bool:
        return all(member.remote for member in self.members.values())

    @property
    def takes_turns(self) -> bool:
        return True  # member by member

    @property
    def ordinal(self) -> bool:
        return self.combine == "rank"

    @property
    def preview_noise(self) -> float | None:
        wanted = [m.preview_noise for m in self.members.values() if m.preview_noise is not None]
        return min(wanted, default=None)

    def check(self) -> None:
        for member in self.members.values():
            member.check()

    def load(self, device: str) -> None:
        for member in self.members.values():
            member.load(device)

    def score(self, items: Sequence[Item]) -> list[Score]:
        answers = {key: self._asked(key, items) for key in self.members}
        return [self._joined({key: given[i] for key, given in answers.items()})
                for i in range(len(items))]  # fmt: skip

    def _asked(self, key: str, items: Sequence[Item]) -> list[Score]:
        """A member's answers; nobody waits for the device while another machine thinks."""
        member = self.members[key]
        alone = member.remote or member.takes_turns
        with nullcontext() if alone else on_device():
            return member.score([item.of(key) for item in items])

    def chose(self, item: Item) -> None:
        for member in self.members.values():
            member.chose(item)

    def offload(self) -> None:
        for member in self.members.values():
            member.offload()

    def pool_values(self, pool: Sequence[Score]) -> list[float]:
        """The value of each of a pool's scores, by its place in that pool; nan stays nan."""
        place = _ranks if self.combine == "rank" else _zscores
        places = {
            key: place([score.members[key].value if key in score.members else math.nan
                        for score in pool])
            for key in self.members
        }  # fmt: skip
        return [
            self._mean({key: values[i] for key, values in places.items()}) for i in range(len(pool))
        ]

    def _joined(self, members: Mapping[str, Score]) -> Score:
        """One candidate's score: its members' mean, which a pool's places may replace."""
        value = self._mean({key: score.value for key, score in members.items()})
        if math.isnan(value):
            why = "; ".join(f"{key}: {s.explanation}" for key, s in members.items())
            return Score(math.nan, {}, why, "unscored", members=members)
        why = " ".join(s.explanation for s in members.values() if s.explanation)
        return Score(value, {METRIC: value}, why, members=members)

    def _mean(self, values: Mapping[str, float]) -> float:
        there = {key: value for key, value in values.items() if not math.isnan(value)}
        if not there:
            return math.nan
        total = sum(self._weights[key] for key in there)
        return sum(self._weights[key] * value for key, value in there.items()) / total


def _ranks(values: Sequence[float]) -> list[float]:
    """For each value the share of the others that it beats, ties half; nan for nan."""
    there = [value for value in values if not math.isnan(value)]
    if len(there) < 2:
        return [0.5 if not math.isnan(value) else math.nan for value in values]
    return [
        math.nan if math.isnan(value)
        else (sum(o < value for o in there) + (sum(o == value for o in there) - 1) / 2)
        / (len(there) - 1)
        for value in values
    ]  # fmt: skip


def _zscores(values: Sequence[float]) -> list[float]:
    """For each value its distance from the mean in standard deviations; nan for nan."""
    there = [value for value in values if not math.isnan(value)]
    if not there:
        return list(values)
    mean, spread = fmean(there), pstdev(there)
    return [(value - mean) / spread if spread else value - mean for value in values]
