"""Searches for one prompt after another, and loses nothing when it is stopped."""

from __future__ import annotations

import copy
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from experiment.config import ExperimentConfig
from experiment.evaluate import Evaluated, Evaluator
from experiment.guests import seated
from experiment.interrupts import Interrupts
from experiment.journal import Journal
from experiment.listeners import listens
from experiment.lock import refuse_lost
from experiment.lockstep import Alone, Company, Place, Seat, companies, settled
from experiment.making import Maker
from experiment.outcome import Failed, Outcome, report, summed_up
from experiment.overlap import in_turn
from experiment.plan import Plan
from experiment.progress import Progress, remove_state
from experiment.prompts import Prompt, grouped
from experiment.rounds import RoundBook
from experiment.stops import SILENT, Halted, Silent, Stopped, Watch, disk_full
from experiment.store import RunStore
from experiment.trackers import Trackers
from pipelines.denoiser import Denoiser
from pipelines.loading import choose_device
from pipelines.sde import Sde
from pipelines.space import LatentSpace
from search.core import Rollout, Search, adds_noise
from search.ledger import Ledger
from search.own import BadSearch
from search.play import foreseen, play
from utils import UserError, significant, write_atomically
from verifiers.base import Chosen, Item, Score

NO_SCORE = "no finished image has a score, see candidates.jsonl for reasons"
NO_IMAGE = "the search ended before it had made any image"
REMOTE_AT_ONCE = 4  # a grader takes about as long as some batches do


class Experiment:
    """A loaded pipeline, verifier and judges, and the prompts to search for."""

    def __init__(
        self,
        config: ExperimentConfig,
        denoiser: Denoiser,
        verifier: Chosen,
        judges: Mapping[str, Chosen],
        store: RunStore,
        planned: Plan,
        batch_size: int,
        trackers: Trackers | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.config = config
        self.denoiser = denoiser
        self._seated = seated(verifier, denoiser)
        self._alone = denoiser.residence is not None and denoiser.residence.alone
        # Where they take turns on the device, the evaluator itself sees to the verifier's.
        self.verifier = verifier if self._alone else self._seated
        self.judges = {name: seated(judge, denoiser) for name, judge in judges.items()}
        self.store = store
        self.planned = planned
        self.batch_size = batch_size
        self.trackers = trackers or Trackers((), store)
        self.failed = 0  # prompts, once the run has ended
        self._failed_before: set[int] = set()  # prompts that failed in an earlier sitting
        self._tried_before: set[int] = set()  # these, and who shares batches with silent ones
        self._notes: dict[int, str] = {}  # of failures that wait until their company has ended
        self.watch = watch or Watch()
        self._halted = threading.Event()
        sde = Sde(**config.stochastic_args.model_dump())
        noisy = adds_noise(config.search_args.build())
        self._maker = Maker(denoiser, self.verifier.score_pixels, sde if noisy else None)
        self._companies: dict[int, Company] = {}
        if self._company_size > 1:
            self._refuse_sharing()
            denoiser.share(self._company_size)

    def run(self) -> None:
        """Search for every prompt in turn that is not done; the summary is written last."""
        try:
            with Interrupts():
                self._run()
        except OSError as error:
            if not disk_full(error):
                raise
            raise Stopped("The disk is full: make room and resume.") from error

    def _run(self) -> None:
        from tqdm import tqdm

        prompts = self.planned.prompts
        progress = self._opened()
        self.batch_size = progress.batch_size
        self.denoiser.singly = progress.singly
        self._tell_chosen(progress)
        self.trackers.recall(progress.summaries.values())
        left = self._left(progress)
        self.denoiser.expect(prompt.text for prompt in left)
        order = [*sorted(progress.summaries), *(prompt.index for prompt in left)]
        failed: dict[int, dict[str, Any]] = {}
        at_once = min(self._at_once, len(left)) or 1
        self._keep_company(left)
        bar = tqdm(desc="prompts", total=len(left), disable=None, position=0)
        working = in_turn(left, self._tried_in_company, at_once, self._halted.set)
        with bar, closing(working) as tried:
            for prompt, (outcome, reason) in settled(tried, self._companies):
                if reason is None:
                    self._done(outcome, progress)
                else:
                    self._settle_note(prompt)
                    failed[prompt.index] = {**outcome.summary(), "failed": reason}
                bar.update()
                tqdm.write(report(outcome, reason))
                if reason not in (None, NO_SCORE):
                    tqdm.write(f"  details: {self.failure_path(prompt)}")
                sys.stdout.flush()  # a log file is read while the run goes on
                self.refuse_hopeless(outcome, reason)
        if order != sorted(order) or at_once > 1:  # in the prompts' order, as if each had waited
            self.store.keep_rows({p.index: progress.rows.get(p.index) for p in prompts})
        self._end({**progress.summaries, **failed})

    def _left(self, progress: Progress) -> list[Prompt]:
        """Prompts that are not done; those that failed before come last, for they may fail again
        and again."""
        left = [p for p in self.planned.prompts if p.index not in progress.summaries]
        self.note_tried(left)
        return sorted(left, key=lambda prompt: prompt.index in self._tried_before)

    def note_tried(self, left: Sequence[Prompt]) -> None:
        """Before a sitting: which of the prompts that it is to search for have failed before, or
        share batches with one that had no answers."""
        self._failed_before = {p.index for p in left if self.failure_path(p).exists()}
        self._tried_before = set(self._failed_before)
        if self._company_size > 1:  # nobody else leaves such notes
            for group in grouped(self.planned.prompts, self._company_size):
                if any(self._silence_path(p).exists() for p in group):
                    self._tried_before |= {p.index for p in group}

    def _opened(self) -> Progress:
        """What is done so far, the rest cleared away."""
        return Progress(self.store, self.planned.prompts, self.batch_size)

    def _end(self, summaries: Mapping[int, dict[str, Any]]) -> None:
        self.store.write_summary(summed_up(self.planned.prompts, summaries))
        self.failed = sum("failed" in summary for summary in summaries.values())
        if not self.failed:
            remove_state(self.store)

    def _done(self, outcome: Outcome, progress: Progress) -> None:
        """Note that a prompt is done, and let go of what an interruption would have needed."""
        best = outcome.book.best
        if best is not None and any(map(listens, self._asked)):
            progress.keep_chosen(outcome.prompt.index, outcome.book.media(best))
        progress.add(outcome.prompt, outcome.summary(), self.batch_size, self.denoiser.singly)
        self.trackers.prompt_done(outcome.summary())
        outcome.journal.remove()

    @property
    def _asked(self) -> tuple[Chosen, ...]:
        return self._seated, *self.judges.values()

    @property
    def _at_once(self) -> int:
        """Prompts searched for at once, each with batches of its own: while one is judged or
        written, another is denoised."""
        if (
            self._alone
            or self.config.budget.seconds is not None
            or any(map(listens, self._asked))  # what it is told has an order
        ):
            return 1
        size, asked = self._company_size, self.config.engine_args.prompts_at_once
        if asked != "auto":
            return max(asked // size, 1) * size
        if self.verifier.remote:
            return REMOTE_AT_ONCE * size
        return size if choose_device(self.config.engine_args.device) == "cpu" else 2 * size

    @property
    def _company_size(self) -> int:
        return self.config.engine_args.share_batches

    def _refuse_sharing(self) -> None:
        """Refuse to share batches where prompts cannot be searched for at once."""
        if self._at_once < self._company_size:
            raise UserError(
                "engine_args.share_batches needs room for pipeline and verifier together: set it to"
                " 1, or verifier_device to another device."
            )
        if not self.denoiser.mixes:
            raise UserError(
                f"{type(self.denoiser.pipe).__name__} cannot be handed prompts that are encoded one"
                " by one: set engine_args.share_batches to 1."
            )

    def _keep_company(self, left: Sequence[Prompt]) -> None:
        """Put the prompts that are to share batches together; those that failed before go alone."""
        fresh = [p.index for p in left if p.index not in self._failed_before]
        self._companies = companies(
            self.planned.prompts, fresh, self._company_size, self._maker, self._check
        )

    def _seat(self, prompt: Prompt) -> Seat:
        company = self._companies.get(prompt.index)
        return Alone(self._maker) if company is None else Place(company, prompt.index)

    def _tried_in_company(self, prompt: Prompt) -> tuple[Outcome, str | None]:
        """As `tried`; those that share its batches are told of its end."""
        company = self._companies.get(prompt.index)
        try:
            return self.tried(prompt)
        except BaseException:
            if company is not None:
                company.stop()
            raise
        finally:
            if company is not None:
                company.leave(prompt.index)

    def _tell_chosen(self, progress: Progress) -> None:
        """Tell verifiers that judge whole sets what earlier sittings came to."""
        texts = {prompt.index: prompt.text for prompt in self.planned.prompts}
        listening = [judge for judge in self._asked if listens(judge)]
        for index in sorted(progress.summaries) if listening else ():
            media = progress.chosen(index)
            for judge in listening if media is not None else ():
                label = self.denoiser.label(texts[index])
                judge.chose(Item(media, texts[index], label=label))

    def tried(self, prompt: Prompt) -> tuple[Outcome, str | None]:
        """A prompt's search, and why it failed; raises what concerns the whole run."""
        try:
            outcome = self.search(prompt)
        except Silent as silence:
            self._note_silence(prompt, str(silence))
            raise
        except Failed as failure:
            error = failure.error
            if disk_full(error):
                raise error from None
            if isinstance(error, UserError) and not isinstance(error, BadSearch):
                # What is refused from the start is wrong, and what is refused later has changed.
                raise (Stopped(str(error)) if self.watch.worked else error) from None
            text = "".join(traceback.format_exception(error))
            self._note_failure(prompt, text)
            kind = "" if isinstance(error, BadSearch) else f"{type(error).__name__}: "
            return failure.outcome, " ".join(f"{kind}{error}".split())
        if outcome.book.best is None:
            reason = NO_SCORE if outcome.book.statuses else NO_IMAGE
            outcome.journal.drop_unanswered()
            self._note_failure(prompt, reason)
            return outcome, reason
        return outcome, None

    def _note_failure(self, prompt: Prompt, text: str) -> None:
        """At once, or where others share its batches when they have ended: until then a sitting
        that goes on here needs it among them."""
        if prompt.index in self._companies:
            self._notes[prompt.index] = text
        else:
            self._write_note(self.failure_path(prompt), text)

    def _settle_note(self, prompt: Prompt) -> None:
        if prompt.index in self._notes:
            self._write_note(self.failure_path(prompt), self._notes.pop(prompt.index))

    def _note_silence(self, prompt: Prompt, text: str) -> None:
        """The run stops here; next time others come first."""
        shares = prompt.index in self._companies
        path = self._silence_path(prompt) if shares else self.failure_path(prompt)
        self._write_note(path, text)

    def _write_note(self, path: Path, text: str) -> None:
        refuse_lost()
        write_atomically(path, text.encode())

    def failure_path(self, prompt: Prompt) -> Path:
        """Where the reason of a failure is written, with the traceback if there is one."""
        return self.store.state / f"prompt{prompt.index}.failed.txt"

    def _silence_path(self, prompt: Prompt) -> Path:
        return self.store.state / f"prompt{prompt.index}.silent.txt"

    def refuse_hopeless(self, outcome: Outcome, reason: str | None) -> None:
        """Stop if one prompt after another fails, which is then nothing of the prompts' own.

        Neither a prompt that failed before counts, nor one whose images were all answered, and
        refused: else such prompts would keep the run from ever coming to its end.
        """
        unanswered = reason != NO_SCORE or SILENT & outcome.book.statuses.keys()
        if reason is None or (unanswered and outcome.prompt.index not in self._tried_before):
            self.watch.searched(reason)

    def search(self, prompt: Prompt) -> Outcome:
        """Search for one prompt, writing as it goes, from where an interruption left it."""
        journal = Journal(self.store, prompt, self.batch_size)
        label = self.denoiser.label(prompt.text)
        values: dict[int, float] = {}
        book = RoundBook(self.store, prompt, self.verifier, self.judges, values, journal, label)
        ledger = Ledger(self.config.budget.build(), clock=journal.clock)
        book.judged = lambda judge, score: self.watch.scored([score], judge)
        book.closed = lambda result: self.trackers.round_closed(book, result, ledger.spent)
        try:
            ledger.rows_each = self._rows_each(prompt, journal.batch_size)
            with Interrupts():
                self._play(prompt, journal, book, values, ledger)
                book.close()
                self._tell(book, label)
                Interrupts.check()
        except (Silent, Halted):
            journal.drop_unanswered()
            raise
        except Exception as error:
            raise Failed(Outcome(prompt, book, ledger.spent, journal), error) from error
        return Outcome(prompt, book, ledger.spent, journal)

    def _play(
        self,
        prompt: Prompt,
        journal: Journal,
        book: RoundBook,
        values: dict[int, float],
        ledger: Ledger,
    ) -> None:
        """Play the search to its end; every batch goes into the book."""
        config = self.config
        search = config.search_args.build()
        space = LatentSpace(
            self.denoiser, prompt.text, config.seed, prompt.occurrence, journal.batch_size
        )
        with self._progress(prompt) as bar:

            def keep(rollout: Rollout, batch: Sequence[Evaluated]) -> None:
                book.add(rollout, batch)
                bar.update(sum(entry.nfe for entry in batch))
                bar.set_postfix(best=significant(book.value(book.best)), refresh=False)

            evaluator = Evaluator(
                self.denoiser,
                self.verifier,
                prompt,
                space,
                journal,
                keep,
                values,
                self._seat(prompt),
                coming=self._coming(search, space, ledger),
                after=self._after,
            )
            try:
                for _ in play(search, space, evaluator, ledger, config.rounds):
                    pass
            finally:
                self.batch_size = min(self.batch_size, evaluator.batch_size)

    def _coming(
        self, search: Search, space: LatentSpace, ledger: Ledger
    ) -> Iterator[Rollout] | None:
        """What the search will ask, where that can be known."""
        if not search.blind or self._alone or self.config.budget.seconds is not None:
            return None
        return foreseen(search, space.twin(), copy.copy(ledger), self.config.rounds)

    def _after(self, scores: Sequence[Score]) -> None:
        """A batch has been made, judged and kept: a good place to stop."""
        self.watch.worked = True
        self.watch.scored(scores)
        self._check()

    def _check(self) -> None:
        """Raise where the run ends before its end."""
        Interrupts.check()
        if self._halted.is_set():
            raise Halted("The run has ended.")

    def _tell(self, book: RoundBook, label: str | None) -> None:
        """Tell verifiers that judge whole sets what the prompt came to."""
        best = book.best
        if best is not None and best.path is not None:
            item = Item(book.media(best), book.prompt.text, label=label)
            for judge in self._asked:
                judge.chose(item)

    def _rows_each(self, prompt: Prompt, batch_size: int) -> int:
        """Rows that one NFE takes, where rows are the budget; refuses one of too few."""
        rows = self.config.budget.rows
        if rows is None:
            return 1
        first, steps = self.denoiser.span(prompt.text, batch_size)
        search = self.config.search_args.build()
        most = getattr(search, "max_scale", 1.0) if getattr(search, "guides", False) else 1.0
        each = max(self.denoiser.rows_each(prompt.text, factor) for factor in {1.0, most})
        image = each * (steps - first)
        if rows < image:
            raise UserError(
                f"A budget of {rows} rows cannot finish one image of {image} rows: raise"
                " budget.rows or lower num_inference_steps."
            )
        return each

    def _progress(self, prompt: Prompt) -> Any:
        from tqdm import tqdm

        most = self.planned.most
        known = most is not None and self.planned.steps is not None
        return tqdm(
            total=most.nfe if most is not None and known else None,
            desc=f"prompt {prompt.index + 1}",
            unit="NFE",
            disable=None,
            leave=False,
            position=1 + prompt.index % self._at_once,
        )
