"""A run on a Ray cluster: one that is there, or a local one.

This process holds the run folder, hands prompts to pipeline actors as they become free, and sums
up. A prompt whose actor is lost goes to the next one, which finds its journal and goes on. Ray is
imported here alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from experiment.config import ExperimentConfig, RayArgs
from experiment.interrupts import Interrupts
from experiment.listeners import refuse_listeners
from experiment.lock import waited_for
from experiment.mirror import Mirror, Place, is_made
from experiment.progress import remove_state
from experiment.prompts import Prompt
from experiment.ray_actors import BEGUN, Begun, Job, Judges, Pipeline
from experiment.ray_queue import LOST, Queue, placed
from experiment.records import read_object
from experiment.resume import config_of_run, finished, run_named, run_to_resume
from experiment.runner import Ran, hint, plan, saved, tell_failed, tell_notes
from experiment.shard_files import GATE, ShardStore, alone, clear_shard, merge
from experiment.stops import Stopped
from experiment.store import RunStore, refuse_unwritable
from utils import ROOT, UserError, counted

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
    refuse_listeners(config, "run it without --executor ray")
    if config.engine_args.share_batches > 1:
        raise UserError(
            "On Ray a pipeline searches for one prompt at a time: set engine_args.share_batches to"
            " 1, or use --num_shards."
        )
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
        tell_notes(planned)
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
def _cluster(args: RayArgs) -> Iterator[tuple[Any, bool]]:
    """Ray, connected to the cluster that is there, or to one of this machine's cores and GPUs; and
    whether that is all that there will ever be."""
    ray, fixed = _ray(), False
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
            cores, fixed = max(os.cpu_count() or 1, args.cores), True
            ray.init(
                **quiet,
                address="local",
                num_cpus=cores,
                object_store_memory=OBJECTS,
                runtime_env=environment,
            )
        yield ray, fixed
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
    with _cluster(args) as (ray, fixed), Interrupts():
        gpus = ray.cluster_resources().get("GPU", 0)
        count = min(args.count(gpus), len(left))
        share = math.ceil(len(prompts) / count)
        begun = _begun(store) if url else None
        job = Job(whole, str(store.folder), list(prompts), os.getcwd(), url, share, begun)
        shared = f"{counted(len(left), 'prompt')} for {counted(count, 'pipeline')}"
        print(f"{shared} on Ray", flush=True)
        if config.engine_args.prompts_at_once not in ("auto", 1):
            print("On Ray a pipeline searches for one prompt at a time: see docs/scaling.md.")
        pipelines, judges = _actors(ray, args, job, count, fixed)
        own = [prompt for prompt in prompts if prompt.index in left]

        def begin(chosen: Begun) -> Any:
            """Note it here and at the URL, before there is any image that depends on it."""
            for name, content in chosen.items():
                store.write_json(name, content)
            if mirror is not None:
                _pushed(mirror)
            return ray.put(replace(job, begun=chosen))

        Queue(ray, store, own, ray.put(job), pipelines, judges, begin).run()
    if mirror is not None:
        top = store.folder.relative_to(mirror.local.absolute()).as_posix()
        mirror.pull(starts=[f"{top}/"], hollow=is_made)  # to sum up nobody looks at pictures


def _pushed(mirror: Mirror) -> None:
    try:
        mirror.push()
    except Exception as error:  # each store has its own
        raise Stopped(f"The run's choices cannot be copied to {mirror.url}: {error}") from error


def _begun(store: ShardStore) -> Begun | None:
    """The choices of a run that has begun; workers that share no folder with it are told them."""
    paths = [store.folder / name for name in BEGUN]
    if not all(path.exists() for path in paths):
        return None
    return {path.name: read_object(path) for path in paths}


def _actors(ray: Any, args: RayArgs, job: Job, count: int, fixed: bool) -> tuple[Any, Any]:
    """The pipelines and the verifiers; those for which the cluster has no room yet will wait.

    One of each comes first: neither kind may take all the room before the other has any.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    make = ray.remote(Pipeline).options(
        num_cpus=args.pipeline_cpus, num_gpus=args.gpus_each(gpus), max_restarts=-1
    )
    # An answer that has cost so many verifiers is not asked for again.
    make_judge = ray.remote(Judges).options(
        num_cpus=args.verifier_cpus, num_gpus=args.verifier_gpus, max_restarts=-1,
        max_task_retries=LOST,
    )  # fmt: skip
    alone = replace(job, prompts=[])
    first = min(args.verifiers, 1)
    missing = _missing(ray, args, 1, first)
    if missing and fixed:
        raise UserError(
            f"{missing}: not even one of each kind starts. Lower pipeline_gpus or verifier_gpus of"
            " ray_args."
        )
    pipelines, judges = [make.remote()], [make_judge.remote(alone) for _ in range(first)]
    if missing := _missing(ray, args, count, args.verifiers):
        print(f"{missing}: some wait until there is room.", flush=True)
        placed(ray, [*pipelines, *judges])
    pipelines += [make.remote() for _ in range(count - 1)]
    judges += [make_judge.remote(alone) for _ in range(args.verifiers - first)]
    return pipelines, judges


def _missing(ray: Any, args: RayArgs, pipelines: int, verifiers: int) -> str:
    """In words, where the cluster, as it is now, has no room for so many; else nothing."""
    there = ray.cluster_resources()
    cores, cards = there.get("CPU", 0), there.get("GPU", 0)
    asked = pipelines * args.pipeline_cpus + verifiers * args.verifier_cpus
    wanted = pipelines * args.gpus_each(cards) + verifiers * args.verifier_gpus
    if asked <= cores and wanted <= cards:
        return ""
    who = f"{counted(pipelines, 'pipeline')} and {counted(verifiers, 'verifier')}"
    return (
        f"{who} take {asked:g} CPUs and {wanted:g} GPUs, and the cluster has {cores:g} and"
        f" {cards:g}"
    )
