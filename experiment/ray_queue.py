"""Which prompt goes to which of a Ray cluster's workers, and what becomes of it."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiment.interrupts import Interrupts
from experiment.outcome import unsearched
from experiment.prompts import Prompt
from experiment.ray_actors import Begun, Ready, Told
from experiment.records import read_object
from experiment.shard_files import ShardStore
from experiment.stops import FAILED_IN_A_ROW, Stopped
from utils import UserError
from verifiers.base import Item, Score

LOOK = 0.5  # seconds between looks at signals
LEAVE = 5.0  # seconds in which actors may clean up
LOST = 3  # actors that a prompt, or the start, may lose before it counts as failed


def placed(ray: Any, actors: Sequence[Any]) -> None:
    """Wait until these actors have their places in the cluster."""
    waiting = [actor.__ray_ready__.remote() for actor in actors]
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK)
        Interrupts.check()


class Turns:
    """How pipelines ask the verifiers' actors: each the next in turn.

    In a run these only become more: as many are the same ones.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)
        self._next: Iterator[Any] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turns) and len(self._actors) == len(other._actors)

    def __call__(self, name: str, items: Sequence[Item]) -> list[Score]:
        import ray

        if self._next is None:  # each pipeline begins elsewhere
            first = os.getpid() % len(self._actors)
            self._next = itertools.cycle(self._actors[first:] + self._actors[:first])
        scores: list[Score] = ray.get(next(self._next).score.remote(name, list(items)))
        return scores


class Queue:
    """Prompts that wait, and actors that are free or at work.

    job: of each pipeline, as Ray keeps it. judges: whom pipelines ask; none: they judge themselves.
    begin: notes what the first pipeline has chosen, and returns the job of all after it.
    """

    def __init__(
        self,
        ray: Any,
        store: ShardStore,
        left: Sequence[Prompt],
        job: Any,
        pipelines: Sequence[Any],
        judges: Sequence[Any],
        begin: Callable[[Begun], Any],
    ) -> None:
        self._ray = ray
        self._store = store
        self._job = job
        self._begin: Callable[[Begun], Any] | None = begin
        self._prompts = {prompt.index: prompt for prompt in left}
        self._waiting = deque(self._prompts)
        self._open = len(left)
        self._idle: list[Any] = []
        # What each unfinished call is about: a prompt, or for None the actor's own start.
        self._working: dict[Any, tuple[Any, int | None]] = {}
        self._lost: Counter[int] = Counter()
        self._away: list[Any] = []  # Ray is starting them again
        self._failed_in_a_row = self._starts_lost = 0
        self._judging = {judge.ready.remote(): judge for judge in judges}  # those not loaded yet
        self._judges: list[Any] = []
        self._ask = Turns(()) if judges else None
        for actor in pipelines:
            self._start(actor)

    def run(self) -> None:
        """Until every prompt is done or has failed."""
        while self._open:
            while self._waiting and self._idle and (self._ask is None or self._judges):
                actor, index = self._idle.pop(), self._waiting.popleft()
                self._working[actor.search.remote(index, self._ask)] = (actor, index)
            if self._working or self._judging:
                ended, _ = self._ray.wait([*self._working, *self._judging], timeout=LOOK)
            else:
                time.sleep(LOOK)
                ended = []
            Interrupts.check()
            away, self._away = self._away, []
            for future in ended:
                if future in self._judging:
                    self._seat(future)
                else:
                    self._end(future)
            for actor in away:
                self._start(actor)
        self._part()

    def _part(self) -> None:
        """Have workers clean up: Ray ends them without asking."""
        if leaving := [actor.leave.remote() for actor in self._idle]:
            self._ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE)

    def _start(self, actor: Any) -> None:
        self._working[actor.ready.remote(self._job, self._ask)] = (actor, None)

    def _seat(self, future: Any) -> None:
        """A verifier has loaded: from now on it is asked in its turn."""
        judge = self._judging.pop(future)
        try:
            refusal = self._ray.get(future)
        except self._ray.exceptions.RayActorError as error:
            raise _no_start(error) from error
        if refusal is not None:
            raise UserError(refusal)
        self._judges.append(judge)
        self._ask = Turns(self._judges)

    def _end(self, future: Any) -> None:
        actor, index = self._working.pop(future)
        try:
            answer = self._ray.get(future)
        except self._ray.exceptions.RayActorError as error:
            if index is not None:
                self._mourn(index)
            elif not isinstance(error, self._ray.exceptions.ActorUnavailableError):
                self._starts_lost += 1
                if self._starts_lost >= LOST:
                    raise _no_start(error) from error
            self._away.append(actor)
            return
        self._starts_lost = 0
        if index is None:
            self._welcome(actor, answer)
            return
        self._idle.append(actor)
        self._open -= 1
        self._hear(answer)

    def _welcome(self, actor: Any, ready: Ready) -> None:
        """A pipeline has loaded. If it had to choose alone, the first one's choices are the run's;
        any other is told of them and starts again."""
        if ready.refusal is not None:
            raise UserError(ready.refusal)
        if ready.chosen is not None:
            if self._begin is None:
                self._start(actor)
                return
            self._job, self._begin = self._begin(ready.chosen), None
        self._idle.append(actor)

    def _hear(self, told: Told) -> None:
        print(told.text, end="", flush=True)
        if told.stopped is not None:
            sentence, code = told.stopped
            raise Stopped(sentence) if code == Stopped.code else UserError(sentence)
        self._failed_in_a_row = self._failed_in_a_row + 1 if told.failed else 0
        if self._failed_in_a_row >= FAILED_IN_A_ROW:
            raise Stopped(f"{self._failed_in_a_row} prompts in a row failed.")

    def _mourn(self, index: int) -> None:
        """A worker is lost: its prompt waits for another, unless it has cost too many."""
        self._lost[index] += 1
        if self._lost[index] < LOST:
            print(f"A worker was lost: prompt {index + 1} goes to the next one.", flush=True)
            self._waiting.appendleft(index)
            return
        self._open -= 1
        prompt = self._prompts[index]
        reason = f"{LOST} workers were lost over it"
        begun = read_object(self._store.folder / "config.json")
        self._store.write_failed(unsearched(prompt, reason), begun["engine_args"]["batch_size"])
        print(f"\n{prompt.text}\n  failed: {reason}", flush=True)


def _no_start(error: Exception) -> UserError:
    return UserError(f"Ray's workers cannot start: {' '.join(str(error).split())}")
