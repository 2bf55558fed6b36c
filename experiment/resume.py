"""Which run to go on with, and whether it may be gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from experiment.config import ExperimentConfig, parse_config
from experiment.records import STATE, SUMMARY, read_object
from experiment.store import runs_of
from utils import UserError, path_part

# Where the weights are kept, which no image depends on: what a run that ran out of memory may set.
FREE = ("use_low_gpu_vram", "batch_size_for_img_gen", "engine_args.offload")
AUTO = ("engine_args.batch_size", "engine_args.vae")  # chosen as the run began
SAME = ("weights", "rubrics", "prompts_hash")  # of the manifest
LIKE = ("device", "packages", "threads", "git_revision")


def run_to_resume(config: ExperimentConfig, output_dir: str, resume: str) -> Path | None:
    """The run folder that was asked for; for "auto" the newest unfinished of this config, if any.

    Refuses a folder that holds no run, and a run of another config.
    """
    if resume == "auto":
        runs = runs_of(output_dir, config)
        folders = sorted(runs.iterdir(), key=_age, reverse=True) if runs.is_dir() else []
        return next((f for f in folders if _unfinished(f) and not _changes(f, config)), None)
    folder = Path(resume)
    if not _is_run(folder):
        raise UserError(f"There is no run in '{resume}': give the folder of one, or 'auto'.")
    _refuse_changed(folder, config)
    return folder


def run_named(config: ExperimentConfig, output_dir: str, name: str) -> Path | None:
    """The run of this name, if it has begun; refuses a run of another config."""
    if name != path_part(name):
        raise UserError(f"'{name}' cannot name a folder: use letters, digits, '.', '_', '+', '-'.")
    folder = runs_of(output_dir, config) / name
    if not _is_run(folder):
        return None
    _refuse_changed(folder, config)
    return folder


def _refuse_changed(folder: Path, config: ExperimentConfig) -> None:
    if changes := _changes(folder, config):
        raise UserError(
            f"{folder} is a run of another config: {'; '.join(changes)}. Start a new run, or take"
            f" its own config ({folder / 'config.json'})."
        )


def config_of_run(folder: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The run's own config; only where weights are kept is as asked for now."""
    whole = read_object(folder / "config.json")
    whole["use_low_gpu_vram"] = config.use_low_gpu_vram
    whole["ray_args"] = config.ray_args.model_dump(mode="json")
    whole["engine_args"]["offload"] = config.engine_args.offload
    return parse_config(whole)


def finished(folder: Path) -> bool:
    """Whether all prompts are done; a prompt that failed is not."""
    if not (folder / SUMMARY).exists():
        return False
    return not any("failed" in prompt for prompt in read_object(folder / SUMMARY)["prompts"])


def check_world(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """What differs from when the run began and may show in the last bits of its images; refuses
    other weights, questions or prompts."""
    path = folder / "manifest.json"
    if not path.exists():
        return []
    before = read_object(path)
    plain = json.loads(json.dumps(now))
    for key in SAME:
        if before.get(key) != plain.get(key):
            raise UserError(
                f"{folder} was begun with other {key.removesuffix('_hash')}: restore them, or"
                " start a new run."
            )
    return [key for key in LIKE if before.get(key) != plain.get(key)]


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _unfinished(folder: Path) -> bool:
    return _is_run(folder) and (not (folder / SUMMARY).exists() or (folder / STATE).exists())


def _age(folder: Path) -> tuple[str, int]:
    """Folders are named by their time, and numbered within a second; or else by the user."""
    named = re.fullmatch(r"(\d{8}_\d{6})(?:_(\d+))?", folder.name)
    if named is not None:
        return (named[1], int(named[2] or 0))
    config = folder / "config.json"
    began = config.stat().st_mtime if config.is_file() else 0.0
    return (datetime.fromtimestamp(began).strftime("%Y%m%d_%H%M%S"), 0)


def _changes(folder: Path, config: ExperimentConfig) -> list[str]:
    """Every key that was one thing and is another now."""
    before = dict(_flat(read_object(folder / "config.json")))
    now = dict(_flat(json.loads(json.dumps(config.resolved()))))
    if config.batch_size != "auto":
        now["engine_args.batch_size"] = config.batch_size
    keys = [k for k in sorted(before.keys() | now.keys()) if k not in FREE]
    return [
        f"{key} was {json.dumps(before.get(key))} and is {json.dumps(now.get(key))} now"
        for key in keys
        if before.get(key) != now.get(key) and not (key in AUTO and now.get(key) == "auto")
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
