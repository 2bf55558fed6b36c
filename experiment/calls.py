"""The pipeline that a config asks for, and the arguments of its call; loads no weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.config import ExperimentConfig, VerifierArgs
from experiment.prompts import Prompt
from pipelines.call_source import call_source
from pipelines.guidance import guiding
from pipelines.labels import asked_class, by_class, class_count, class_names, class_number
from pipelines.loading import (
    check_call_args,
    denoiser_configs,
    load_scheduler,
    pipeline_class,
    pipeline_index,
    refuse_strangers,
)
from pipelines.schedule import set_steps
from pipelines.start_image import first_step, from_image, image_arguments, load_picture
from utils import UserError
from verifiers import verifier_class


@dataclass(frozen=True)
class Call:
    """A pipeline's class, and with what it will be called; the picture to start from included."""

    checkpoint: str
    build: Any
    args: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.build.__call__).parameters

    def refuse_unguided(self, method: str) -> None:
        """Refuse a search that changes guidance where, as called, there is none to change."""

        def configs() -> list[dict[str, Any]]:
            return denoiser_configs(self.checkpoint)

        settings = pipeline_index(self.checkpoint)
        if not guiding(self.parameters, self.args, settings, configs):
            raise UserError(
                f"The search method '{method}' changes guidance, but {self.build.__name__} has no"
                " guidance scale as it is called here: set one in pipeline_call_args (for a true"
                " scale a negative_prompt too), or choose another search method."
            )

    def refuse_unknown_classes(self, prompts: Sequence[Prompt]) -> None:
        """Refuse a class, named by the call arguments or a prompt, that the model does not have."""
        if not (by_class(self.parameters) or "class_labels" in self.args):
            return
        names = class_names(pipeline_index(self.checkpoint).get("id2label"))
        count = class_count(denoiser_configs(self.checkpoint))
        for prompt in prompts:
            class_number(asked_class(self.args, prompt.text), names, count)


def called(config: ExperimentConfig, checkpoint: str) -> Call:
    """The pipeline and its call; refuses arguments that it does not take."""
    build = pipeline_class(checkpoint, config.pipeline_class)
    args: Mapping[str, Any] = config.pipeline_call_args
    if config.start_image is not None:
        build = from_image(build)
        args = image_arguments(build, args, load_picture(config.start_image), config.strength)
    check_call_args(checkpoint, args, build)
    return Call(checkpoint, build, args)


def refuse_unfit(config: ExperimentConfig, call: Call, prompts: Sequence[Prompt]) -> None:
    """Refuse what this pipeline, as it is called, cannot do for the config's search."""
    if getattr(config.search_args.build(), "guides", False):
        call.refuse_unguided(config.search_args.search_method)
    call.refuse_unknown_classes(prompts)
    if "num_frames" not in call.parameters:
        for name in verifier_names((config.verifier_args, *config.judges)):
            if getattr(verifier_class(name), "only_video", False):
                raise UserError(
                    f"The verifier '{name}' judges videos, and {call.build.__name__} makes images:"
                    " choose another verifier, or a checkpoint that makes videos."
                )


def verifier_names(args: Iterable[VerifierArgs]) -> Iterator[str]:
    """The names of these verifiers, and of their members."""
    for each in args:
        yield each.name
        members = each.options.get("verifiers", ())
        yield from verifier_names(
            VerifierArgs.model_validate({k: v for k, v in member.items() if k != "weight"})
            for member in members
        )


def call_here(config: ExperimentConfig, checkpoint: str) -> Call | None:
    """The call, as far as a plan has to look; refuses arguments that the pipeline does not take.

    None where their names are all that there is to check, and stand in the source: importing the
    class takes seconds.
    """
    index = pipeline_index(checkpoint)
    source = call_source(index["_class_name"])
    if source is None or _asks_more(config, index):
        return called(config, checkpoint)
    refuse_strangers(index["_class_name"], config.pipeline_call_args, source.takes)
    return None


def _asks_more(config: ExperimentConfig, index: Mapping[str, Any]) -> bool:
    """Whether a plan has to look at the pipeline's class itself."""
    return (
        config.start_image is not None
        or config.pipeline_class is not None
        or getattr(config.search_args.build(), "guides", False)
        or "id2label" in index
    )


def refuse_scheduler(config: ExperimentConfig, checkpoint: str) -> None:
    """Refuse the config's scheduler where the checkpoint's pipeline cannot drive it."""
    if config.scheduler is None:
        return
    scheduler = load_scheduler(checkpoint, config.scheduler)  # a wrong one is refused here
    pipeline = pipeline_index(checkpoint)["_class_name"]
    source = None if config.pipeline_class is not None else call_source(pipeline)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    lacking = sorted(source.hands - takes.keys()) if source is not None else []
    if lacking and not any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        raise UserError(
            f"The config's scheduler, {type(scheduler).__name__}, does not take the"
            f" {' and '.join(map(repr, lacking))} that {pipeline} sets: name another in"
            " 'scheduler', or leave it out."
        )


def start_of(config: ExperimentConfig, call: Call, inference_steps: int) -> int:
    """The step at which the call starts sampling, later than 0 from an image."""
    if config.start_image is None:
        return 0
    scheduler = load_scheduler(call.checkpoint, config.scheduler)
    try:
        set_steps(scheduler, inference_steps)
    except Exception:  # a scheduler that only its pipeline knows how to set
        return 0
    share = call.args.get("strength")
    if share is not None and type(share) not in (int, float):
        return 0  # the pipeline itself refuses it
    return first_step(call.build, scheduler, inference_steps, share)
