"""A run on a Ray cluster: one that is there, or a local one.

This process holds the run folder, hands prompts to pipeline actors as they become free, and sums
up. A prompt whose actor is lost goes to the next one, which finds its journal and goes on. Ray is
imported here alone.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from experiment.config import ExperimentConfig, RayArgs
from experiment.interrupts import Interrupts
from experiment.lock import waited_for
from experiment.mirror import Mirror, Place
from experiment.outcome import unsearched
from experiment.progress import remove_state
from experiment.prompts import Prompt
from experiment.ray_actors import Job, Judges, Pipeline, Told
from experiment.records import read_object
from experiment.resume import config_of_run, finished, run_named, run_to_resume
from experiment.runner import Ran, hint, plan, saved, tell_failed
from experiment.shard_files import GATE, ShardStore, alone, clear_shard, merge
from experiment.sharded import refuse_listeners
from experiment.stops import FAILED_IN_A_ROW, Stopped
from experiment.store import RunStore, refuse_unwritable
from utils import ROOT, UserError
from verifiers.base import Item, Score

LOOK = 0.5  # seconds between looks at signals
LOST = 3  # actors that a prompt, or the start, may lose before it counts as failed
OBJECTS = 200 * 2**20  # bytes for what a local cluster's actors hand to each other
HERE = ("auto", "local")


def run_on_ray(
    config: ExperimentConfig,
    place: Place,
    resume: str | None = None,
    run_name: str | None = None,
) -> Ran:
    """Run the whole experiment, or go on with one, by the actors that `ray_args` asks for."""
    _ray()
    refuse_listeners(config)
    planned = plan(config)
    config.verifier_args.build()
    output_dir = place.root
    folder = None if resume is None else run_to_resume(config, output_dir, resume)
    if run_name is not None:
        folder = run_named(config, output_dir, run_name)
    refuse_unwritable(output_dir)
    if folder is None:
        store = RunStore.create(output_dir, config, run_name)
        store.write_json("config.json", saved(config, config.batch_size))
        folder = store.folder
    with alone(folder):
        config = config_of_run(folder, config)
        shards = ShardStore(folder.absolute(), config.export)
        if finished(folder):
            remove_state(shards)
            print(f"{folder} is finished: there is nothing to resume.", flush=True)
            return Ran(folder)
        left = clear_shard(shards, planned.prompts, planned.prompts)
        print(f"Results go to {folder}", flush=True)
        try:
            _searched(config, shards, planned.prompts, left, place.mirror)
        except Stopped as stop:
            raise Stopped(f"{stop}\n{hint(shards)}") from stop
        with waited_for(folder, GATE):
            failed = merge(shards, planned.prompts) or 0
        tell_failed(shards, failed)
        return Ran(folder, failed)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs Ray: pip install ray.") from error
    return ray


@contextmanager
def _cluster(args: RayArgs) -> Iterator[Any]:
    """Ray, connected to the cluster that is there, or to one of this machine's cores and GPUs."""
    ray = _ray()
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    asked = {"address": args.address, "log_to_driver": False, "logging_level": "ERROR"}
    # The workers take the project from where it is here.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"env_vars": {"PYTHONPATH": path, **_threads()}}
    try:
        try:
            if args.address == "local":
                raise ConnectionError
            ray.init(**asked, runtime_env=environment)
        except ConnectionError:
            if args.address not in HERE:
                raise UserError(
                    f"There is no Ray cluster at '{args.address}': mend ray_args.address, or leave"
                    " it out to start one here."
                ) from None
            cores = max(os.cpu_count() or 1, args.cores)
            ray.init(
                **quiet,
                address="local",
                num_cpus=cores,
                object_store_memory=OBJECTS,
                runtime_env=environment,
            )
        yield ray
    finally:
        ray.shutdown()


def _threads() -> dict[str, str]:
    """The number of threads, on which an image's last bits depend."""
    return {n: os.environ[n] for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if n in os.environ}


def _searched(
    config: ExperimentConfig,
    store: ShardStore,
    prompts: Sequence[Prompt],
    left: list[int],
    mirror: Mirror | None,
) -> None:
    if not left:
        return
    args = config.ray_args
    whole = saved(config, config.batch_size)
    url = None
    if mirror is not None:
        mirror.push()  # where the workers find it
        url = mirror.below(store.folder)
    job = Job(whole, str(store.folder), list(prompts), os.getcwd(), url)
    with _cluster(args) as ray:
        gpus = ray.cluster_resources().get("GPU", 0)
        judges = _verifiers(ray, args, job)
        ask = _Turns(judges) if judges else None
        make = ray.remote(Pipeline).options(
            num_cpus=args.pipeline_cpus, num_gpus=args.gpus_each(gpus), max_restarts=-1
        )
        actors = [make.remote() for _ in range(min(args.count(gpus), len(left)))]
        print(f"{len(left)} prompts for {len(actors)} pipelines on Ray", flush=True)
        _tell_short(ray, args, len(actors), gpus)
        with Interrupts():
            own = [prompt for prompt in prompts if prompt.index in left]
            queue = _Queue(ray, store, own, actors, (ray.put(job), ask))
            for sentence in ray.get([judge.ready.remote() for judge in judges]):
                if sentence is not None:
                    raise UserError(sentence)
            queue.run()
    if mirror is not None:
        mirror.pull(lambda name: f"{mirror.url}/{name}".startswith(f"{url}/"))


def _tell_short(ray: Any, args: RayArgs, pipelines: int, gpus: float) -> None:
    """Say so where the cluster, as it is now, has no room for all actors."""
    cores = pipelines * args.pipeline_cpus + args.verifiers * args.verifier_cpus
    cards = pipelines * args.gpus_each(gpus) + args.verifiers * args.verifier_gpus
    there = ray.cluster_resources().get("CPU", 0)
    if cores > there or cards > gpus:
        print(
            f"The actors take {cores:g} CPUs and {cards:g} GPUs, and the cluster has {there:g} and"
            f" {gpus:g}: some wait until it has grown.",
            flush=True,
        )


def _verifiers(ray: Any, args: RayArgs, job: Job) -> list[Any]:
    """The verifiers' actors, loading."""
    make = ray.remote(Judges).options(
        num_cpus=args.verifier_cpus, num_gpus=args.verifier_gpus, max_restarts=-1,
        max_task_retries=-1,
    )  # fmt: skip
    alone = replace(job, prompts=[])
    return [make.remote(alone) for _ in range(args.verifiers)]


class _Turns:
    """How pipelines ask the verifiers' actors: each the next in turn."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)
        self._next: Iterator[Any] | None = None

    def __call__(self, name: str, items: Sequence[Item]) -> list[Score]:
        import ray

        if self._next is None:  # each pipeline begins elsewhere
            first = os.getpid() % len(self._actors)
            self._next = itertools.cycle(self._actors[first:] + self._actors[:first])
        scores: list[Score] = ray.get(next(self._next).score.remote(name, list(items)))
        return scores


class _Queue:
    """Prompts that wait, and actors that are free or at work."""

    def __init__(
        self, ray: Any, store: ShardStore, left: Sequence[Prompt], actors: Any, told: Any
    ) -> None:
        self._ray = ray
        self._store = store
        self._told = told
        self._prompts = {prompt.index: prompt for prompt in left}
        self._waiting = deque(self._prompts)
        self._open = len(left)
        self._idle: list[Any] = []
        # What each unfinished call is about: a prompt, or for None the actor's own start.
        self._working: dict[Any, tuple[Any, int | None]] = {}
        self._lost: Counter[int] = Counter()
        self._away: list[Any] = []  # Ray is starting them again
        self._failed_in_a_row = self._starts_lost = 0
        for actor in actors:
            self._start(actor)

    def run(self) -> None:
        """Until every prompt is done or has failed."""
        while self._open:
            while self._waiting and self._idle:
                actor, index = self._idle.pop(), self._waiting.popleft()
                self._working[actor.search.remote(index)] = (actor, index)
            if self._working:
                ended, _ = self._ray.wait(list(self._working), timeout=LOOK)
            else:
                time.sleep(LOOK)
                ended = []
            Interrupts.check()
            away, self._away = self._away, []
            for future in ended:
                self._end(future)
            for actor in away:
                self._start(actor)

    def _start(self, actor: Any) -> None:
        self._working[actor.ready.remote(*self._told)] = (actor, None)

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
                    why = " ".join(str(error).split())
                    raise UserError(f"Ray's workers cannot start: {why}") from error
            self._away.append(actor)
            return
        self._idle.append(actor)
        if index is not None:
            self._open -= 1
            self._hear(answer)
        elif answer is not None:
            raise UserError(answer)
        self._starts_lost = 0

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
