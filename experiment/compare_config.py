"""The config of a comparison: several searches at equal budgets, over the same prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from experiment.complaints import sentence
from experiment.config import (
    ExperimentConfig,
    Part,
    load_config,
    read_json,
)
from experiment.listeners import listeners
from utils import UserError, did_you_mean, free_name, path_part
from verifiers.base import metric_name

OURS = ("seed", "budget", "search_args")  # of an experiment's keys, those that a comparison sets


class CompareConfig(Part):
    """What is compared.

    name: of its folder. pipeline_config: an experiment's config. overrides: dotted keys over it.
    methods: for each label the `search_args`; the first is what the others are compared with.
    budgets: NFE a prompt. ceilings: metrics of judges that are exact; beside the methods stands
    what the best of the first method's images by such a judge would have had. block: how many
    prompts all methods search for before the next prompts' turn.
    """

    name: str = Field(min_length=1)
    pipeline_config: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    ceilings: tuple[str, ...] = ()
    block: int = Field(8, ge=1)

    @field_validator("budgets", "seeds")
    @classmethod
    def _ascending(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(values)))

    @model_validator(mode="after")
    def _sound(self) -> Self:
        folders: dict[str, str] = {}
        for label in self.methods:
            twin = folders.setdefault(path_part(label).lower(), label)
            if twin != label:
                raise ValueError(f"'{twin}' and '{label}' would share a folder: rename one")
        for key in self.overrides:
            if key.split(".")[0] in OURS:
                raise ValueError(f"'{key}' is no override: set methods, budgets and seeds")
        return self

    def experiment(self, label: str, budget: int, seed: int) -> ExperimentConfig:
        """The config of one method at one budget and seed."""
        ours = {"search_args": self.methods[label], "budget": {"nfe": budget}, "seed": seed}
        try:
            return load_config(self.pipeline_config, {**self.overrides, **ours})
        except UserError as error:
            raise UserError(f"The method '{label}' cannot run: {error}") from error


def load_compare_config(path: str, overrides: Mapping[str, Any]) -> CompareConfig:
    """The comparison's config at `path`; what is no key of it goes to the experiments' config."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object: {{...}}.")
    if "pretrained_model_name_or_path" in content:
        raise UserError(
            f"{path} is the config of one experiment: give it with --pipeline_config_path, and"
            " --compare one that names it as its 'pipeline_config'."
        )
    for dotted, value in overrides.items():
        part, _, rest = dotted.partition(".")
        if part not in CompareConfig.model_fields:
            part, rest = "overrides", dotted
        if not rest:
            content[part] = value
        elif isinstance(content.setdefault(part, {}), dict):
            content[part][rest] = value
        else:
            raise UserError(f"--set {dotted}: '{part}' is not a part of keys.")
    return parse_compare_config(content)


def parse_compare_config(content: Mapping[str, Any]) -> CompareConfig:
    """A comparison's config from its parsed JSON, or a `UserError` of one sentence."""
    for key in content:
        if key not in CompareConfig.model_fields:
            raise UserError(f"Unknown key '{key}': {did_you_mean(key, CompareConfig.model_fields)}")
    try:
        config = CompareConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(sentence(error, model=CompareConfig)) from error
    _check_judges(config)
    return config


def _check_judges(config: CompareConfig) -> None:
    experiment = config.experiment(next(iter(config.methods)), config.budgets[-1], config.seeds[0])
    for name in listeners(experiment):
        raise UserError(
            f"'{name}' judges the images of all prompts together, so that one method's would change"
            " another's scores: compare by another verifier."
        )
    if experiment.engine_args.share_batches > 1:
        raise UserError(
            "A comparison searches for one prompt at a time: set engine_args.share_batches to 1."
        )
    judges = metric_labels(experiment)[1:]
    for label in config.ceilings:
        if label not in judges:
            raise UserError(f"ceilings: no judge gives '{label}': {did_you_mean(label, judges)}")
    if experiment.verifier_args.make().pooled and not judges:
        raise UserError(
            f"The scores of '{experiment.verifier_args.name}' hold within one search only: give"
            " judges to compare by."
        )


def metric_labels(config: ExperimentConfig) -> tuple[str, ...]:
    """What the verifier and each judge are called in tables: by their metric."""
    labels: list[str] = []
    for args in (config.verifier_args, *config.judges):
        labels.append(free_name(metric_name(args.metric), labels))
    return tuple(labels)
