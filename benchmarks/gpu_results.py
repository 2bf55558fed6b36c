"""What `benchmarks.gpu` measured: one JSON file a pipeline, written part by part, and its bars."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, figure
from utils import UserError, write_atomically

PREFIX = "gpu_"
SECONDS_EXACT, SECONDS_FP8 = {"flux.1-dev": 6.9}, {"flux.1-dev": 4.5}
TIMES_AS_FAST = {"sd1.5": 8.0, "sdxl": 2.5, "pixart-sigma": 1.15}  # as one image at a time
BUSY = 0.97
RECOMPILATIONS = 2
OFF = 0.05  # of the plan's estimate of memory
EXACT = ("compiled", "eager")  # our runs whose images are exact; the first of them counts

Found = Mapping[str, Any]
"""A pipeline's results: its name, whether it is a small one, and `parts` by name."""


class Record:
    """A pipeline's file: earlier parts stay, and each is on disk as soon as it is measured."""

    def __init__(self, folder: Path, name: str, tiny: bool) -> None:
        self.path = folder / f"{PREFIX}{name}.json"
        self.found: dict[str, Any] = {"pipeline": name, "tiny": tiny, "parts": {}}
        if self.path.exists() and (earlier := read(self.path))["tiny"] == tiny:
            self.found = earlier

    def add(self, part: str, measured: Mapping[str, Any]) -> None:
        self.found["parts"][part] = {
            **measured, **ratio(self.found["parts"], part, measured)
        }  # fmt: skip
        write_atomically(self.path, (json.dumps(self.found, indent=2) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: remove it, or give another folder.") from error
    if not (isinstance(found, dict) and {"pipeline", "tiny", "parts"} <= found.keys()):
        raise UserError(f"{path} holds no results of benchmarks.gpu: remove it.")
    return found


def read_all(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Results by pipeline, from files and whole folders; parts of later paths go before."""
    together: dict[str, dict[str, Any]] = {}
    for path in paths:
        files = sorted(path.rglob(f"{PREFIX}*.json")) if path.is_dir() else [path]
        for file in files:
            found = read(file)
            known = together.setdefault(found["pipeline"], found)
            if known["tiny"] != found["tiny"]:
                raise UserError(f"{file} is of another size of models: read it apart.")
            known["parts"] |= found["parts"]
    return together


def ratio(parts: Found, part: str, measured: Found) -> dict[str, float]:
    """How many times as fast as one image at a time, where both are known."""
    plain = parts.get("plain", {}).get("seconds_an_image")
    own = measured.get("seconds_an_image")
    if part not in ("eager", "compiled", "batched", "elsewhere", "judged") or not (plain and own):
        return {}
    return {"times_as_fast": plain / own}


def bars(found: Found) -> Iterator[Figure]:
    """A pipeline's figures, most of them held against a bar, as far as they are measured."""
    name, parts = found["pipeline"], found["parts"]
    way = next((way for way in EXACT if measured(parts, way)), None)
    if way is not None:
        yield from _exact(name, way, parts)
    if measured(parts, "batched"):
        other = parts["batched"]
        what = f"{name}, exact, {other['batch_size']} at a time"
        yield figure(what, "s an image", [other["seconds_an_image"]], note=other["way"])
    if measured(parts, "fp8") and name in SECONDS_FP8:
        each = parts["fp8"]["seconds_an_image"]
        yield figure(f"{name}, fp8 drafts", "s an image", [each], bar=SECONDS_FP8[name])
    if measured(parts, "judged"):
        judged = parts["judged"]
        yield figure(
            f"{name}, busy under Qwen and PNGs", "of the time", [judged["busy_share"]],
            bar=BUSY, side="least", note=judged["way"],
        )  # fmt: skip
    made = parts.get("graphs", {})
    if "recompilations" in made:
        yield figure(
            f"{name}, recompilations", "graphs", [made["recompilations"]], bar=RECOMPILATIONS,
            note=f"{made['graphs']} graphs in all",
        )  # fmt: skip


def _exact(name: str, way: str, parts: Found) -> Iterator[Figure]:
    """Of our run, in the first of the ways that was measured."""
    exact = parts[way]
    each = exact["seconds_an_image"]
    if name in SECONDS_EXACT:
        most = SECONDS_EXACT[name]
        yield figure(f"{name}, exact", "s an image", [each], bar=most, note=way)
    if measured(parts, "plain"):
        times, bar = parts["plain"]["seconds_an_image"] / each, TIMES_AS_FAST.get(name)
        yield figure(
            f"{name}, as fast as one at a time", "x", [times], bar=bar, side="least", note=way
        )
    if "peak_gb" in exact:
        off = exact["peak_gb"] / exact["expected_peak_gb"] - 1
        yield figure(
            f"{name}, peak of memory off the plan's", "of it", [abs(off)], bar=OFF,
            note=f"{exact['peak_gb']:.1f} GB, expected {exact['expected_peak_gb']:.1f}, {way}",
        )  # fmt: skip


def measured(parts: Found, part: str) -> bool:
    return "seconds_an_image" in parts.get(part, {})
