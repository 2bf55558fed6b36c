"""A search or verifier of the user's own that is not what it must be: one sentence each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest

import verifiers
from experiment.config import parse_config
from experiment.runner import plan
from search import search_class
from search.core import Flow, Rollout, Space
from utils import UserError
from verifiers.base import BaseVerifier, Chosen, Item, Score


@dataclass(frozen=True)
class Bare:
    """Only a flow."""

    def flow(self, space: Space) -> Flow:
        yield Rollout(space.draw(2), until=space.steps)


@dataclass(frozen=True)
class Whole(Bare):
    """As it should be."""

    needs: ClassVar[Any] = frozenset()
    blind: ClassVar[Any] = False

    def sized(self, steps: int, nfe: int) -> Self:
        return self


@dataclass(frozen=True)
class Choosing(Bare):
    """What it needs depends on its options."""

    noisy: bool = False
    blind: bool = field(default_factory=bool)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"stochastic"} if self.noisy else ())

    def sized(self, steps: int, nfe: int) -> Self:
        return self


@dataclass(frozen=True)
class Misspelt(Whole):
    needs: ClassVar[Any] = frozenset({"midways"})


@dataclass(frozen=True)
class Undecided(Whole):
    blind: ClassVar[Any] = None


@dataclass(frozen=True)
class Typo(Whole):
    def flow(self, space: Any) -> Flow:
        yield Rollout(space.drow(2), until=space.steps)


@dataclass(frozen=True)
class Later(Whole):
    def flow(self, space: Space) -> Flow:
        scored: Any = yield Rollout(space.draw(2), until=space.steps)
        yield Rollout(scored.candidats, until=space.steps)


@dataclass(frozen=True)
class Nothing(Whole):
    def flow(self, space: Space) -> Flow:
        yield from ()


@dataclass(frozen=True)
class Listed(Whole):
    def flow(self, space: Space) -> Any:
        return [Rollout(space.draw(2), until=space.steps)]


@dataclass(frozen=True)
class Points(Whole):
    def flow(self, space: Space) -> Any:
        yield space.draw(2)


@dataclass(frozen=True)
class Answered(Whole):
    def flow(self, space: Space) -> Any:
        scored = yield Rollout(space.draw(2), until=space.steps)
        yield Rollout(scored, until=space.steps)


@dataclass(frozen=True)
class Nobody(Whole):
    def flow(self, space: Space) -> Flow:
        yield Rollout(space.draw(0), until=space.steps)


@dataclass(frozen=True)
class TooFar(Whole):
    def flow(self, space: Space) -> Flow:
        yield Rollout(space.draw(2), until=space.steps + 1)


@dataclass(frozen=True)
class Backwards(Whole):
    def flow(self, space: Space) -> Flow:
        scored = yield Rollout(space.draw(2), until=space.steps)
        yield Rollout(scored.candidates, until=1)


@dataclass(frozen=True)
class Shapeless(Whole):
    def sized(self, steps: int, nfe: int) -> Any:
        return None


def planned(search: str, **changes: Any) -> Any:
    content = {
        "pretrained_model_name_or_path": "shapes/models/shapes-sd",
        "torch_dtype": "fp32",
        "pipeline_call_args": {"num_inference_steps": 2},
        "verifier_args": {"name": "contrast"},
        "search_args": {"search_method": search},
        "budget": {"nfe": 8},
        "prompt": "a red circle",
        **changes,
    }
    return plan(parse_config(content))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Bare", "add `needs: ClassVar = frozenset.*blind: ClassVar = False.*def sized"),
        ("Misspelt", "needs=.*give a frozenset of midway, gradient, stochastic"),
        ("Undecided", "blind=None: give True or False"),
        ("Typo", r"fails in 'flow' \(test_own_code.py, line \d+\): AttributeError: .*'drow'\.$"),
        ("Later", "'flow' .*AttributeError: 'Scored' object has no attribute 'candidats'"),
        ("Nothing", "yields nothing: `yield Rollout"),
        ("Listed", "is no generator but returns a list: `yield Rollout"),
        ("Points", "yields a Candidates, not a Rollout"),
        ("Answered", "fails in 'flow' .*AttributeError: 'Scored' object has no attribute 'step'"),
        ("Nobody", "of no candidates"),
        ("TooFar", "until step 3 of 2: use space.steps"),
        ("Backwards", r"\(test_own_code.py, line \d+\).*a rollout never goes back"),
        ("Shapeless", "'sized' that returns no search: return self"),
        ("Absent", "'[a-z_.]*test_own_code' has no 'Absent': known: Answered, .*Whole"),
    ],
)
def test_a_search_of_ones_own_is_told_what_it_lacks_before_anything_loads(
    name: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        planned(f"{__name__}:{name}")
    assert "\n" not in str(refusal.value)
    assert planned(f"{__name__}:Whole").most.images == 4


def test_what_a_search_needs_may_be_each_objects_own() -> None:
    assert planned(f"{__name__}:Choosing").most.images == 4


@pytest.mark.parametrize("name", verifiers.VERIFIERS)
def test_our_own_verifiers_are_whole(name: str) -> None:
    verifiers.verifier_class(name)


@dataclass
class Graded(BaseVerifier):
    """Answers what it was made with."""

    answers: Any = field(default_factory=list)
    metrics: ClassVar[Any] = ("quality",)

    def score(self, items: Sequence[Item]) -> Any:
        return self.answers


@dataclass
class Metricless(BaseVerifier):
    def score(self, items: Sequence[Item]) -> list[Score]:
        return []


@dataclass
class Named(Graded):
    """Its metrics depend on its options."""

    name: str = "quality"

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)


@dataclass
class OneName(Graded):
    metrics: ClassVar[Any] = "quality"


@dataclass
class NoBase:
    metrics: ClassVar[tuple[str, ...]] = ("quality",)

    def score(self, items: Sequence[Item]) -> list[Score]:
        return []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Metricless", "add `metrics: ClassVar"),
        ("OneName", "add `metrics: ClassVar"),
        ("NoBase", "lacks 'needs', .* more: derive it from verifiers.base.BaseVerifier"),
    ],
)
def test_a_verifier_of_ones_own_is_told_what_it_lacks(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned("random", verifier_args={"name": f"{__name__}:{name}"})


def test_a_verifiers_metrics_may_be_each_objects_own() -> None:
    args = {"name": f"{__name__}:Named", "choice_of_metric": "quality"}
    assert planned("random", verifier_args=args).most.images == 4


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (None, "returns None from 'score': return a list"),
        ([0.5, 0.5], r"returns a float where a Score belongs: return Score.of\("),
        ([Score.of(quality=1.0)], "returns 1 score for 2 items"),
        ([Score.of(quality="good")] * 2, "gives a str for 'quality': give a float"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("framed", [False, True])
def test_answers_that_are_no_scores_are_refused(answers: Any, said: str, framed: bool) -> None:
    graded: Any = Graded(answers)
    asked = verifiers.Keyframes(graded) if framed else graded
    with pytest.raises(UserError, match=f"'{__name__}:Graded' {said}"):
        Chosen(asked, "own", "quality").score([Item(None, "")] * 2)


def test_numpys_numbers_are_scores() -> None:
    graded: Any = Graded([Score.of(quality=np.float32(0.5))])
    (score,) = Chosen(graded, "own", "quality").score([Item(None, "")])
    assert type(score.aspects["quality"]) is float and score.value == 0.5


def test_a_module_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=f"No module named 'own_of_a_user' in {tmp_path} or on"):
        search_class("own_of_a_user:Mine")
    (tmp_path / "own_of_a_user.py").write_text(f"from {__name__} import Whole as Mine\n")
    assert search_class("own_of_a_user:Mine") is Whole
