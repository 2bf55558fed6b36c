"""What a verifier is: images and prompts in, scores out, in order, whatever befalls one item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from utils import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

Metric: TypeAlias = str | Mapping[str, float]
"""A metric's name, or a weight for each of several."""

NO_ANSWER = frozenset({"unscored", "failed", "truncated"})
"""Statuses of what a verifier was asked and had nothing to say to; it may be asked again."""


class Memory(Protocol):
    """What has been said of one item, kept through interruptions."""

    def recall(self, media: Any) -> Score | None:
        """The answer kept for these very pixels, if any."""

    def keep(self, media: Any, score: Score) -> None:
        """Keep an answer; it is on disk when this returns."""

    def of(self, part: str) -> Memory:
        """The memory of one of several who are asked, or of one of several frames."""


@dataclass(frozen=True)
class Item:
    """One thing to judge.

    media: a PIL image, or a video as a list of PIL frames. preview: the same candidate's clean
    estimate late in sampling, for a verifier that asks for one. label: the class asked for, where
    the pipeline is class-conditional. memory: keeps answers that come one by one; where a verifier
    does not use it, those to a whole batch are kept together.
    """

    media: Any
    prompt: str
    preview: Any = None
    label: str | None = None
    memory: Memory | None = field(default=None, repr=False, compare=False)

    def recall(self) -> Score | None:
        """What was answered before an interruption: it is not to be asked, and paid for, again."""
        return None if self.memory is None else self.memory.recall(self.media)

    def keep(self, score: Score) -> None:
        """Have an answer kept as it arrives; by the thread that asked for the scores."""
        if self.memory is not None:
            self.memory.keep(self.media, score)

    def of(self, part: str) -> Item:
        """The item as one of several verifiers is shown it, with a memory of its own."""
        return self if self.memory is None else replace(self, memory=self.memory.of(part))


@dataclass(frozen=True)
class Score:
    """A verifier's answer for one item.

    value: the chosen metric; nan where there is no answer, and then `status` and `explanation`
    say why. aspects: every metric the verifier gives. status: ok, unscored, blocked, truncated,
    invalid_image, nsfw_filtered or failed. details: what else is worth a record (the model that
    answered, tokens used); JSON-able. members: of an ensemble, each member's own score.
    """

    value: float
    aspects: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""
    status: str = "ok"
    details: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, Score] = field(default_factory=dict)

    @classmethod
    def of(
        cls, explanation: str = "", *, details: Mapping[str, Any] | None = None, **aspects: float
    ) -> Score:
        """A score from its aspects; the first is its value until a metric is chosen."""
        return cls(next(iter(aspects.values())), aspects, explanation, details=details or {})

    @classmethod
    def missing(
        cls, why: str, status: str = "unscored", details: Mapping[str, Any] | None = None
    ) -> Score:
        """No answer, with the reason."""
        return cls(math.nan, {}, why, status, details or {})


class Verifier(Protocol):
    """Judges images. Options are the fields of the class; weights are loaded by `load`.

    metrics: what it gives. needs: packages, keys or weights it cannot do without, in words.
    explains: its records carry an explanation beside the score. video: it takes a whole video;
    one that does not is shown keyframes. only_video: it takes nothing else.
    preview_noise: the share of noise at which it wants a preview of each finished candidate; None
    for no preview. pooled: its scores' values depend on the other candidates of the prompt, and
    `pool_values` tells them. remote: another process does the work, so that it needs no room here
    and may be asked while this one is busy, by several threads at once. takes_turns: it needs the
    device only within `verifiers.turns.on_device`, and may be asked while others use it.
    """

    metrics: ClassVar[tuple[str, ...]]
    needs: ClassVar[str]
    explains: ClassVar[bool]
    video: ClassVar[bool]

    @property
    def preview_noise(self) -> float | None: ...

    @property
    def pooled(self) -> bool: ...

    @property
    def remote(self) -> bool: ...

    @property
    def takes_turns(self) -> bool: ...

    def check(self) -> None:
        """Raise `UserError` for options that cannot work; loads nothing."""

    def load(self, device: str) -> None:
        """Load weights, open clients: once, before the first image is made."""

    def score(self, items: Sequence[Item]) -> list[Score]:
        """A score for each item, in order; one bad item costs its own score and no other."""

    def pool_values(self, pool: Sequence[Score]) -> list[float]:
        """Values of all scores of a prompt so far, as they stand to each other."""

    def chose(self, item: Item) -> None:
        """A prompt's search ended with this item: for verifiers that judge whole sets."""

    def offload(self) -> None:
        """Leave the device until the next score, so that the pipeline has it to itself."""

    @property
    def rubric_hash(self) -> str | None:
        """Names the question that a grader asks; None for a verifier that asks none."""


class BaseVerifier:
    """A verifier with nothing to check and nothing to load."""

    metrics: ClassVar[tuple[str, ...]]
    needs: ClassVar[str] = ""
    explains: ClassVar[bool] = False
    video: ClassVar[bool] = False
    only_video: ClassVar[bool] = False

    @property
    def preview_noise(self) -> float | None:
        return None

    @property
    def pooled(self) -> bool:
        return False

    @property
    def remote(self) -> bool:
        return False

    @property
    def takes_turns(self) -> bool:
        return False

    def check(self) -> None:
        return

    def load(self, device: str) -> None:
        return

    def pool_values(self, pool: Sequence[Score]) -> list[float]:
        return [score.value for score in pool]

    def chose(self, item: Item) -> None:
        return

    def offload(self) -> None:
        return

    @property
    def rubric_hash(self) -> str | None:
        return None


@runtime_checkable
class DifferentiableVerifier(Protocol):
    """A verifier that can also be climbed."""

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n], differentiable, of pixels [n, 3, H, W] in [0, 1] and a prompt each."""


@dataclass(frozen=True)
class Chosen:
    """A verifier whose scores' value is the chosen metric, or a weighted sum of several."""

    verifier: Verifier
    name: str
    metric: Metric
    _away: list[tuple[Any, Any]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_metric(self.name, self.verifier.metrics, self.metric)

    @property
    def explains(self) -> bool:
        return self.verifier.explains

    @property
    def preview_noise(self) -> float | None:
        return self.verifier.preview_noise

    @property
    def pooled(self) -> bool:
        return self.verifier.pooled

    @property
    def remote(self) -> bool:
        return self.verifier.remote

    @property
    def takes_turns(self) -> bool:
        return self.verifier.takes_turns

    @property
    def ordinal(self) -> bool:
        """Whether values are ranks in the pool so far."""
        return bool(getattr(self.verifier, "ordinal", False))

    def pool_values(self, pool: Sequence[Score]) -> list[float]:
        return self.verifier.pool_values(pool)

    def chose(self, item: Item) -> None:
        self._return()
        self.verifier.chose(item)

    def offload(self) -> None:
        """Models that the verifier does not move itself are moved for it, and back when needed."""
        from verifiers.moving import models_within

        self.verifier.offload()
        for model in {id(model): model for model in models_within(self.verifier)}.values():
            device = next((p.device for p in model.parameters()), None)
            if device is not None and device.type != "cpu":
                self._away.append((model, device))
                model.to("cpu")

    def _return(self) -> None:
        while self._away:
            model, device = self._away.pop()
            model.to(device)

    @property
    def rubric_hash(self) -> str | None:
        return self.verifier.rubric_hash

    def check(self) -> None:
        self.verifier.check()

    def load(self, device: str) -> None:
        self.verifier.load(device)

    @property
    def differentiable(self) -> bool:
        """Whether the value can be climbed: one metric, of a verifier that scores pixels."""
        return hasattr(self.verifier, "score_pixels") and len(weights_of(self.metric)) == 1

    def score_pixels(self, pixels: Tensor, prompt: str) -> Tensor:
        """Values [n], differentiable, of pixels [n, 3, H, W] in [0, 1]."""
        climbable: Any = self.verifier
        (weight,) = weights_of(self.metric).values()
        scores: Tensor = climbable.score_pixels(pixels, [prompt] * len(pixels))
        return weight * scores

    def score(self, items: Sequence[Item]) -> list[Score]:
        self._return()
        from verifiers.own import checked_scores

        scores = checked_scores(self.verifier, self.verifier.score(items), len(items))
        return [self._valued(score) for score in scores]

    def _valued(self, score: Score) -> Score:
        if score.status != "ok":
            return replace(score, value=math.nan)
        weights = weights_of(self.metric)
        missing = [name for name in weights if name not in score.aspects]
        if missing:
            return Score.missing(f"{self.name} gave no {missing[0]}", details=score.details)
        value = sum(weight * score.aspects[name] for name, weight in weights.items())
        if not math.isfinite(value):
            return Score.missing(f"{self.name} gave {value}", details=score.details)
        return replace(score, value=value)


def weights_of(metric: Metric) -> Mapping[str, float]:
    """A weight for each metric; a single name weighs 1."""
    return {metric: 1.0} if isinstance(metric, str) else metric


def metric_name(metric: Metric) -> str:
    """One name for a metric or a mixture of them, as folders carry it."""
    return "+".join(weights_of(metric))


def check_metric(verifier: str, known: Sequence[str], metric: Metric) -> None:
    """Refuse a metric that the verifier does not give."""
    for name in weights_of(metric):
        if name not in known:
            raise UserError(
                f"The verifier '{verifier}' has no metric '{name}': {did_you_mean(name, known)}"
            )
