"""Load a diffusers pipeline from a folder or the hub: checks first, weights last."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipelines.parts import kind_of, models_of
from pipelines.quantization import loading_arguments, store_in_fp8
from utils import UserError, did_you_mean, imported

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

RESERVED = {
    "prompt": "give it with --prompt or 'prompts'",
    "generator": "set 'seed' instead",
    "latents": "the search chooses them",
    "output_type": "images are always written as PNG, videos as MP4",
    "return_dict": "it is always set",
    "num_images_per_prompt": "the search sets the size of the pool",
    "num_videos_per_prompt": "the search sets the size of the pool",
}


def refuse_reserved(call_args: Mapping[str, Any]) -> None:
    """Refuse the call arguments that the search itself sets."""
    for name in call_args:
        if name in RESERVED:
            raise UserError(f"'{name}' cannot stand in pipeline_call_args: {RESERVED[name]}.")


def local_folder(checkpoint: str) -> str | None:
    """The folder of the checkpoint's files: itself, or what the hub's cache holds of it."""
    if Path(checkpoint).is_dir():
        return checkpoint
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(checkpoint, "model_index.json")
    except HFValidationError:
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def pipeline_index(checkpoint: str) -> dict[str, Any]:
    """The checkpoint's `model_index.json`, from its folder or, if need be, from the hub."""
    if Path(checkpoint).is_dir():
        return _local_index(Path(checkpoint))
    from diffusers import DiffusionPipeline

    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(checkpoint)
    except OSError as error:
        raise UserError(
            f"The checkpoint '{checkpoint}' is neither a folder here nor to be had from the hub:"
            f" {_why_not(checkpoint, error)}"
        ) from error
    return index


def _why_not(checkpoint: str, error: BaseException) -> str:
    """Why a checkpoint could not be fetched, and the remedy, as the end of a sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"it is gated, so accept its licence at {constants.ENDPOINT}/{checkpoint} and log in"
            " with `hf auth login`."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "check its name, or, if it is private, log in with `hf auth login`."
    if constants.HF_HUB_OFFLINE and not Path(checkpoint).is_dir():
        return (
            "HF_HUB_OFFLINE is set and the cache does not hold it, so unset that, or fetch it"
            f" where there is a network with `hf download {checkpoint}`."
        )
    unreached = (LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if any(isinstance(cause, unreached) for cause in causes) and not Path(checkpoint).is_dir():
        return (
            f"the hub at {constants.ENDPOINT} cannot be reached"
            f" ({_sentence(causes[-1]).removesuffix('.')}), so try again with a network, or fetch"
            f" it where there is one with `hf download {checkpoint}`."
        )
    return _sentence(error)


def _sentence(error: BaseException) -> str:
    """The first line of a library's message, as the end of a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:") + "."


def _local_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise UserError(f"'{folder}' holds no diffusers pipeline: it has no model_index.json.")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno})."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid JSON: it is no UTF-8 text.") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise UserError(f"{path} names no pipeline: it has no '_class_name'.")
    return index


def pipeline_class(checkpoint: str, own: str | None = None) -> Any:
    """The diffusers class that the checkpoint asks for, or the user's `own` in its place, at
    "package.module:Class"; loads no weights."""
    from diffusers import DiffusionPipeline

    name = pipeline_index(checkpoint)["_class_name"]
    who, hint = f"'{checkpoint}'", ", or name your own class in 'pipeline_class'"
    if own is not None:
        if ":" not in own:
            raise UserError(
                f"There is no pipeline_class '{own}': give the path of your own class,"
                " 'package.module:Class'."
            )
        who, name, found = "The config", own, imported("pipeline_class", own, own)
    else:
        found = _diffusers_class(checkpoint, name, "Pipeline", hint)
    if not (inspect.isclass(found) and issubclass(found, DiffusionPipeline)):
        raise UserError(f"{who} asks for a {name}, which is no pipeline.")
    return found


def _diffusers_class(checkpoint: str, name: Any, kind: str, otherwise: str = "") -> Any:
    """The class of this name in diffusers, if all that it needs is installed."""
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if found is None:
        known = [n for n in dir(diffusers) if n.endswith(kind)]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" (the nearest is {near[0]})" if near else ""
        raise UserError(
            f"'{checkpoint}' asks for a {name}, which diffusers does not have{hint}{otherwise}."
        )
    # In place of a class whose requirements are missing diffusers has a stand-in that lists them.
    missing = [b for b in getattr(found, "_backends", ()) if not importlib.util.find_spec(b)]
    if missing:
        raise UserError(f"'{checkpoint}' asks for a {name}: install {', '.join(missing)} first.")
    return found


def denoiser_configs(checkpoint: str) -> list[dict[str, Any]]:
    """The configs of the checkpoint's denoisers; an empty one where it cannot be had alone."""
    from diffusers import ModelMixin

    parts = {n: p for n, p in pipeline_index(checkpoint).items() if _is_component(p)}
    found = {name: _component_class(*part) for name, part in parts.items()}
    return [
        _component_config(build, checkpoint, name)
        for name, build in found.items()
        if inspect.isclass(build) and issubclass(build, ModelMixin) and not hasattr(build, "decode")
    ]


def _is_component(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and all(isinstance(p, str) for p in part)


def _component_class(library: str, name: str) -> Any:
    """A component's class as model_index.json names it; None where it is not installed."""
    try:
        return getattr(importlib.import_module(library), name, None)
    except ImportError:
        return None


def _component_config(build: Any, checkpoint: str, name: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = build.load_config(checkpoint, subfolder=name)
    except OSError:  # what is wrong with the checkpoint is said when it is loaded
        return {}
    return config


def check_call_args(
    checkpoint: str, call_args: Mapping[str, Any], build: Any | None = None
) -> None:
    """Refuse call arguments that the checkpoint's pipeline, or `build` in its place, does not
    take; loads no weights."""
    asked = build or pipeline_class(checkpoint)
    accepted = inspect.signature(asked.__call__).parameters
    named = {name for name, p in accepted.items() if p.kind is not p.VAR_KEYWORD}
    # diffusers' own calls take any others only to say that they are given up, or in silence.
    if named != set(accepted) and not asked.__call__.__module__.startswith("diffusers."):
        return
    refuse_strangers(asked.__name__, call_args, named)


def refuse_strangers(pipeline: str, call_args: Mapping[str, Any], named: Collection[str]) -> None:
    """Refuse call arguments that are not among those the pipeline names."""
    for argument in call_args:
        if argument not in named:
            known = set(named) - {"self", *RESERVED}
            raise UserError(
                f"{pipeline} takes no call argument '{argument}': {did_you_mean(argument, known)}"
            )


def local_steps(
    checkpoint: str, inference_steps: int, wanted: Mapping[str, Any] | None = None
) -> int | None:
    """Scheduler steps of a run, if the checkpoint's own files are here to tell; loads no weights.

    Most schedulers take one for each inference step, some more (PNDM, Heun).
    """
    folder = Path(checkpoint) / "scheduler"
    if not (folder / "scheduler_config.json").is_file():
        return None
    from pipelines.schedule import set_steps

    scheduler = load_scheduler(str(checkpoint), wanted)
    try:
        set_steps(scheduler, inference_steps)
    except Exception:  # a scheduler that only its pipeline knows how to set
        return None
    return len(scheduler.timesteps)


def load_scheduler(checkpoint: str, wanted: Mapping[str, Any] | None = None) -> Any:
    """The checkpoint's scheduler alone, or the one wanted in its place."""
    named = pipeline_index(checkpoint).get("scheduler")
    if not isinstance(named, list) or len(named) != 2 or named[1] is None:
        raise UserError(f"'{checkpoint}' has no scheduler in its model_index.json.")
    scheduler_class = _diffusers_class(checkpoint, named[1], "Scheduler")
    try:
        own = scheduler_class.from_pretrained(checkpoint, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise UserError(
            f"The scheduler of '{checkpoint}' cannot be loaded: {_why_not(checkpoint, error)}"
        ) from error
    return replaced_scheduler(own, wanted)


def replaced_scheduler(own: Any, wanted: Mapping[str, Any] | None) -> Any:
    """The scheduler that the config names, with the checkpoint's settings where it names none."""
    if wanted is None:
        return own
    from diffusers import SchedulerMixin

    options = dict(wanted)
    name = options.pop("_class_name", None)
    scheduler_class = _diffusers_class("The config", name, "Scheduler")
    if SchedulerMixin not in getattr(scheduler_class, "__mro__", ()):
        raise UserError(f"The config's scheduler, {name}, is none: name one, like DDIMScheduler.")
    known = set(inspect.signature(scheduler_class.__init__).parameters) - {"self"}
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option '{option}': {did_you_mean(option, known)}")
    try:
        made = scheduler_class.from_config(own.config, **options)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot be set up as the config says: {_sentence(error)}"
        ) from error
    _refuse_other_kind(own, made)
    return made


def _refuse_other_kind(own: Any, made: Any) -> None:
    """Refuse a scheduler whose way from noise to image is not the one that the model has learned:
    it would run, and make noise."""
    from pipelines.schedule import is_straight

    straight, name = is_straight(own), type(made).__name__
    if straight is None or is_straight(made) in (None, straight):
        return
    flow, noise = "for flow models", "for models that predict noise"
    flags = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    can_flow = flags.keys() <= inspect.signature(type(made).__init__).parameters.keys()
    example = "FlowMatchEulerDiscreteScheduler" if straight else "EulerDiscreteScheduler"
    remedy = f"name one like {example}"
    if straight and can_flow:
        remedy = f"add {json.dumps(flags)[1:-1]} to it"
    raise UserError(
        f"The config's scheduler, {name}, is set up {noise if straight else flow}, and the"
        f" checkpoint's, {type(own).__name__}, {flow if straight else noise}: {remedy}, or leave"
        " 'scheduler' out."
    )


def choose_device(wanted: str, key: str = "device") -> str:
    """The device named, or for "auto" the best there is; `key` of engine_args names it."""
    import torch

    if wanted != "auto":
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError, ImportError) as error:
            raise UserError(
                f"There is no device '{wanted}' here: set engine_args.{key} to 'cpu'."
            ) from error
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_dtype(dtype: str, device: str) -> None:
    """Refuse a number format that the device has no arithmetic for."""
    import torch

    cuda = torch.device(device).type == "cuda"
    if dtype == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            "This GPU computes in bf16 only by emulation, many times slower: set torch_dtype to"
            " fp16, or to fp32."
        )
    try:
        one = torch.ones(1, 1, device=device, dtype=getattr(torch, DTYPES[dtype]))
        torch.nn.functional.conv1d(one[None] @ one[None], one[None])
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"The device '{device}' cannot compute in {dtype}: set torch_dtype to fp32."
        ) from error


def load_pipeline(
    checkpoint: str,
    dtype: str,
    device: str | None,
    *,
    build: Any | None = None,
    scheduler: Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> Any:
    """The pipeline with its weights, on its device; for None where reading has left them.

    build: the pipeline's class, where it is not the checkpoint's own. scheduler: class and options
    of one to replace the checkpoint's. quantization: of its denoisers.
    """
    import torch
    from diffusers import DiffusionPipeline

    hush()
    torch_dtype = getattr(torch, DTYPES[dtype])
    try:
        pipe = (build or DiffusionPipeline).from_pretrained(
            checkpoint, dtype=torch_dtype, **_quantized(checkpoint, quantization, torch_dtype)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The checkpoint '{checkpoint}' cannot be loaded: {_why_not(checkpoint, error)}"
        ) from error
    if scheduler is not None:
        pipe.register_modules(scheduler=replaced_scheduler(pipe.scheduler, scheduler))
    if quantization == "fp8":
        store_in_fp8(pipe, torch_dtype)
    return pipe if device is None else pipe.to(device)


def _quantized(checkpoint: str, quantization: str | None, dtype: Any) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantise the checkpoint's denoisers."""
    if quantization is None:
        return {}
    models = models_of(pipeline_index(checkpoint))
    denoisers = [name for name, model in models if kind_of(model) == "denoiser"]
    return loading_arguments(quantization, denoisers, dtype)


def only_deterministic(wanted: bool) -> None:
    """Keep torch to algorithms that give the same bits each time, or let it choose again.

    An operation that has none such raises torch's own error, which names it.
    """
    import torch

    if wanted:  # cuBLAS reads this when it starts (CUDA's documentation on reproducibility)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


def hush() -> None:
    """Keep the libraries to their warnings, and their loading bars to terminals."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
