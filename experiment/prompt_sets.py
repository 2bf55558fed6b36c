"""Prompt sets by name, and any dataset of the hub or of a folder.

Where each named set is kept, and how that is known, is in docs/prompt-sets.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiment.packages import refuse_missing
from experiment.prompt_tables import CATEGORY, Pair, Row, Table, read_table
from utils import UserError, find_path

FOLDER = "prompt_sets"  # below it lie the sets that are kept elsewhere than on the hub
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

Read = Callable[[Sequence[Path]], Iterator[Pair]]


@dataclass(frozen=True)
class HubFiles:
    """Files of a dataset repository on the hub; they are fetched once and kept in its cache."""

    repository: str
    patterns: tuple[str, ...]
    read: Read

    def command(self) -> str:
        """The command that fetches them."""
        wanted = " ".join(f'--include "{pattern}"' for pattern in self.patterns)
        return f"hf download {self.repository} --repo-type dataset {wanted}"

    def files(self, name: str) -> list[Path]:
        """The files, from the cache if all are there, else from the hub."""
        found = self._fetched(local=True) or self._fetched(local=False)
        if not found:
            raise _absent(name, self.command())
        return found

    def _fetched(self, *, local: bool) -> list[Path]:
        folder = _snapshot(self.repository, self.patterns, local=local)
        if folder is None:
            return []
        names = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
        each = [[p for n, p in names.items() if fnmatch(n, want)] for want in self.patterns]
        return [path for paths in each for path in paths] if all(each) else []


@dataclass(frozen=True)
class WebFiles:
    """Files behind addresses, fetched by hand into `prompt_sets/<set>/`.

    address: with the files' names in braces, as curl expands them. names: the files, in order.
    """

    address: str
    names: tuple[str, ...]
    read: Read

    def command(self, name: str) -> str:
        """The command that fetches them."""
        target = f"{FOLDER}/{name}/{self.names[0] if len(self.names) == 1 else '#1'}"
        return f'curl --fail --location --create-dirs --output "{target}" "{self.address}"'

    def files(self, name: str) -> list[Path]:
        found = [find_path(f"{FOLDER}/{name}/{file}") for file in self.names]
        paths = [path for path in found if path is not None]
        if len(paths) < len(self.names):
            raise _absent(name, self.command(name))
        return paths


@dataclass(frozen=True)
class Whole:
    """A dataset repository as `datasets` reads it, for sets whose files hold pictures too."""

    repository: str
    split: str
    column: str


def _tables(column: str, category: str = CATEGORY) -> Read:
    """Reads tables, one after the other."""

    def read(paths: Sequence[Path]) -> Iterator[Pair]:
        for path in paths:
            yield from read_table(path).prompts(column, category)

    return read


def _a_file_a_category(paths: Sequence[Path]) -> Iterator[Pair]:
    """Text files of prompts, each named by its category: color_val.txt."""
    for path in paths:
        for line in path.read_text(encoding="utf-8-sig").split("\n"):
            if line.strip():
                yield line.strip(), path.stem.removesuffix("_val")


def _with_skills(paths: Sequence[Path]) -> Iterator[Pair]:
    """GenAI-Bench: prompts by id in one file; in the other, ids by skill, of which `basic` and
    `advanced` part the prompts."""
    prompts, skills = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    level = {int(i): name for name in ("basic", "advanced") for i in skills[name]}
    for key, entry in prompts.items():
        yield entry["prompt"].strip(), level.get(int(key))


COMPOSITIONS = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial",
                "complex")  # fmt: skip

NAMED: dict[str, HubFiles | WebFiles | Whole] = {
    "drawbench": HubFiles(
        "sayakpaul/drawbench", ("DrawBench Prompts - Sheet1.csv",), _tables("Prompts")
    ),
    "geneval": WebFiles(
        "https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
        ("evaluation_metadata.jsonl",),
        _tables("prompt", "tag"),
    ),
    "t2i_compbench": WebFiles(
        "https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/"
        f"{{{','.join(f'{name}_val.txt' for name in COMPOSITIONS)}}}",
        tuple(f"{name}_val.txt" for name in COMPOSITIONS),
        _a_file_a_category,
    ),
    "parti": HubFiles("nateraw/parti-prompts", ("PartiPrompts.tsv",), _tables("Prompt")),
    "pick_a_pic": HubFiles(
        "yuvalkirstain/pickapic_v1_no_images", ("data/test_unique-*.parquet",), _tables("caption")
    ),
    "genai_bench": HubFiles(
        "BaiqiL/GenAI-Bench-1600", ("genai_image.json", "genai_skills.json"), _with_skills
    ),
    "open_image_preferences": Whole(
        "data-is-better-together/open-image-preferences-v1-binarized", "train", "prompt"
    ),
}


def named_set(name: str, column: str | None = None, split: str | None = None) -> Iterator[Pair]:
    """The prompts of a set in the table, in their own order."""
    kept = NAMED[name]
    if isinstance(kept, Whole):
        return hub_dataset(kept.repository, column or kept.column, split or kept.split)
    if column is not None or split is not None:
        raise UserError(
            f"The prompt set '{name}' has its column and split already: leave prompts_column and"
            " prompts_split unset."
        )
    return _sound(name, kept.read(kept.files(name)))


def _sound(name: str, pairs: Iterator[Pair]) -> Iterator[Pair]:
    """The pairs, or one sentence where the set's files are not what they should be."""
    try:
        yield from pairs
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The files of the prompt set '{name}' are not as expected ({error!r}): delete and"
            " fetch them again."
        ) from error


def hub_dataset(name: str, column: str | None, split: str | None) -> Iterator[Pair]:
    """The prompts of a hub dataset, or of a folder of data files; other columns are not read."""
    refuse_missing(f"The dataset '{name}'", "datasets")
    return _streamed(name, split).prompts(column)


def _streamed(name: str, split: str | None) -> Table:
    from datasets import load_dataset

    try:
        splits = load_dataset(name, streaming=True)
    except Exception as error:  # the hub's clients fail in many ways, all of them to the user
        folder = None if Path(name).is_dir() else _snapshot(name, None, local=True)
        if folder is None:
            raise _unreadable(name, error) from error
        try:
            splits = load_dataset(str(folder), streaming=True)
        except Exception as damage:
            raise _unreadable(name, damage) from damage
    chosen = splits[_split(name, split, list(splits))]
    features: Row = chosen.features or next(iter(chosen), {})
    textual = tuple(key for key, kind in features.items() if _holds_text(kind))

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        try:
            yield from chosen.select_columns(list(columns))
        except Exception as error:
            raise _unreadable(name, error) from error

    return Table(name, tuple(features), textual, rows)


def _split(name: str, wanted: str | None, there: list[str]) -> str:
    if wanted in there:
        return str(wanted)
    if wanted is None and (len(there) == 1 or "train" in there):
        return "train" if "train" in there else there[0]
    asked = "" if wanted is None else f" no split '{wanted}' but"
    raise UserError(
        f"The dataset '{name}' has{asked} {', '.join(there)}: set prompts_split to one of them."
    )


def _holds_text(kind: Any) -> bool:
    """Whether a feature, or a first row's value where the features are not known, is a text."""
    return isinstance(kind, str) or getattr(kind, "dtype", None) in ("string", "large_string")


def _snapshot(repository: str, patterns: Sequence[str] | None, *, local: bool) -> Path | None:
    """A dataset repository's files in the hub's cache; None where they cannot be had."""
    from huggingface_hub import snapshot_download

    wanted = None if patterns is None else list(patterns)
    try:
        return Path(
            snapshot_download(
                repository, repo_type="dataset", allow_patterns=wanted, local_files_only=local
            )
        )
    except Exception:  # offline, unknown, gated: the caller says what to do about it
        return None


def _absent(name: str, command: str) -> UserError:
    return UserError(f"The prompt set '{name}' is not on this machine: run {command}")


def _unreadable(name: str, error: Exception) -> UserError:
    if Path(name).is_dir():
        reason = " ".join(str(error).split()).rstrip(".")
        return UserError(f"The folder '{name}' cannot be read as a dataset: {reason}.")
    return UserError(
        f"The dataset '{name}' is neither on this machine nor to be had from the hub"
        f" ({type(error).__name__}): run hf download {name} --repo-type dataset"
    )
