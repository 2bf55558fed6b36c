"""What a run will do and cost, worked out before anything loads.

The search itself is played against a stand-in for the model, once with every answer better than
the last and once with every answer worse: the two ends of what the run can come to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiment.calls import (
    Call,
    call_here,
    called,
    refuse_scheduler,
    refuse_unfit,
    start_of,
)
from experiment.config import EngineArgs, ExperimentConfig, VerifierArgs
from experiment.extent import Extent, Nowhere, extents
from experiment.listeners import refuse_listeners
from experiment.notes import unread_prompts
from experiment.prompts import Prompt
from experiment.speed import images_at_once, speed
from pipelines.loading import load_scheduler, local_folder, local_steps, pipeline_index
from pipelines.memory import GB, Needs, needs_of_folder, stored_bytes
from pipelines.schedule import is_one_step
from pipelines.start_image import load_picture
from utils import UserError, counted
from verifiers.base import metric_name

CARDS = (24, 48, 80, 141)  # GB of common GPUs


@dataclass(frozen=True)
class Plan:
    """A run before it starts. steps, least and most are None where nothing here can tell.

    local: the folder of the checkpoint's files, if they are on this machine. notes: what can run,
    and is hardly what is wanted.
    """

    config: ExperimentConfig
    checkpoint: str
    local: str | None
    prompts: list[Prompt]
    steps: int | None
    least: Extent | None
    most: Extent | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(f"{name:<14}{text}" for name, text in self._lines())

    def _lines(self) -> Iterable[tuple[str, str]]:
        config = self.config
        yield "pipeline", f"{self.checkpoint} ({config.torch_dtype}){self._classes()}"
        if config.start_image is not None:
            yield "image", f"starts from {config.start_image}"
        yield "verifier", _named(config.verifier_args)
        for judge in config.judges:
            yield "judge", _named(judge)
        yield "search", _described(config)
        n = len(self.prompts)
        yield "prompts", f"{n}: {_shortened(self.prompts[0].text)}" + (", ..." if n > 1 else "")
        if self.least is None or self.most is None:
            yield "each prompt", "until its budget is spent"
        else:
            images = _span(self.least.images, self.most.images)
            yield "each prompt", f"{self._rounds()}, {_plural(images, 'image')}"
            yield "NFE", self._nfe(n)
        yield from self._memory()
        if self.local is not None:
            yield from speed(self.config, self.local, self.passes)
        yield from (("note", note) for note in self.notes)

    def passes(self, batch_size: int) -> float | None:
        """Forward passes of the whole run, if every batch is full; None where nobody knows."""
        if self.most is None or self.steps is None:
            return None
        return self.most.nfe * len(self.prompts) / batch_size

    def _memory(self) -> Iterable[tuple[str, str]]:
        """What the pipeline needs of a GPU, and where its weights would be put on a few of them."""
        if self.local is None:
            yield "memory", "unknown until the checkpoint's files are here"
            return
        stored = stored_bytes(self.local)
        if stored is not None and stored < GB:
            yield "memory", f"{stored / GB:.2f} GB of weights on disk, small enough for any GPU"
            return
        config, call = self.config, called(self.config, self.local)
        engine, batch = config.engine_args, images_at_once(config, call.build)
        needs = needs_of_folder(
            self.local, config.torch_dtype, engine.quantization, call.build, call.args, batch
        )
        yield "weights", needs.listed()
        yield "activations", needs.active()
        yield "placement", "; ".join(_placed(needs, engine, gb) for gb in CARDS)

    def _rounds(self) -> str:
        assert self.least is not None and self.most is not None
        return _plural(_span(self.least.rounds, self.most.rounds), "round")

    def _nfe(self, prompts: int) -> str:
        assert self.least is not None and self.most is not None
        if self.steps is None:
            images = _span(self.least.images, self.most.images)
            return f"{images} x the pipeline's own number of steps, unknown until it is loaded"
        each = _span(self.least.nfe, self.most.nfe)
        total = _span(self.least.nfe * prompts, self.most.nfe * prompts)
        steps = counted(self.steps, "step")
        return f"{each} per prompt ({steps} per image), {total} in all"

    def _classes(self) -> str:
        if self.local is None:
            return "; not here, so its pipeline and scheduler are unknown until it is loaded"
        index = pipeline_index(self.local)
        scheduler = (self.config.scheduler or {}).get("_class_name") or index["scheduler"][1]
        return f": {self.config.pipeline_class or index['_class_name']}, {scheduler}"


def make_plan(config: ExperimentConfig, checkpoint: str, prompts: list[Prompt]) -> Plan:
    """Work out a run's extent, and refuse what cannot work."""
    _refuse_flat(config)
    _refuse_ranks(config)
    if config.engine_args.share_batches > 1:
        refuse_listeners(config, "set engine_args.share_batches to 1")
    call = None
    local = local_folder(checkpoint)
    if local is not None:
        refuse_cuts(config, local)
        refuse_scheduler(config, local)
        call = call_here(config, local)
        if call is not None:
            refuse_unfit(config, call, prompts)
    elif config.start_image is not None:
        load_picture(config.start_image)  # a wrong one is refused here
    whole = _steps(config, local or checkpoint)
    first = 0 if whole is None else _first(config, call, whole)
    steps = None if whole is None else whole - first
    if steps == 0:
        raise UserError(
            f"Of {whole} steps this strength leaves none to take: raise it, or num_inference_steps."
        )
    if steps is not None:
        _refuse_single_step(config, steps)
    if first:
        next(config.search_args.build().flow(Nowhere(whole or 1, first)), None)  # or it refuses
    budget = config.budget.build()
    if steps is not None and budget.nfe is not None and budget.nfe < steps:
        raise UserError(
            f"A budget of {budget.nfe} NFE cannot finish one image of {steps} steps: raise"
            " budget.nfe or lower num_inference_steps."
        )
    notes = list(unread_prompts(config, prompts))
    if config.rounds is None and budget.nfe is None and budget.verifications is None:
        return Plan(config, checkpoint, local, prompts, steps, None, None, tuple(notes))
    least, most = extents(config, whole or 1, first)
    if steps is not None and not most.stops and _needs_stops(config):
        notes.append(
            f"{config.search_args.search_method} never stops between steps here, so it does no"
            " more than draw noises: more steps, other options or a larger budget would let it"
        )
    return Plan(config, checkpoint, local, prompts, steps, least, most, tuple(notes))


def _refuse_flat(config: ExperimentConfig) -> None:
    """Refuse a search that climbs its verifier's gradient with a verifier that has none."""
    method, verifier = config.search_args.search_method, config.verifier_args.make()
    if config.climbs and not verifier.differentiable:
        raise UserError(
            f"The search method '{method}' climbs the verifier's gradient, but '{verifier.name}' by"
            f" {metric_name(verifier.metric)} has none: use one metric of clip, pickscore, hpsv2,"
            " image_reward or laion_aesthetic."
        )


def _refuse_ranks(config: ExperimentConfig) -> None:
    """Refuse ranks, which move with the pool, for a search that keeps scores to compare later."""
    method = config.search_args.search_method
    if getattr(config.search_args.build(), "fixed_scale", False) and (
        config.verifier_args.make().ordinal
    ):
        raise UserError(
            f"The search method '{method}' compares scores over time, but ranks change as the pool"
            ' grows: give the ensemble "combine": "zscore" or "weighted".'
        )


def _needs_stops(config: ExperimentConfig) -> bool:
    """Whether the search wants to stop between steps."""
    return "midway" in config.search_args.build().needs


def _refuse_single_step(config: ExperimentConfig, steps: int) -> None:
    """Refuse a search that stops between steps where there is no between."""
    if _needs_stops(config) and steps < 2:
        raise UserError(
            f"The search method '{config.search_args.search_method}' stops between steps, and a"
            " single step has no point midway: raise pipeline_call_args.num_inference_steps, or"
            " take a method that needs none, such as random."
        )


def refuse_cuts(config: ExperimentConfig, checkpoint: str) -> None:
    """Refuse a search that stops between steps with a scheduler that keeps a history of them.

    Reads the scheduler's config alone, from the hub if it is not here.
    """
    method = config.search_args.search_method
    if not _needs_stops(config):
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


def _first(config: ExperimentConfig, call: Call | None, steps: int) -> int:
    """The step at which sampling starts, later than 0 from an image: for a checkpoint that is not
    here as the share to be painted over says."""
    if call is not None:
        return start_of(config, call, config.pipeline_call_args["num_inference_steps"])
    share = config.pipeline_call_args.get("strength", config.strength)
    if config.start_image is None or not isinstance(share, int | float):
        return 0
    return steps - min(max(int(steps * share), 1), steps)


def _placed(needs: Needs, engine: EngineArgs, gb: int) -> str:
    """Where the weights would be put on a GPU of so many GB, with nothing else on it."""
    placement = needs.choose(engine.offload, engine.vae, gb * GB)
    lacking = "" if needs.fit(placement, gb * GB) else " (may not fit)"
    return f"{gb} GB: {placement}{lacking}"


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


def _plural(span: str, thing: str) -> str:
    """A number, or from which to which, of a thing."""
    return f"{span} {thing}" if span == "1" else f"{span} {thing}s"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _span(least: Any, most: Any) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
