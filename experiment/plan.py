"""What a run will do and cost, worked out before anything loads.

The search itself is played against a stand-in for the model, once with every answer better than
the last and once with every answer worse: the two ends of what the run can come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiment.config import ExperimentConfig, VerifierArgs
from experiment.prompts import Prompt
from pipelines.loading import load_scheduler, local_steps, pipeline_index
from pipelines.schedule import is_one_step
from search.core import Candidates, Rollout, Scored
from search.ledger import Cost, Ledger, nfe_each
from search.play import play
from utils import UserError
from verifiers.base import metric_name

MOST_AT_ONCE = 2**20
OFFERED = frozenset({"midway", "stochastic"})  # what pipelines can do for a search so far


@dataclass(frozen=True)
class Extent:
    """How far one prompt's search goes."""

    rounds: int
    images: int
    nfe: int


@dataclass(frozen=True)
class Plan:
    """A run before it starts. steps, least and most are None where nothing here can tell."""

    config: ExperimentConfig
    checkpoint: str
    prompts: list[Prompt]
    steps: int | None
    least: Extent | None
    most: Extent | None

    def __str__(self) -> str:
        return "\n".join(f"{name:<14}{text}" for name, text in self._lines())

    def _lines(self) -> Iterable[tuple[str, str]]:
        config = self.config
        yield "pipeline", f"{self.checkpoint} ({config.torch_dtype}){self._classes()}"
        yield "verifier", _named(config.verifier_args)
        for judge in config.judges:
            yield "judge", _named(judge)
        yield "search", _described(config)
        n = len(self.prompts)
        yield "prompts", f"{n}: {_shortened(self.prompts[0].text)}" + (", ..." if n > 1 else "")
        if self.least is None or self.most is None:
            yield "each prompt", "until its budget of seconds is spent"
            return
        yield (
            "each prompt",
            f"{self._rounds()}, {_span(self.least.images, self.most.images)} images",
        )
        yield "NFE", self._nfe(n)

    def _rounds(self) -> str:
        assert self.least is not None and self.most is not None
        return f"{_span(self.least.rounds, self.most.rounds)} rounds"

    def _nfe(self, prompts: int) -> str:
        assert self.least is not None and self.most is not None
        if self.steps is None:
            images = _span(self.least.images, self.most.images)
            return f"{images} x the pipeline's own number of steps, unknown until it is loaded"
        each = _span(self.least.nfe, self.most.nfe)
        total = _span(self.least.nfe * prompts, self.most.nfe * prompts)
        return f"{each} a prompt ({self.steps} steps an image), {total} in all"

    def _classes(self) -> str:
        if not Path(self.checkpoint).is_dir():
            return "; not here, so its pipeline and scheduler are unknown until it is loaded"
        index = pipeline_index(self.checkpoint)
        scheduler = (self.config.scheduler or {}).get("_class_name") or index["scheduler"][1]
        return f": {index['_class_name']}, {scheduler}"


def make_plan(config: ExperimentConfig, checkpoint: str, prompts: list[Prompt]) -> Plan:
    """Work out a run's extent, and refuse what cannot work."""
    _refuse_needs(config.search_args.search_method, config.search_args.build().needs)
    if Path(checkpoint).is_dir():
        refuse_cuts(config, checkpoint)
    steps = _steps(config, checkpoint)
    budget = config.budget.build()
    if steps is not None and budget.nfe is not None and budget.nfe < steps:
        raise UserError(
            f"A budget of {budget.nfe} NFE cannot finish one image of {steps} steps: raise"
            " budget.nfe or lower num_inference_steps."
        )
    if config.rounds is None and budget.nfe is None and budget.verifications is None:
        return Plan(config, checkpoint, prompts, steps, None, None)
    ends = [_extent(config, steps or 1, answer) for answer in (_rising, _falling)]
    least, most = (
        Extent(*(which(getattr(end, name) for end in ends) for name in ("rounds", "images", "nfe")))
        for which in (min, max)
    )
    return Plan(config, checkpoint, prompts, steps, least, most)


def _refuse_needs(method: str, needs: frozenset[str]) -> None:
    for need in sorted(needs - OFFERED):
        raise UserError(f"The search method '{method}' needs '{need}', which is not offered yet.")


def refuse_cuts(config: ExperimentConfig, checkpoint: str) -> None:
    """Refuse a search that stops between steps with a scheduler that keeps a history of them.

    Reads the scheduler's config alone, from the hub if it is not here.
    """
    method = config.search_args.search_method
    if "midway" not in config.search_args.build().needs:
        return
    scheduler = load_scheduler(checkpoint, config.scheduler)
    if not is_one_step(scheduler):
        raise UserError(
            f"The search method '{method}' stops between steps, but {type(scheduler).__name__}"
            ' keeps a history of them: set "scheduler" to {"_class_name": "DDIMScheduler"},'
            " EulerDiscreteScheduler, or for flow models FlowMatchEulerDiscreteScheduler."
        )


def _steps(config: ExperimentConfig, checkpoint: str) -> int | None:
    """Scheduler steps an image, as far as the config and local files tell."""
    wanted = config.pipeline_call_args.get("num_inference_steps")
    if wanted is None:
        return None
    if type(wanted) is not int or wanted < 1:
        raise UserError(
            f"pipeline_call_args.num_inference_steps must be a whole number from 1, not {wanted!r}."
        )
    return local_steps(checkpoint, wanted, config.scheduler) or wanted


def _extent(config: ExperimentConfig, steps: int, answer: Callable[[int], float]) -> Extent:
    """Play the search against answers made up by `answer` from the candidate's number."""
    counted = 0
    ledger = Ledger(replace(config.budget.build(), seconds=None))

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
        )
        return scored, Cost(nfe=nfe_each(rollout) * n, verifications=n if rollout.score else 0)

    images = rounds = 0
    search = config.search_args.build()
    for played in play(search, _Nowhere(steps), evaluate, ledger, config.rounds):
        rounds = played.round
        finished = played.rollout.until == steps
        images += len(played.rollout.candidates) if finished else 0
    return Extent(rounds, images, ledger.spent.nfe)


def _rising(number: int) -> float:
    return float(number)


def _falling(number: int) -> float:
    return -float(number)


def _answers(answer: Callable[[int], float], ids: Iterable[int]) -> Tensor:
    return torch.tensor([answer(i) for i in ids], dtype=torch.float64)


class _Nowhere:
    """A space whose points hold a single number: enough to count them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first = 0
        self.rng = torch.Generator().manual_seed(0)

    def draw(self, n: int) -> Candidates:
        return self._points(n, 0)

    def perturb(self, around: Candidates, n: int, cosine: float) -> Candidates:
        return self._points(len(around) * n, around.step)

    def renoise(self, candidates: Candidates, to: int) -> Candidates:
        return self._points(len(candidates), to)

    def fork(self, candidates: Candidates, index: Tensor | Iterable[int]) -> Candidates:
        return candidates.select(index)

    def spatial(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, 1, 1, 1)

    def from_spatial(self, unit: Tensor) -> Tensor:
        return unit.reshape(-1, 1)

    @staticmethod
    def _points(n: int, step: int) -> Candidates:
        if n > MOST_AT_ONCE:
            raise UserError(
                f"A round would ask for {n} candidates at once: lower search_args.search_rounds or"
                " the budget."
            )
        return Candidates(torch.ones(n, 1), step, tuple(range(n)))


def _named(args: VerifierArgs) -> str:
    """The verifier and its metric, and what is still missing for it to run."""
    made = args.make()
    try:
        made.check()
    except UserError as error:
        return f"{args.name} by {metric_name(made.metric)}; to run: {error}"
    return f"{args.name} by {metric_name(made.metric)}"


def _described(config: ExperimentConfig) -> str:
    resolved = config.resolved()["search_args"]
    method = resolved.pop("search_method")
    options = ", ".join(f"{name}={value}" for name, value in resolved.items() if value is not None)
    limits = {k: v for k, v in config.budget.model_dump().items() if v is not None}
    spent = "".join(f", at most {value} {name}" for name, value in limits.items())
    return f"{method} ({options}){spent}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _span(least: Any, most: Any) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
