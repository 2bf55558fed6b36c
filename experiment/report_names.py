"""What runs are called: by the least that tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from experiment.report_run import Run

MOST_PARTS = 3  # of a name that is made of settings
SETTINGS: Mapping[tuple[str, ...], str] = {  # in the order in which they are looked at
    ("search_args", "search_method"): "{}",
    ("pretrained_model_name_or_path",): "{}",
    ("verifier_args", "name"): "{}",
    ("verifier_args", "choice_of_metric"): "{}",
    ("verifier_args", "model_name"): "{}",
    ("budget", "nfe"): "{} NFE",
    ("pipeline_call_args", "num_inference_steps"): "{} steps",
    ("seed",): "seed {}",
}


def setting(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """A plain value of a config, by the way to it; empty where it has none."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, str | int | float) else ""


def names(runs: Sequence[Run]) -> list[str]:
    """A name each, all different: method, other settings, folder, or parts of its path."""
    methods = [setting(run.config, ("search_args", "search_method")) for run in runs]
    folders = [run.folder.resolve() for run in runs]
    for found in (
        [method or folder.name for method, folder in zip(methods, folders, strict=True)],
        *_by_settings([run.config for run in runs]),
        [folder.name for folder in folders],
        [f"{m} {f.name}".strip() for m, f in zip(methods, folders, strict=True)],
        _own_parts(folders),
    ):
        if len(set(found)) == len(runs) and all(found):
            return found
    return list(map(str, folders))


def _by_settings(configs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Names of one setting, then of two, and so on, from those in which the runs differ."""
    columns = [
        column
        for keys, form in (*SETTINGS.items(), *_options(configs))
        if len(set(column := [_said(config, keys, form) for config in configs])) > 1
    ]
    for size in range(1, MOST_PARTS + 1):
        for chosen in combinations(columns, size):
            yield [" ".join(filter(None, parts)) for parts in zip(*chosen, strict=True)]


def _options(configs: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, str], str]]:
    """The searches' own options."""
    searches = [config.get("search_args") for config in configs]
    keys = dict.fromkeys(key for each in searches if isinstance(each, Mapping) for key in each)
    return [(("search_args", str(key)), f"{key} {{}}") for key in keys if key != "search_method"]


def _said(config: Mapping[str, Any], keys: Sequence[str], form: str) -> str:
    value = setting(config, keys)
    if keys == ("pretrained_model_name_or_path",):
        value = value.rstrip("/").rsplit("/", 1)[-1]
    return form.replace("{}", value) if value else ""


def _own_parts(folders: Sequence[Path]) -> list[str]:
    """Of each path the parts that not all have."""
    shared = set.intersection(*(set(folder.parts) for folder in folders))
    return ["/".join(part for part in folder.parts if part not in shared) for folder in folders]
