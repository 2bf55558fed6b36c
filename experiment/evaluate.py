"""Answers a search's rollouts: batches them, denoises, decodes, verifies."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiment.ahead import Ahead, Batch
from experiment.batches import Answered, Made
from experiment.journal import Journal, Shrunk
from experiment.lockstep import Seat
from experiment.making import Order
from experiment.overlap import one_behind
from experiment.prompts import Prompt
from experiment.stops import Stopped
from pipelines.batching import ladder, spans
from pipelines.denoiser import Denoiser
from pipelines.made import Decoded
from pipelines.memory_errors import free, out_of_memory
from pipelines.placement import Residence
from pipelines.space import LatentSpace
from search.core import Candidates, Rollout, Scored, joined
from search.ledger import Cost, nfe_each
from search.play import finishes
from verifiers.base import Chosen, Item, Memory, Score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """One candidate, moved or scored once: what a row of the records says of it, and its picture.

    media: PIL image or list of PIL frames; None where there is nothing worth keeping. path: of the
    picture in the run folder, if it is there already.
    guidance: the factor on the pipeline's guidance scale on the way to `step`.
    profile: "exact", or how its drafts or its weights were made cheaper.
    nfe, rows, seconds: this candidate's share of what its batch cost.
    """

    id: int
    seed: int
    step: int
    steps: int
    parents: tuple[int, ...]
    recipe: Mapping[str, Any]
    score: Score
    media: Any
    guidance: float
    draft: bool
    nfe: int
    rows: int
    batch_size: int
    seconds: float
    path: str | None = None
    profile: str = "exact"

    @property
    def finished(self) -> bool:
        return self.step == self.steps and not self.draft


UNASKED = Score(math.nan, status="unasked")  # the search wanted the candidates moved, no more
Keep = Callable[[Rollout, Sequence[Evaluated]], None]
OUT_OF_MEMORY = (
    "The device has too little memory for a single image: set engine_args.offload (model, group or"
    " sequential) and resume, or start again with engine_args.vae (slicing or tiling) or"
    " engine_args.quantization."
)


class Evaluator:
    """Evaluates one prompt's rollouts; `keep` is handed each batch as soon as it is scored.

    journal: answers the batches that it knows, and keeps the others. seat: where batches are made.
    coming: the wishes as they will be asked, where a search is blind to its answers. after: called
    after each batch that was not known; may raise, to stop here.
    values: every candidate's value as it stands now, by id; under a verifier that judges by the
    pool, it moves as more candidates arrive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        verifier: Chosen,
        prompt: Prompt,
        space: LatentSpace,
        journal: Journal,
        keep: Keep,
        values: dict[int, float],
        seat: Seat,
        *,
        coming: Iterator[Rollout] | None = None,
        after: Callable[[Sequence[Score]], None] = lambda scores: None,
    ) -> None:
        self._denoiser = denoiser
        self._verifier = verifier
        self._prompt = prompt
        self._space = space
        self._journal = journal
        self.batch_size = journal.batch_size
        self._tried = 0  # the size of the batch in hand
        # Batches begun, and put into the journal: each counted in one thread.
        self._begun = self._ended = 0
        self._keep = keep
        self._after = after
        self.values = values
        self._seat = seat
        self._ahead = Ahead(coming)
        self._named: set[int] = set()  # seeds that rows tell the making of
        # By schedule and step: ids and their scores.
        self._pools: dict[tuple[int, int], dict[int, Score]] = {}

    def __call__(self, rollout: Rollout) -> tuple[Scored, Cost]:
        """The scored candidates in the rollout's order, and the cost as measured."""
        if rollout.score:
            self._keep(rollout, ())  # the last round closes on the values that its search was sent
        batches = [
            self._entered(rollout, start, answered) for start, answered in self._answers(rollout)
        ]
        moved, entries, gradients, costs = zip(*batches, strict=True)
        rows = [entry for batch in entries for entry in batch]
        scored = Scored(
            start=rollout.candidates,
            candidates=joined(moved),
            scores=_tensor([self.values[entry.id] for entry in rows]),
            ids=tuple(entry.id for entry in rows),
            rival_scores=_tensor([self.values[i] for i in rollout.rivals]),
            gradient=torch.cat(gradients) if rollout.gradient else None,
        )
        return scored, sum(costs, Cost())

    def _answers(self, rollout: Rollout) -> Iterator[tuple[Candidates, Answered]]:
        """The wish, batch by batch: what was made with earlier wishes, then from the journal as
        long as it lasts, then made and judged."""
        n, begin = len(rollout.candidates), 0
        self._ahead.asked(rollout)
        for start, answered in self._ahead.answered(rollout):
            yield start, answered
            begin += len(start)
        while begin < n:
            if shrunk := self._journal.shrunk():
                self._repeat(rollout, begin, shrunk.lost)
                self.batch_size = shrunk.size
                self._seat.leave()
            batch = self._batch(rollout, begin)
            known = self._journal.recall(rollout, batch.start)
            if known is None:
                break
            self._denoiser.singly |= known.singly
            self._seat.known(self._order(rollout, batch.start), self.batch_size, known.apart)
            yield self._ahead.take(batch, known)
            begin += batch.counts[0]
        while begin < n:
            try:
                with closing(self._fresh(rollout, begin)) as fresh:
                    for batch, answered in fresh:
                        yield self._ahead.take(batch, answered)
                        begin += batch.counts[0]
                        self._after(answered.scores)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self._tried == 1:
                    raise Stopped(OUT_OF_MEMORY) from error
            if begin < n:  # outside the handler, which holds on to what the failed batch had made
                self._shrink()

    def _batch(self, rollout: Rollout, begin: int) -> Batch:
        """The wish's next batch; its last one filled with what will be asked next."""
        rest = rollout.candidates.select(range(begin, len(rollout.candidates)))
        if len(rest) < self.batch_size:
            filled = self._ahead.filled(rollout, rest, self.batch_size)
            if len(filled.counts) > 1:
                return filled
        size = self._sizes(len(rest))[0]
        return Batch(rest.select(range(size)), (rollout.round or 0,) * size, (size,))

    def _fresh(self, rollout: Rollout, begin: int) -> Generator[tuple[Batch, Answered], None, None]:
        """Make, judge and keep what is left of a wish.

        A batch is kept while the next is made; and judged, if another machine does that.
        """
        made: Iterable[tuple[Batch, Made]] = self._each_made(rollout, begin)
        if rollout.score and self._alone is not None:  # all are made before the verifier moves in
            made = [(batch, self._put_by(rollout, each)) for batch, each in made]
            self._alone.leave()
        judge, keep = partial(self._judged, rollout), partial(self._kept, rollout)
        if self._verifier.remote:
            yield from one_behind(made, lambda each: each, lambda each: keep(judge(each)))
        else:
            yield from one_behind(made, judge, keep)
        if rollout.score and self._alone is not None:
            self._verifier.offload()

    def _kept(self, rollout: Rollout, judged: tuple[Batch, Answered]) -> tuple[Batch, Answered]:
        batch, answered = judged
        kept = self._journal.append(rollout, batch.start, answered, batch.rounds)
        self._ended += 1
        return batch, kept

    def _repeat(self, rollout: Rollout, begin: int, lost: int) -> None:
        """Take one's turns again with batches that came to nothing, for those who shared them."""
        for _ in range(lost):
            batch = self._batch(rollout, begin)
            self._seat.known(self._order(rollout, batch.start), self.batch_size, apart=False)
            begin += batch.counts[0]

    def _each_made(self, rollout: Rollout, begin: int) -> Iterator[tuple[Batch, Made]]:
        while begin < len(rollout.candidates):
            batch = self._batch(rollout, begin)
            self._tried = len(batch.start)
            self._begun += 1
            made = self._journal.made(rollout, batch.start) or self._make(rollout, batch.start)
            self._denoiser.singly |= made.singly
            yield batch, made
            begin += batch.counts[0]

    def _make(self, rollout: Rollout, start: Candidates) -> Made:
        return self._seat.make(self._order(rollout, start), self.batch_size)

    def _put_by(self, rollout: Rollout, made: Made) -> Made:
        """A batch that will not be judged before others are made: an interruption must not cost
        it."""
        self._journal.keep_made(rollout, made)
        self._after(())
        return made

    def _sizes(self, n: int) -> list[int]:
        return [end - begin for begin, end in spans(n, self.batch_size)]

    def _shrink(self) -> None:
        """Go on with the next smaller batches, for the rest of the run."""
        if self._alone is not None:
            self._verifier.offload()
        free()
        self.batch_size = next(size for size in ladder(self.batch_size) if size < self._tried)
        self._journal.shrink(Shrunk(self.batch_size, lost=self._begun - self._ended))
        self._begun = self._ended
        self._seat.leave()
        logger.warning(
            "Out of memory with %d images at once: going on with %d.", self._tried, self.batch_size
        )

    @property
    def _alone(self) -> Residence | None:
        """The pipeline's place on the device, if it has to leave it to the verifier."""
        residence = self._denoiser.residence
        return residence if residence is not None and residence.alone else None

    def _order(self, rollout: Rollout, start: Candidates) -> Order:
        return Order(
            self._prompt.text,
            rollout,
            start,
            self._space.steps,
            self._space.drafts[rollout.draft],
            self._preview_step(rollout),
        )

    def _preview_step(self, rollout: Rollout) -> int | None:
        """For candidates that will be finished, the step after which the share of noise first falls
        below what the verifier names."""
        share = self._verifier.preview_noise
        if share is None or not finishes(rollout, self._space) or rollout.gradient:
            return None
        return self._space.step_below(share)

    def _judged(self, rollout: Rollout, made_batch: tuple[Batch, Made]) -> tuple[Batch, Answered]:
        """The batch with its scores, and the pictures worth keeping."""
        batch, made = made_batch
        if not self._verifier.remote:
            self._tried = len(made.start)  # where judging them takes more memory than there is
        started = time.monotonic()
        moved, before = made.moved, made.before
        n = len(made.start)
        scores = [UNASKED] * n
        media: list[Any] = [None] * n
        if made.decoded is not None:
            decoded, finite = made.decoded
            memory = partial(self._journal.memory, rollout, made.start)
            scores = self._judge(decoded, finite, before.media or media, memory)
            media = decoded.media if finishes(rollout, self._space) else media
        cost = Cost(
            nfe=nfe_each(rollout) * n,
            rows=moved.rows + before.rows,
            decodes=(n if rollout.score else 0) + len(before.media),
            verifications=n if rollout.score else 0,
            seconds=made.seconds + time.monotonic() - started,
        )
        return batch, Answered(
            moved.candidates,
            moved.gradient,
            scores,
            media,
            cost,
            made.batch_size,
            singly=made.singly,
            apart=made.apart,
        )

    def _entered(
        self, rollout: Rollout, start: Candidates, answered: Answered
    ) -> tuple[Candidates, list[Evaluated], Tensor | None, Cost]:
        """The batch with ids, in the pool of its step, handed on."""
        entries = [self._entry(start, rollout, i, answered) for i in range(len(start))]
        if rollout.score:
            self._place((rollout.draft, rollout.until), entries)
        self._keep(rollout, entries)
        return answered.moved, entries, answered.gradient, answered.cost

    def _place(self, step: tuple[int, int], entries: Sequence[Evaluated]) -> None:
        """Let new candidates find their place among all that were scored at their step."""
        if not self._verifier.pooled:
            return
        pool = self._pools.setdefault(step, {})
        pool |= {entry.id: entry.score for entry in entries}
        places = self._verifier.pool_values(list(pool.values()))
        self.values |= dict(zip(pool, places, strict=True))

    def _judge(
        self,
        decoded: Decoded,
        finite: Sequence[bool],
        previews: Sequence[Any],
        memory: Callable[[int], Memory],
    ) -> list[Score]:
        """A score for each picture; those that are none are not shown to the verifier."""
        seen = zip(decoded.media, finite, decoded.filtered, decoded.sound, strict=True)
        faults = [_fault(m, ok, filtered, sound) for m, ok, filtered, sound in seen]
        sound = [i for i, fault in enumerate(faults) if fault is None]
        text = self._prompt.text
        label = self._denoiser.label(text)
        items = [Item(decoded.media[i], text, previews[i], label, memory(i)) for i in sound]
        scored = iter(self._verifier.score(items) if items else [])
        scores = [fault if fault is not None else next(scored) for fault in faults]
        return [_noted(s, again) for s, again in zip(scores, decoded.again, strict=True)]

    def _recipe(self, seed: int) -> Mapping[str, Any]:
        """How a candidate was made; what it was made of stands within, unless a row names it."""
        own = self._space.recipes[seed]
        of = own.get("of")
        if of is None or of in self._named:
            return own
        return {**own, "of": {"seed": of, **self._recipe(of)}}

    def _entry(self, start: Candidates, rollout: Rollout, i: int, answered: Answered) -> Evaluated:
        n, cost, score = len(start), answered.cost, answered.scores[i]
        number = len(self.values)
        self.values[number] = score.value
        self._named.add(start.seeds[i])
        return Evaluated(
            id=number,
            seed=start.seeds[i],
            step=rollout.until,
            steps=rollout.draft or self._space.steps,
            parents=start.parents[i],
            recipe=self._recipe(start.seeds[i]),
            score=score,
            media=answered.media[i],
            guidance=rollout.guidance,
            draft=bool(rollout.draft),
            nfe=cost.nfe // n,
            rows=cost.rows // n,
            batch_size=answered.batch_size,
            seconds=cost.seconds / n,
            path=answered.paths[i],
            profile=self._denoiser.profile_of(bool(rollout.draft)),
        )


def _noted(score: Score, again: bool) -> Score:
    """The score; if its picture had to be decoded in float32, that is noted beside it."""
    return replace(score, details={**score.details, "decoded_in": "fp32"}) if again else score


def _fault(media: Any, finite: bool, filtered: bool, sound: bool = True) -> Score | None:
    """Why a picture cannot be judged, or None."""
    if not finite:
        return Score.missing("the latents are not finite", "invalid_image")
    if not sound:
        return Score.missing("the decoder's numbers are not finite", "invalid_image")
    if filtered:
        return Score.missing("blackened by the pipeline's safety checker", "nsfw_filtered")
    # A sound video may fade in from black.
    if all(map(_flat, media if isinstance(media, list) else [media])):
        return Score.missing("the image has a single color", "invalid_image")
    return None


def _flat(image: Any) -> bool:
    return all(low == high for low, high in _bands(image.convert("RGB").getextrema()))


def _bands(extrema: Any) -> Sequence[tuple[int, int]]:
    bands: Sequence[tuple[int, int]] = extrema
    return bands


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
