"""The prompts of a run: from a flag, a file, a set by its name, or a dataset."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from experiment.config import DEFAULT_NUM_PROMPTS, DEFAULT_PROMPT_FILE, ExperimentConfig
from experiment.prompt_sets import HUB_ID, NAMED, hub_dataset, named_set
from experiment.prompt_tables import READERS, Pair, read_table
from utils import UserError, did_you_mean, find_path, prompt_stem


@dataclass(frozen=True)
class Prompt:
    """One prompt to search for.

    index: in the run's list. occurrence: how often the same text stood before it. stem: the first
    part of its files' names, shared with no other prompt of the run.
    """

    text: str
    index: int
    occurrence: int
    stem: str
    category: str | None = None


def load_prompts(config: ExperimentConfig) -> list[Prompt]:
    """The run's prompts, in order; raises `UserError` where there are none."""
    if config.prompt is not None:
        return listed([(config.prompt, None)])
    name = config.prompts or DEFAULT_PROMPT_FILE
    wanted = DEFAULT_NUM_PROMPTS if config.num_prompts is None else config.num_prompts
    found = list(islice(_pairs(name, config), None if wanted == "all" else int(wanted)))
    if not found:
        raise UserError(f"The prompt file '{name}' holds no prompt: write one a line.")
    if isinstance(config.num_prompts, int) and len(found) < config.num_prompts:
        _say_once(
            f"num_prompts is {config.num_prompts}, but '{name}' holds {len(found)}: all of them"
            " are taken."
        )
    return listed(found)


@cache
def _say_once(line: str) -> None:
    """Tell the user; a comparison reads the same prompts for each of its runs."""
    print(line, file=sys.stderr)


def _pairs(name: str, config: ExperimentConfig) -> Iterator[Pair]:
    """Prompts and categories of what the name stands for, read as far as they are asked for."""
    column, split = config.prompts_column, config.prompts_split
    path = find_path(name)
    if path is not None and path.is_file():
        if split is not None:
            raise UserError(f"'{name}' is a file, which has no splits: leave prompts_split unset.")
        return prompts_of_file(path, column)
    if name in NAMED:
        return named_set(name, column, split)
    if path is not None:
        return hub_dataset(str(path), column, split)
    known = _suffix(name) in (".txt", *READERS)
    if HUB_ID.fullmatch(name) and not known:
        return hub_dataset(name, column, split)
    raise UserError(_no_file(name, config))


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def prompts_of_file(path: Path, column: str | None) -> Iterator[Pair]:
    """A file's prompts and their categories, by its kind."""
    if _suffix(path.name) in READERS:
        return read_table(path).prompts(column)
    if column is not None:
        raise UserError(
            f"'{path}' is read as one prompt a line, without columns: leave prompts_column unset,"
            f" or name the file {', '.join(READERS)} after what it is."
        )
    return iter(read_prompts(path))


def _no_file(name: str, config: ExperimentConfig) -> str:
    if config.prompts is None:
        return (
            f"There is no prompt file '{name}' and 'prompts' is not set in the config: give"
            " --prompt or a text file, or --set prompts=open_image_preferences, from which that"
            " file was made."
        )
    near = did_you_mean(name, NAMED)
    return (
        f"There is no prompt file '{name}': give --prompt, a text file, a hub dataset's id, or a"
        f" set by its name ({near.rstrip('.?')})."
    )


def read_prompts(path: Path) -> list[Pair]:
    """Prompts, one a line, each with the category that may stand behind a tab."""
    try:
        # Not splitlines(): a prompt may hold U+2028, which is no end of a line in a file.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompt file '{path}' cannot be read as UTF-8: {error}.") from error
    pairs = [line.partition("\t") for line in lines if line.partition("\t")[0].strip()]
    return [(text.strip(), category.strip() or None) for text, _, category in pairs]


def listed(texts: Iterable[Pair]) -> list[Prompt]:
    """Prompts with their numbers; equal texts, and texts whose digests meet, get stems apart."""
    seen: Counter[str] = Counter()
    stems: set[str] = set()
    prompts = []
    for index, (text, category) in enumerate(texts):
        occurrence = seen[text]
        seen[text] += 1
        digits = 8
        while (stem := prompt_stem(text, occurrence, digits)).lower() in stems:
            digits += 8  # 32 bits of a digest can meet by chance
        stems.add(stem.lower())
        prompts.append(Prompt(text, index, occurrence, stem, category))
    return prompts


def grouped(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    """The prompts, so many in a row at a time; the last may be fewer."""
    return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]
