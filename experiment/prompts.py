"""The prompts of a run: from a flag, or one a line from a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from experiment.config import DEFAULT_NUM_PROMPTS, DEFAULT_PROMPT_FILE, ExperimentConfig
from utils import UserError, find_path, prompt_stem


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
    path = find_path(name)
    if path is None or not path.is_file():
        given = "" if config.prompts else " and 'prompts' is not set in the config"
        raise UserError(f"There is no prompt file '{name}'{given}: give --prompt or a text file.")
    texts = read_prompts(path)
    if not texts:
        raise UserError(f"The prompt file '{name}' holds no prompt: write one a line.")
    wanted = DEFAULT_NUM_PROMPTS if config.num_prompts is None else config.num_prompts
    return listed(texts if wanted == "all" else texts[: int(wanted)])


def read_prompts(path: Path) -> list[tuple[str, str | None]]:
    """Prompts, one a line, each with the category that may stand behind a tab."""
    try:
        # Not splitlines(): a prompt may hold U+2028, which is no end of a line in a file.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompt file '{path}' cannot be read as UTF-8: {error}.") from error
    pairs = [line.partition("\t") for line in lines if line.partition("\t")[0].strip()]
    return [(text.strip(), category.strip() or None) for text, _, category in pairs]


def listed(texts: list[tuple[str, str | None]]) -> list[Prompt]:
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
