"""A measured figure: its repeats, their median and spread, and the bar that it is held against."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from experiment.manifest import device_name, git_revision

NAME, NUMBER = 62, 9


@dataclass(frozen=True)
class Figure:
    """One figure over its repeats.

    bar: the value that it should not exceed ("most") or fall short of ("least"); None: told only.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    bar: float | None = None
    side: Literal["most", "least"] = "most"
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the median keeps to the bar; None without one."""
        if self.bar is None:
            return None
        return self.median <= self.bar if self.side == "most" else self.median >= self.bar

    def recorded(self) -> dict[str, Any]:
        spread = {"median": self.median, "least": min(self.values), "most": max(self.values)}
        return {**asdict(self), **spread, "holds": self.holds}

    def __str__(self) -> str:
        numbers = (self.median, min(self.values), max(self.values))
        line = f"{self.name} [{self.unit}]".ljust(NAME)
        line += "".join(f"{significant(number):>{NUMBER}}" for number in numbers)
        if self.bar is not None:
            sign = "<=" if self.side == "most" else ">="
            line += f"   {sign} {self.bar:g}: {'holds' if self.holds else 'MISSED'}"
        return f"{line}   {self.note}".rstrip() if self.note else line


def significant(number: float) -> str:
    """Three significant digits, and all of a whole number's."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:#.3g}".rstrip(".")


def figure(name: str, unit: str, values: Iterable[float], **rest: Any) -> Figure:
    return Figure(name, unit, tuple(float(value) for value in values), **rest)


def unbarred(figures: Iterable[Figure]) -> list[Figure]:
    """Figures of a run made only to see that it runs: no bar is held against them."""
    return [replace(each, bar=None) for each in figures]


def missed(figures: Iterable[Figure]) -> list[str]:
    """Names of those that do not keep to their bars."""
    return [each.name for each in figures if each.holds is False]


def table(title: str, figures: Sequence[Figure]) -> str:
    """Figures as people read them."""
    head = title.ljust(NAME) + "".join(f"{word:>{NUMBER}}" for word in ("median", "least", "most"))
    return "\n".join([head, *(f"  {line}" for line in map(str, figures))])


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and with what something was measured."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "diffusers", "transformers", "pillow")
    return {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "packages": {name: version(name) for name in packages},
        "cuda": torch.version.cuda,
        "git_revision": git_revision(),
    }
