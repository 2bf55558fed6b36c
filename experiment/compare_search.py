"""A comparison's runs being run: each prompt's search, and what judges say of its winners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from experiment.compare_cell import Cell, Done, Winner
from experiment.compare_config import metric_labels
from experiment.guests import seated
from experiment.outcome import Failed, Outcome
from experiment.progress import clear
from experiment.prompts import Prompt
from experiment.records import SUMMARY, CandidateRecord, read_candidates
from experiment.resume import CONFIG
from experiment.runner import Engine
from experiment.searching import Experiment
from experiment.stops import SILENT, Silent, Watch
from experiment.store import RunStore
from verifiers.base import Item, Memory, Score


class CellRun:
    """A cell being run: opened where it was left.

    failed: the summaries of the prompts that could not be searched for, each with its reason.
    failures: the same for people, a line each.
    """

    def __init__(self, cell: Cell, engine: Engine, watch: Watch) -> None:
        self.cell = cell
        self.done = cell.done()
        self.failed: dict[int, dict[str, Any]] = {}
        self.failures: list[str] = []
        cell.folder.mkdir(parents=True, exist_ok=True)
        store = RunStore(cell.folder, cell.config.export)
        (cell.folder / SUMMARY).unlink(missing_ok=True)
        clear(store, {index: done.stem for index, done in self.done.items()}, {})
        store.write_json(CONFIG, engine.saved(cell.alone))
        if not (cell.folder / "manifest.json").exists():
            store.write_json("manifest.json", engine.manifest)
        self._searches = _Searches(cell, engine, store, watch)
        self._searches.note_tried(cell.planned.prompts)

    def search(self, prompt: Prompt) -> Done | None:
        """Search for one prompt, judge its winners, and note that it is done; None if it failed,
        which costs no other prompt anything."""
        outcome, reason = self._searches.tried(prompt)
        if reason is not None:
            self.failed[prompt.index] = {**outcome.summary(), "failed": reason}
            details = self._searches.failure_path(prompt)
            told = f"prompt {prompt.index + 1:<9}{self.cell}failed: {reason} (details: {details})"
            self.failures.append(told)
            print(self.failures[-1], flush=True)
        self._searches.refuse_hopeless(outcome, reason)
        return self._noted(prompt, outcome) if reason is None else None

    def _noted(self, prompt: Prompt, outcome: Outcome) -> Done:
        winners = self._searches.winners
        done = Done(prompt.index, prompt.text, prompt.stem, outcome.summary(), winners)
        self.done[prompt.index] = done
        self.cell.lines.rewrite(self.done[index].as_json() for index in sorted(self.done))
        outcome.journal.remove()
        return done


class _Searches(Experiment):
    """A cell's searches, after each of which its winners are judged."""

    def __init__(self, cell: Cell, engine: Engine, store: RunStore, watch: Watch) -> None:
        super().__init__(
            cell.alone,
            engine.denoiser,
            engine.verifier,
            {},
            store,
            cell.planned,
            engine.batch_size,
            watch=watch,
        )
        self.winners: tuple[Winner, ...] = ()  # of the prompt that was searched for last
        self._cell = cell
        self._engine = engine

    def search(self, prompt: Prompt) -> Outcome:
        before = self.store.rows_size
        outcome = super().search(prompt)
        try:
            self.winners = self._winners(outcome, before) if outcome.book.best else ()
        except Silent:
            raise
        except Exception as error:
            raise Failed(outcome, error) from error
        return outcome

    def _winners(self, outcome: Outcome, before: int) -> tuple[Winner, ...]:
        """before: size of the file of rows as the prompt's search began."""
        rows = read_candidates(self._cell.folder, before)
        labels = metric_labels(self._cell.config)
        judging = _Judging(self._engine, self.store, outcome, labels, self.watch)
        return tuple(self._winner(rows, budget, outcome, judging) for budget in self._cell.budgets)

    def _winner(
        self,
        rows: Sequence[CandidateRecord],
        budget: int,
        outcome: Outcome,
        judging: _Judging,
    ) -> Winner:
        part = within(rows, budget)
        best = best_of(part)
        if budget == self._cell.budget:  # what the run itself has chosen
            chosen = outcome.book.best
            best = next((row for row in part if chosen and row.id == chosen.id), None)
        images = [row for row in part if row.step == row.steps and not row.draft]
        return Winner(
            budget=budget,
            nfe=sum(row.nfe for row in part),
            rows=sum(row.rows for row in part),
            seconds=round(sum(row.seconds for row in part), 6),
            images=len(images),
            path=best.path if best else None,
            scores=judging.scores(best),
            ceilings={label: judging.highest(images, label) for label in self._cell.ceilings},
        )


class _Judging:
    """The scores of one prompt's images, from the pictures on disk; each is judged once, whatever
    comes in between, but for those that a judge does not answer for before an interruption."""

    def __init__(
        self,
        engine: Engine,
        store: RunStore,
        outcome: Outcome,
        labels: tuple[str, ...],
        watch: Watch,
    ) -> None:
        self._store = store
        self._prompt = outcome.prompt
        self._journal = outcome.journal
        self._watch = watch
        self._unanswered: set[tuple[int, str]] = set()
        self._class = engine.denoiser.label(outcome.prompt.text)
        judges = [seated(judge, engine.denoiser) for judge in engine.judges.values()]
        self._verifier, self._judges = labels[0], dict(zip(labels[1:], judges, strict=True))

    def scores(self, row: CandidateRecord | None) -> dict[str, float]:
        """By metric what is said of an image; the verifier's word is the row's own."""
        if row is None:
            return dict.fromkeys((self._verifier, *self._judges), math.nan)
        judged = {label: self._judge(row, label) for label in self._judges}
        return {self._verifier: row.score, **judged}

    def highest(self, images: Iterable[CandidateRecord], label: str) -> float:
        """The best of the images that are on disk, by one judge; nan where it answers for none."""
        found = [self._judge(row, label) for row in images if row.path]
        return max((score for score in found if not math.isnan(score)), default=math.nan)

    def _judge(self, row: CandidateRecord, label: str) -> float:
        assert row.path is not None
        if (row.id, label) in self._unanswered:
            return math.nan
        media = partial(self._store.read_media, row.path)
        score = self._journal.word(row.id, label, partial(self._asked, label, media))
        if score.status in SILENT:
            self._unanswered.add((row.id, label))
        return score.value

    def _asked(self, label: str, media: Callable[[], Any], memory: Memory) -> Score:
        item = Item(media(), self._prompt.text, label=self._class, memory=memory)
        score = self._judges[label].score([item])[0]
        self._watch.scored([score], label)
        return score


def within(rows: Sequence[CandidateRecord], budget: float) -> list[CandidateRecord]:
    """The first rows, as many as this many NFE pay for."""
    part: list[CandidateRecord] = []
    spent = 0.0
    for row in rows:
        spent += row.nfe
        if spent > budget:
            break
        part.append(row)
    return part


def best_of(rows: Iterable[CandidateRecord]) -> CandidateRecord | None:
    """The finished image with the highest score; of equal ones the earlier.

    One without a picture belongs to a rejected round, in which something on disk scored as high.
    """
    finished = [
        r for r in rows if r.step == r.steps and not r.draft and r.path and not math.isnan(r.score)
    ]
    return min(finished, key=lambda row: (-row.score, row.id), default=None)
