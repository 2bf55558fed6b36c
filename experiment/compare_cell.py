"""One run of a comparison: a method at a seed and a budget, over all prompts, in its own folder.

The folder is an ordinary run's, and `winners.jsonl` beside: a line for each prompt that is done,
with the best image within each budget. A prompt without its line is searched for again: one that
failed, or got no score, has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment.compare_config import metric_labels
from experiment.config import ExperimentConfig
from experiment.lines import LineFile
from experiment.outcome import summed_up
from experiment.plan import Plan
from experiment.records import STATE, SUMMARY, read_object
from experiment.resume import CONFIG, completed, plain
from experiment.store import RunStore
from utils import UserError, json_number

WINNERS = "winners.jsonl"
BY_METRIC = ("scores", "ceilings")  # of a winner
FREE = ("num_prompts", "batch_size_for_img_gen", "engine_args")  # may differ between sittings


@dataclass(frozen=True)
class Winner:
    """The best finished image of one prompt within a budget.

    nfe, rows, seconds, images: spent and finished by then. path: None where nothing was scored.
    scores: by metric, what the verifier and the judges say of it; nan for no answer. ceilings: by
    metric, the highest score of any image finished by then.
    """

    budget: int
    nfe: float
    rows: int
    seconds: float
    images: int
    path: str | None
    scores: Mapping[str, float]
    ceilings: Mapping[str, float]


@dataclass(frozen=True)
class Done:
    """A prompt that was searched for: its part of the summary, and its winners."""

    prompt_index: int
    prompt: str
    stem: str
    summary: dict[str, Any]
    winners: tuple[Winner, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Done:
        """What a line says; raises one of `MISFITS` where it is none of these."""
        own = {field.name: content[field.name] for field in fields(cls)}
        return cls(**{**own, "winners": tuple(map(_winner, content["winners"]))})

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        for winner in content["winners"]:
            for part in BY_METRIC:
                winner[part] = {name: json_number(value) for name, value in winner[part].items()}
        return content


def _winner(content: Mapping[str, Any]) -> Winner:
    by_metric = {
        part: {name: math.nan if value is None else value for name, value in content[part].items()}
        for part in BY_METRIC
    }
    return Winner(**{**content, **by_metric})


@dataclass(frozen=True)
class Cell:
    """What is run, and where; budgets: all those that this one run answers for."""

    label: str
    config: ExperimentConfig
    planned: Plan
    budgets: tuple[int, ...]
    ceilings: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        return f"{self.label:<24}nfe {self.budget:<6}seed {self.seed:<3}"

    @property
    def budget(self) -> int:
        return self.budgets[-1]

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def alone(self) -> ExperimentConfig:
        """The run's own config: only winners are judged, once the search is over."""
        return self.config.model_copy(update={"judges": ()})

    @cached_property
    def lines(self) -> LineFile:
        """A line for each prompt that is done."""
        remedy = "delete that line to search for its prompt anew"
        return LineFile(self.folder / WINNERS, remedy, chained=False)

    def done(self) -> dict[int, Done]:
        """All prompts done so far, by index; refuses results of another config."""
        self._refuse_other_config()
        found = {}
        for number, content in self.lines.read():
            with self.lines.fitting(number):
                done = Done.of(content)
                self._refuse_other(done)
                if done.summary["best"] is not None:  # earlier versions took none for done
                    found[done.prompt_index] = done
        return found

    def finish(self, failed: Mapping[int, dict[str, Any]]) -> None:
        """Write the run's summary if all of its prompts are done, or have just failed.

        failed: by prompt, the summaries of those.
        """
        summaries = {**failed, **{index: done.summary for index, done in self.done().items()}}
        if (self.folder / SUMMARY).exists() or not all(
            prompt.index in summaries for prompt in self.planned.prompts
        ):
            return
        store = RunStore(self.folder, self.config.export)
        store.keep_rows(dict.fromkeys(summaries))  # in the prompts' order, as if each had waited
        store.write_summary(summed_up(self.planned.prompts, summaries))

    def _refuse_other_config(self) -> None:
        path = self.folder / CONFIG
        if not any((self.folder / name).exists() for name in (WINNERS, STATE)):
            return
        if not path.exists():
            raise UserError(
                f"{path} is missing: restore it, or move {self.folder} away to do that run anew."
            )
        before, now = completed(read_object(path)), plain(self.alone)
        for key in sorted(before.keys() | now.keys()):
            if key not in FREE and before.get(key) != now.get(key):
                raise UserError(_other(self.folder, key))

    def _refuse_other(self, done: Done) -> None:
        texts = {prompt.index: prompt.text for prompt in self.planned.prompts}
        if texts.get(done.prompt_index, done.prompt) != done.prompt:
            raise UserError(_other(self.folder, "prompts"))
        if not {winner.budget for winner in done.winners}.issuperset(self.budgets):
            raise UserError(_other(self.folder, "budgets"))
        metrics = set(metric_labels(self.config))
        if any(winner.scores.keys() != metrics for winner in done.winners):
            raise UserError(_other(self.folder, "judges"))


def _other(folder: Path, key: str) -> str:
    return (
        f"{folder} holds results of another config (other {key}): give the comparison another"
        " name, or move the folder away."
    )
