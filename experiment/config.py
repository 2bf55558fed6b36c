"""The config of an experiment: one schema for the JSON file, the flags and the saved record.

tt-scale-flux's keys load unchanged with their meaning; every other key is optional.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

import search
import verifiers
from experiment import former
from experiment.complaints import sentence
from experiment.profiles import DEFAULT_ROUNDS, Profile, explored, refuse_contradiction
from experiment.video import CRF
from pipelines.loading import DTYPES
from search.ledger import Budget
from utils import UserError, check_options, did_you_mean, find_path
from verifiers import keyframes
from verifiers.base import Chosen, Metric

DEFAULT_PROMPT_FILE = "prompts_open_image_pref_v1.txt"
DEFAULT_NUM_PROMPTS = 2
VERIFIER_KEYS = ("name", "choice_of_metric")
SEARCH_KEYS = ("search_method", "search_rounds")
RUN_CONFIG = "config.json"  # of a run's folder


class Part(BaseModel):
    """A part of the config: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Options(BaseModel):
    """A part whose further keys are the options of the class that it names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class VerifierArgs(Options):
    """Which verifier, and which of its metrics (a name, or a weight for each of several)."""

    name: str = Field("gemini", description="a verifier's name, or 'package.module:Class'")
    choice_of_metric: str | dict[str, float] | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        build = verifiers.verifier_class(self.name)
        own, _ = verifiers.split_options(build, self.options)
        beside = VERIFIER_KEYS if build.video else (*VERIFIER_KEYS, *keyframes.OPTIONS)
        who = f"The verifier '{self.name}'"
        check_options(who, build, own, beside=beside, remedy=_of_the_whole)
        _check_types(build, own)
        for member in own.get("verifiers", ()):
            VerifierArgs.model_validate({k: v for k, v in member.items() if k != "weight"})
        self.make()
        return self

    def make(self) -> Chosen:
        """The verifier, its packages, keys and files not looked at yet."""
        return verifiers.make_verifier(self.name, self.choice_of_metric, self.options)

    def build(self) -> Chosen:
        """The verifier, ready to be loaded."""
        return verifiers.build_verifier(self.name, self.choice_of_metric, self.options)

    @property
    def metric(self) -> Metric:
        return self.make().metric


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks values of a type, made once: a plan asks for a search's dozens of times."""
    try:
        return _adapters(kind)
    except TypeError:  # a type that cannot be hashed
        return TypeAdapter(kind)


@functools.cache
def _adapters(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_types(build: Any, options: Mapping[str, Any]) -> None:
    """Refuse options whose type is not their field's."""
    hints = get_type_hints(build)
    for name, value in options.items():
        try:
            _adapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(sentence(error, f"verifier_args.{name}")) from error


def _of_the_whole(option: str) -> str | None:
    """The end of a sentence for an option that is a key of the whole config."""
    if option not in ExperimentConfig.model_fields:
        return None
    return f"it is a key of the whole config, so set '{option}' there."


class SearchArgs(Options):
    """Which search, for how many rounds, with which hyper-parameters."""

    search_method: str = Field("random", description="a search's name, or 'package.module:Class'")
    search_rounds: int | None = Field(None, ge=1, description="unset: 4, or the budget's end")

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.build()
        return self

    def build(self) -> Any:
        """The search with its hyper-parameters checked."""
        method = self.search_method
        if renamed := former.method_renamed(method):
            raise UserError(renamed)
        build = search.search_class(method)
        check_options(
            f"The search method '{method}'",
            build,
            self.options,
            beside=SEARCH_KEYS,
            remedy=lambda name: former.option_renamed(method, name) or _of_the_whole(name),
        )
        if isinstance(inner := self.options.get("inner"), Mapping):  # a search around another
            SearchArgs.model_validate(inner)
        try:
            return _adapter(build).validate_python(self.options)
        except ValidationError as error:
            raise UserError(sentence(error, "search_args")) from error


Judge: TypeAlias = str | VerifierArgs
Judges: TypeAlias = Judge | tuple[Judge, ...]
"""As a config may name them: a verifier's name is enough."""


class BudgetArgs(Part):
    """Limits for each prompt; null means none."""

    nfe: int | None = Field(None, ge=1, description="scheduler steps of candidates")
    rows: int | None = Field(None, ge=1, description="rows through the denoiser, with guidance")
    seconds: float | None = Field(None, gt=0)
    verifications: int | None = Field(None, ge=1)

    def build(self) -> Budget:
        return Budget(**self.model_dump())


class EngineArgs(Part):
    """How the pipeline runs; changes speed and memory, not what is asked."""

    batch_size: int | Literal["auto"] = "auto"
    device: str = "auto"
    verifier_device: str = Field(
        "auto",
        description="where local verifiers and judges run; auto: on another GPU of this machine,"
        " if there is one and no process of the run has it, else beside the pipeline",
    )
    offload: Literal["auto", "none", "model", "group", "sequential"] = Field(
        "auto", description="what waits on the CPU while it is not in use"
    )
    vae: Literal["auto", "plain", "slicing", "tiling"] = Field(
        "auto", description="decode whole batches, one by one, or in tiles (changes pixels)"
    )
    quantization: Literal["fp8", "int8", "4bit"] | None = Field(
        None, description="of the denoiser's weights (changes images)"
    )
    profile: Profile = Field(
        "exact",
        description="how a search explores: exact images, or drafts in fp8, by a feature cache or"
        " with fewer steps, of which the best are rendered again exactly",
    )
    cache_threshold: float = Field(
        0.08,
        gt=0,
        description="profile cached: skip a step's other blocks where the first changes less",
    )
    deterministic: bool = Field(
        False, description="only algorithms that give the same bits each time; slower on GPUs"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile (changes images a little); auto: on a GPU, if it pays"
    )
    attention: Literal["auto", "default", "cudnn", "flash", "efficient", "math"] = Field(
        "auto",
        description="the attention kernel that is tried first (changes last bits); default:"
        " torch's choice; auto: on a GPU, cuDNN's if it is measured to be faster",
    )
    prompts_at_once: int | Literal["auto"] = Field(
        "auto", description="prompts that take turns: one is judged while another is denoised"
    )
    share_batches: int = Field(
        1,
        ge=1,
        description="prompts whose candidates are denoised in the same batches, for searches that"
        " ask for fewer than fit (changes last bits)",
    )

    @field_validator("batch_size", "prompts_at_once")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"must be at least 1, not {value}")
        return value


class RayArgs(Part):
    """How `--executor ray` shares a run out; no image depends on it, and no record names it."""

    address: str = Field(
        "auto", description="of a cluster; auto: the one there is, or one started here; local"
    )
    pipelines: int | None = Field(
        None, ge=1, description="actors that search; unset: one for each GPU, or one"
    )
    pipeline_gpus: float | None = Field(None, ge=0, description="each; unset: 1 if there are any")
    pipeline_cpus: float = Field(1, ge=0)
    verifiers: int = Field(
        0, ge=0, description="actors that judge for the pipelines; 0: each judges for itself"
    )
    verifier_gpus: float = Field(0, ge=0)
    verifier_cpus: float = Field(1, ge=0)

    def gpus_each(self, gpus: float) -> float:
        """GPUs of a pipeline on a cluster that has so many."""
        return float(gpus > 0) if self.pipeline_gpus is None else self.pipeline_gpus

    def count(self, gpus: float) -> int:
        """Pipelines on a cluster of so many GPUs."""
        each = self.gpus_each(gpus)
        free = gpus - self.verifiers * self.verifier_gpus
        return self.pipelines or (max(1, int(free / each)) if each else 1)

    @property
    def cores(self) -> int:
        """What all actors take together, as far as it is set."""
        pipelines = (self.pipelines or 1) * self.pipeline_cpus
        return math.ceil(pipelines + self.verifiers * self.verifier_cpus)


class StochasticArgs(Part):
    """How searches that need noise in their steps get it; see `pipelines.sde.Sde`."""

    path: Literal["variance-preserving", "linear"] = Field(
        "variance-preserving", description="whose diffusion the steps have"
    )
    eta: float = Field(1.0, gt=0, description="factor on the added noise")


class ExportArgs(Part):
    """How videos are written."""

    fps: int = Field(24, ge=1, le=240)
    quality: float | None = Field(None, ge=0, le=10, description="diffusers' scale, 10 is best")
    crf: int | None = Field(None, ge=1, le=51, description="x264's scale, 1 is best; unset: 18")

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.quality is not None and self.crf is not None:
            raise ValueError("'quality' and 'crf' say the same on two scales: keep one")
        return self

    @property
    def rate_factor(self) -> int:
        """x264's `crf`: as given, or where diffusers' writer puts `quality`."""
        if self.quality is not None:
            return max(1, int((1 - self.quality / 10) * 51))  # at 0 few players can follow
        return CRF if self.crf is None else self.crf


class ExperimentConfig(Part):
    """Everything that a run depends on."""

    schema_: str | None = Field(None, alias="$schema")
    pretrained_model_name_or_path: str
    torch_dtype: Literal["fp32", "fp16", "bf16"] = "bf16"
    pipeline_class: str | None = Field(
        None, description="your own in place of the checkpoint's: 'package.module:Class'"
    )
    pipeline_call_args: dict[str, Any] = Field(default_factory=dict)
    init_image: str | None = Field(None, description="a picture's path, to start from it")
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="how much of init_image is painted over; unset: the pipeline's",
    )
    scheduler: dict[str, Any] | None = Field(
        None, description="replaces the checkpoint's: its _class_name in diffusers, and options"
    )
    verifier_args: VerifierArgs = Field(default_factory=VerifierArgs)
    search_args: SearchArgs = Field(default_factory=SearchArgs)
    stochastic_args: StochasticArgs = Field(default_factory=StochasticArgs)
    export_args: ExportArgs | None = None
    judges: tuple[VerifierArgs, ...] = ()
    budget: BudgetArgs = Field(default_factory=BudgetArgs)
    engine_args: EngineArgs = Field(default_factory=EngineArgs)
    ray_args: RayArgs = Field(default_factory=RayArgs)
    prompts: str | None = Field(
        None,
        description="a text file, one prompt a line; a CSV, TSV, JSON, JSONL or parquet file; a"
        " set by its name, such as drawbench; a hub dataset's id",
    )
    prompts_column: str | None = Field(
        None, description="the column with the prompts; unset: the one that its name gives away"
    )
    prompts_split: str | None = Field(
        None, description="of a hub dataset; unset: train, or the only one there is"
    )
    prompt: str | None = Field(None, description="a single prompt, in place of a file")
    num_prompts: int | Literal["all"] | None = Field(None, description="the first so many")
    batch_size_for_img_gen: int | None = Field(None, ge=1)
    use_low_gpu_vram: bool = False
    seed: int = Field(0, ge=0)

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True, title="Experiment"
    )

    @field_validator("torch_dtype", mode="before")
    @classmethod
    def _short_name(cls, value: Any) -> Any:
        """float32 and torch.float32 are fp32."""
        short = {name: key for key, name in DTYPES.items()}
        return short.get(value.removeprefix("torch."), value) if isinstance(value, str) else value

    @field_validator("judges", mode="before", json_schema_input_type=Judges)
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """A judge may be its name alone, and a single one stands for a list."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            value = (value,)
        return tuple({"name": judge} if isinstance(judge, str) else judge for judge in value)

    @field_validator("num_prompts")
    @classmethod
    def _some(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"must be at least 1, not {value}")
        return value

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is blank: write what the image should show")
        return value

    @model_validator(mode="before")
    @classmethod
    def _explored(cls, content: Any) -> Any:
        return explored(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        engine = self.engine_args
        refuse_contradiction(engine.profile, engine.quantization, self.search_args.build())
        return self

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.engine_args.share_batches > 1 and self.budget.seconds is not None:
            raise ValueError(
                "engine_args.share_batches makes prompts wait for each other, so budget.seconds"
                " would count their waiting: set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _one_picture(self) -> Self:
        """An image's path may stand among the call arguments instead, as the pipeline names it."""
        if self.init_image is not None and "image" in self.pipeline_call_args:
            raise ValueError("'init_image' and pipeline_call_args.image say the same: keep one")
        if self.strength is not None and "strength" in self.pipeline_call_args:
            raise ValueError("'strength' stands twice, once in pipeline_call_args: keep one")
        if self.strength is not None and self.start_image is None:
            raise ValueError("'strength' goes with a picture: set 'init_image' too")
        return self

    @property
    def start_image(self) -> str | None:
        """The path of the picture to start from."""
        named = self.pipeline_call_args.get("image")
        return named if isinstance(named, str) else self.init_image

    @property
    def rounds(self) -> int | None:
        """How many rounds: as set; unset, as many as a budget allows, or else 4."""
        if self.search_args.search_rounds is None and not self.budget.build().bounded:
            return DEFAULT_ROUNDS
        return self.search_args.search_rounds

    @property
    def export(self) -> ExportArgs:
        return self.export_args or ExportArgs()

    @property
    def batch_size(self) -> int | Literal["auto"]:
        return self.batch_size_for_img_gen or self.engine_args.batch_size

    @property
    def climbs(self) -> bool:
        """Whether the search differentiates through pipeline and verifier."""
        return "gradient" in self.search_args.build().needs

    def resolved(self) -> dict[str, Any]:
        """The whole config with its defaults filled in, as saved: running it repeats the run."""
        whole = self.model_dump(mode="json", by_alias=True, exclude={"schema_", "ray_args"})
        whole["export_args"] = self.export.model_dump(mode="json")
        whole["search_args"] = {
            "search_method": self.search_args.search_method,
            "search_rounds": self.rounds,
            **_adapter(type(self.search_args.build())).dump_python(
                self.search_args.build(), mode="json"
            ),
        }
        for args, part in zip(
            (self.verifier_args, *self.judges),
            (whole["verifier_args"], *whole["judges"]),
            strict=True,
        ):
            part["choice_of_metric"] = args.metric
        return whole


def load_config(path: str, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """The config at `path` with dotted overrides ("search_args.search_rounds") laid over it."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object: {{...}}.")
    if "pipeline_config" in content and "pretrained_model_name_or_path" not in content:
        raise UserError(f"{path} is the config of a comparison: give it with --compare.")
    if overrides.get("prompt") is not None and overrides.get("prompts") is not None:
        raise UserError("Give either --prompt or --set prompts=..., not both.")
    for dotted, value in overrides.items():
        _override(content, dotted, value)
    config = parse_config(content)
    beside = _beside_config(config.init_image, path)
    return config if beside is None else config.model_copy(update={"init_image": beside})


def _beside_config(picture: str | None, config: str) -> str | None:
    """The path from here of a picture that is found beside the config only."""
    folder = find_path(config)
    if picture is None or folder is None or find_path(picture) is not None:
        return None
    found = find_path(picture, folder.parent)
    return None if found is None else str(found)


def parse_config(content: Any) -> ExperimentConfig:
    """A config from its parsed JSON, or a `UserError` of one sentence."""
    try:
        return ExperimentConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(sentence(error, model=ExperimentConfig)) from error


def read_json(path: str) -> Any:
    """The JSON of a config file; what is wrong with it is said by line and column."""
    found = find_path(path)
    if found is not None and found.is_dir():
        inside = sorted(found.glob("*.json"), key=lambda file: (file.name != RUN_CONFIG, file.name))
        example = f", such as {Path(path, inside[0].name)}" if inside else ""
        raise UserError(f"'{path}' is a folder: name a config in it{example}.")
    if found is None or not found.is_file():
        folder = find_path("configs")
        known = [f"configs/{p.name}" for p in folder.glob("*.json")] if folder else []
        raise UserError(f"There is no config file '{path}': {did_you_mean(path, known)}")
    try:
        return json.loads(found.read_text(encoding="utf-8"), object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error.msg.removesuffix(' at')} at line {error.lineno},"
            f" column {error.colno}."
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: flatten it.") from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"The key '{key}' stands twice in the config: keep one.")
    return dict(pairs)


def _override(content: Any, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        content = content.setdefault(parent, {}) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise UserError(f"--set {dotted}: '{dotted.rpartition('.')[0]}' is not a part of keys.")
    content[last] = value
