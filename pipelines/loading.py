"""Load a diffusers pipeline from a folder or the hub: checks first, weights last."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import UserError, did_you_mean

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
            f" {_sentence(error)}"
        ) from error
    return index


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


def pipeline_class(checkpoint: str) -> Any:
    """The diffusers class that the checkpoint asks for; loads no weights."""
    from diffusers import DiffusionPipeline

    name = pipeline_index(checkpoint)["_class_name"]
    found = _diffusers_class(checkpoint, name, "Pipeline")
    if not issubclass(found, DiffusionPipeline):
        raise UserError(f"'{checkpoint}' asks for a {name}, which is no pipeline.")
    return found


def _diffusers_class(checkpoint: str, name: Any, kind: str) -> Any:
    """The class of this name in diffusers, if all that it needs is installed."""
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if found is None:
        known = [n for n in dir(diffusers) if n.endswith(kind)]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" (the nearest is {near[0]})" if near else ""
        raise UserError(f"'{checkpoint}' asks for a {name}, which diffusers does not have{hint}.")
    # In place of a class whose requirements are missing diffusers has a stand-in that lists them.
    missing = [b for b in getattr(found, "_backends", ()) if not importlib.util.find_spec(b)]
    if missing:
        raise UserError(f"'{checkpoint}' asks for a {name}: install {', '.join(missing)} first.")
    return found


def check_call_args(checkpoint: str, call_args: Mapping[str, Any]) -> None:
    """Refuse call arguments that the checkpoint's pipeline does not take; loads no weights."""
    asked = pipeline_class(checkpoint)
    accepted = inspect.signature(asked.__call__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return
    for argument in call_args:
        if argument not in accepted:
            raise UserError(
                f"{asked.__name__} takes no call argument '{argument}':"
                f" {did_you_mean(argument, set(accepted) - {'self', *RESERVED})}"
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
            f"The scheduler of '{checkpoint}' cannot be loaded: {_sentence(error)}"
        ) from error
    return replaced_scheduler(own, wanted)


def replaced_scheduler(own: Any, wanted: Mapping[str, Any] | None) -> Any:
    """The scheduler that the config names, with the checkpoint's settings where it names none."""
    if wanted is None:
        return own
    options = dict(wanted)
    scheduler_class = _diffusers_class("The config", options.pop("_class_name", None), "Scheduler")
    known = set(inspect.signature(scheduler_class.__init__).parameters) - {"self"}
    for option in options:
        if option not in known:
            raise UserError(
                f"{scheduler_class.__name__} has no option '{option}':"
                f" {did_you_mean(option, known)}"
            )
    return scheduler_class.from_config(own.config, **options)


def choose_device(wanted: str) -> str:
    """The device named, or for "auto" the best there is."""
    import torch

    if wanted != "auto":
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError, ImportError) as error:
            raise UserError(
                f"There is no device '{wanted}' here: set engine_args.device to 'cpu'."
            ) from error
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_pipeline(
    checkpoint: str,
    dtype: str,
    device: str,
    *,
    scheduler: Mapping[str, Any] | None = None,
    low_memory: bool = False,
) -> Any:
    """The pipeline with its weights, on its device.

    scheduler: class and options of one to replace the checkpoint's. low_memory: each component
    waits on the CPU while it is not in use.
    """
    import torch
    from diffusers import DiffusionPipeline

    hush()
    torch_dtype = getattr(torch, DTYPES[dtype])
    try:
        pipe = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch_dtype)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The checkpoint '{checkpoint}' cannot be loaded: {_sentence(error)}"
        ) from error
    if scheduler is not None:
        pipe.register_modules(scheduler=replaced_scheduler(pipe.scheduler, scheduler))
    if low_memory and device != "cpu":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def hush() -> None:
    """Keep the libraries to their warnings, and their loading bars to terminals."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
