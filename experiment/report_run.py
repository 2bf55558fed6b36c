"""What is known of a run: its prompts, their candidates, and the winners of their rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

UNRECORDED = "unrecorded"  # the status of an image of which no row tells

Named = tuple[str, str]  # who judged, and which aspect


@dataclass(frozen=True)
class LeftOut:
    """A file or a line that could not be used."""

    name: str
    why: str


@dataclass(frozen=True)
class Candidate:
    """A candidate at one of the times it was moved or scored.

    score: by the chosen metric; nan for no answer. named: all that the verifier gave it. judged:
    all that judges did. path: its picture's name in the folder, if it was ever written.
    """

    id: int
    round: int
    step: int
    steps: int
    seed: int
    status: str
    score: float
    named: Mapping[Named, float] = field(default_factory=dict)
    judged: Mapping[Named, float] = field(default_factory=dict)
    explanation: str = ""
    guidance: float = 1.0
    draft: bool = False
    nfe: float = math.nan
    seconds: float = math.nan
    parents: tuple[int, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None

    @property
    def finished(self) -> bool:
        return self.step == self.steps and not self.draft


@dataclass(frozen=True)
class Round:
    """A round's winner, by its record."""

    number: int
    seed: int
    score: float
    num_noises: int
    explanation: str
    id: int | None  # of the candidate; tt-scale-flux numbers none
    path: str
    metric: str
    judged: Mapping[Named, float]


@dataclass(frozen=True)
class Searched:
    """One prompt of a run. best: its winner, if anything was scored.

    index: its number in the run, from 0, if rows tell. failed: why its search did. unfinished:
    whether that was still to go on.
    """

    text: str
    occurrence: int  # among equal prompts
    index: int | None
    stem: str
    category: str
    candidates: tuple[Candidate, ...]
    rounds: tuple[Round, ...]
    best: Candidate | None
    failed: str = ""
    unfinished: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by in every run."""
        return self.text, self.occurrence


@dataclass(frozen=True)
class Run:
    """A run folder. names: the files that are there.

    unfinished: whether it was to go on. asked: for how many prompts it was to search, if its config
    says so.
    """

    folder: Path
    config: Mapping[str, Any]
    searched: tuple[Searched, ...]
    names: frozenset[str]
    left_out: tuple[LeftOut, ...]
    unfinished: bool = False
    asked: int | None = None

    @cached_property
    def by_key(self) -> dict[tuple[str, int], Searched]:
        return {each.key: each for each in self.searched}

    @cached_property
    def failed(self) -> dict[tuple[str, int], str]:
        """By prompt why its search failed."""
        return {each.key: each.failed for each in self.searched if each.failed}

    @property
    def done(self) -> int:
        """How many prompts were searched for to the end."""
        return sum(not each.failed and not each.unfinished for each in self.searched)

    @property
    def wanted(self) -> int:
        """How many prompts it was to search for, as far as that is known."""
        return max(len(self.searched), (self.asked or 0) if self.unfinished else 0)
