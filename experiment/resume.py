"""Which run to go on with, and whether it may be gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from experiment.config import ExperimentConfig, parse_config
from experiment.records import SUMMARY, read_object
from experiment.store import runs_of
from utils import UserError, digest, path_part

CONFIG = "config.json"
CONFIG_HASH = "config_hash"  # of the manifest
# What no image depends on; where the weights are kept a run out of memory may have to change.
FREE = (
    "use_low_gpu_vram",
    "batch_size_for_img_gen",
    "engine_args.offload",
    "engine_args.prompts_at_once",
)
# Chosen as the run began.
AUTO = (
    "engine_args.attention",
    "engine_args.batch_size",
    "engine_args.compile",
    "engine_args.vae",
)
SAME = ("weights", "rubrics", "prompts_hash")  # of the manifest
CODE = "git_revision"
LIKE = ("device", "verifier_device", "packages", "threads", CODE)


def run_to_resume(config: ExperimentConfig, output_dir: str, resume: str) -> Path | None:
    """The run folder that was asked for; for "auto" the newest of this config, if any.

    Refuses a folder that holds no run, and a run of another config.
    """
    if resume == "auto":
        runs = runs_of(output_dir, config)
        folders = sorted(runs.iterdir(), key=_age, reverse=True) if runs.is_dir() else []
        return next((f for f in folders if _is_run(f) and not _changes(f, config)), None)
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
            f" its own config ({folder / CONFIG})."
        )


def config_of_run(folder: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The run's own config; only where weights are kept is as asked for now.

    Refuses one that has been changed since the run began.
    """
    whole = read_object(folder / CONFIG)
    before = _manifest(folder).get(CONFIG_HASH)
    if before not in (None, config_hash(folder)):
        raise UserError(f"{folder / CONFIG} has been changed: restore it, or start a new run.")
    own = parse_config(as_begun(whole))
    now = config.engine_args
    free = {"offload": now.offload, "prompts_at_once": now.prompts_at_once}
    engine = own.engine_args.model_copy(update=free)
    return own.model_copy(
        update={
            "use_low_gpu_vram": config.use_low_gpu_vram,
            "engine_args": engine,
            "ray_args": config.ray_args,
        }
    )


def as_begun(content: dict[str, Any]) -> dict[str, Any]:
    """A run's config; from before there was a choice, with the attention that there was."""
    content.setdefault("engine_args", {}).setdefault("attention", "default")
    return content


def config_hash(folder: Path) -> str:
    """Of what the run's config says."""
    return digest(json.dumps(read_object(folder / CONFIG), sort_keys=True))


def finished(folder: Path) -> bool:
    """Whether all prompts are done; a prompt that failed is not."""
    path = folder / SUMMARY
    if not path.exists():
        return False
    try:
        return not any("failed" in prompt for prompt in read_object(path)["prompts"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run's summary: mend it, or move it away.") from error


def check_world(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """What differs from when the run began and may show in the last bits of its images; refuses
    other weights, questions or prompts."""
    before = _manifest(folder)
    if not before:
        return []
    plain = json.loads(json.dumps(now))
    for key in SAME:
        if before.get(key) != plain.get(key):
            raise UserError(
                f"{folder} was begun with other {key.removesuffix('_hash')}: restore them, or"
                " start a new run."
            )
    return [key for key in LIKE if before.get(key) != plain.get(key)]


def told_of(others: Sequence[str]) -> str:
    """What differs, as it is said."""
    text = f"Other {', '.join(others)} than before: images may differ in their last bits."
    if CODE in others:
        text += " If a search has changed since, prompts from here on go by its new form."
    return text


def _manifest(folder: Path) -> dict[str, Any]:
    """What was noted as the run began; empty if it was not yet."""
    path = folder / "manifest.json"
    return read_object(path) if path.exists() else {}


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _age(folder: Path) -> tuple[str, int]:
    """Folders are named by their time, and numbered within a second; or else by the user."""
    named = re.fullmatch(r"(\d{8}_\d{6})(?:_(\d+))?", folder.name)
    if named is not None:
        return (named[1], int(named[2] or 0))
    config = folder / CONFIG
    began = config.stat().st_mtime if config.is_file() else 0.0
    return (datetime.fromtimestamp(began).strftime("%Y%m%d_%H%M%S"), 0)


def _changes(folder: Path, config: ExperimentConfig) -> list[str]:
    """Every key that was one thing and is another now."""
    before = dict(_flat(completed(as_begun(read_object(folder / CONFIG)))))
    now = dict(_flat(plain(config)))
    if config.batch_size != "auto":
        now["engine_args.batch_size"] = config.batch_size
    keys = [k for k in sorted(before.keys() | now.keys()) if k not in FREE]
    return [
        f"{key} was {json.dumps(before.get(key))} and is {json.dumps(now.get(key))} now"
        for key in keys
        if before.get(key) != now.get(key) and not (key in AUTO and now.get(key) == "auto")
    ]


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with what versions since have added, at its default: it means the same."""
    try:
        return plain(parse_config(saved))
    except UserError:
        return saved  # which differs, then


def plain(config: ExperimentConfig) -> dict[str, Any]:
    """The resolved config as it is read back from its file."""
    content: dict[str, Any] = json.loads(json.dumps(config.resolved()))
    return content


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
