"""Pictures that were made again: where they go, and whether they are what was recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from experiment.config import ExperimentConfig
from experiment.prompts import Prompt
from experiment.store import RunStore
from utils import digest, significant

FOLDER = "replay"
LONGEST = 80  # characters of a folder that is named after changes


@dataclass(frozen=True)
class Replayed:
    """A candidate made again: its picture's path, and whether it equals the recorded one.

    same: None where there is none to compare with. score: the recorded one. changed: the run's
    arguments were, so that neither is this picture's.
    """

    path: Path
    same: bool | None
    score: float
    changed: bool

    def __str__(self) -> str:
        if self.changed:
            return f"{self.path}: another image from the recorded noise"
        verdict = {
            True: "every pixel as recorded",
            False: "not the recorded pixels: another device, version or thread count, or damage?",
            None: "no picture of it was kept to compare with",
        }[self.same]
        return f"{self.path}: {verdict} (score then {significant(self.score)})"


def kept(
    folder: Path,
    config: ExperimentConfig,
    prompt: Prompt,
    row: Mapping[str, Any],
    media: Any,
    overrides: Mapping[str, Any],
) -> Replayed:
    """Write the picture below the run and compare it with the recorded one."""
    place = folder / FOLDER / part(row, overrides)
    place.mkdir(parents=True, exist_ok=True)
    store = RunStore(place, config.export)
    path = place / store.write_media(prompt, row["round"], row["seed"], media)
    recorded = row["path"] and folder / row["path"]
    same = None
    if not overrides and recorded and recorded.is_file():
        same = _equal(path, recorded)
    score = float("nan") if row["score"] is None else row["score"]
    return Replayed(path, same, score, bool(overrides))


def part(row: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """The folder of pictures of one kind, for a candidate has one name in all of them."""
    if overrides:
        changes = [f"{name.partition('.')[2]}={json.dumps(overrides[name])}" for name in overrides]
        text = ",".join(sorted(changes))
        plain = re.sub(r"[^a-zA-Z0-9.,=+-]+", "_", text)[:LONGEST]
        # Shortened or mended, two changes could look alike.
        return plain if plain == text else f"{plain}_{digest(text)[:8]}"
    if row["draft"]:
        return f"draft_{row['step']}_of_{row['steps']}"
    return "" if row["step"] == row["steps"] else f"step_{row['step']}"


def _equal(one: Path, other: Path) -> bool:
    if one.suffix != ".png":  # the same frames are encoded to the same bytes
        return one.read_bytes() == other.read_bytes()
    try:
        with Image.open(one) as a, Image.open(other) as b:
            return a.size == b.size and ImageChops.difference(a, b).getbbox() is None
    except (OSError, ValueError, SyntaxError):  # Pillow's word for a broken PNG is SyntaxError
        return False
