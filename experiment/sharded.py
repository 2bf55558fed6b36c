"""One of several processes that share a run's prompts and its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiment.choices import agreed_engine
from experiment.config import ExperimentConfig
from experiment.listeners import refuse_listeners
from experiment.lock import waited_for
from experiment.progress import remove_state
from experiment.prompts import Prompt, load_prompts
from experiment.resume import config_of_run, finished, run_named, run_to_resume
from experiment.runner import Ran, load, plan, ran, saved, tell_failed
from experiment.shard_files import (
    GATE,
    ShardExperiment,
    ShardStore,
    clear_shard,
    merge,
    sharing,
)
from experiment.shards import Shard, agreed, own_device
from experiment.store import RunStore, refuse_unwritable, runs_of, time_stamp
from utils import UserError, counted


def run_shard(
    config: ExperimentConfig,
    output_dir: str,
    shard: Shard,
    resume: str | None = None,
    run_name: str | None = None,
) -> Ran:
    """Search for this process's prompts; the process that ends last sums the run up."""
    refuse_listeners(config, "run it in one process (--num_shards 1)")
    prompts = load_prompts(config)
    mine = shard.share(prompts, config.engine_args.share_batches)
    share = f"{len(mine)} of {counted(len(prompts), 'prompt')}"
    print(f"{str(shard).capitalize()}, by {shard.source}: {share}.")
    if not mine:
        return Ran(Path(output_dir))
    folder = _folder(config, output_dir, shard, resume, run_name)
    with sharing(folder, shard.index, shard.count):
        config = config_of_run(folder, config)
        store = ShardStore(folder, config.export)
        with waited_for(folder, GATE):
            if finished(folder):
                remove_state(store)
                print(f"{folder} is finished: there is nothing to do.", flush=True)
                return Ran(folder)
            left = clear_shard(store, prompts, mine)
        if left:
            _searched(config, store, shard, mine)
        return Ran(folder, _merged(store, prompts, shard))


def _folder(
    config: ExperimentConfig, output_dir: str, shard: Shard, resume: str | None, name: str | None
) -> Path:
    """The run folder that all processes find; whoever comes first makes it, with its config."""
    if resume not in (None, "auto"):
        folder = run_to_resume(config, output_dir, str(resume))
        assert folder is not None
        return folder
    if resume is None:
        name = name or shard.launch or agreed(time_stamp())
        if name is None:
            raise UserError(
                f"{str(shard).capitalize()} must know the run folder of the others: give the same"
                " --run_name to all, or --resume auto."
            )
    refuse_unwritable(output_dir)
    parent = runs_of(output_dir, config)
    parent.mkdir(parents=True, exist_ok=True)
    with waited_for(parent, GATE):
        if name is None:
            folder = run_to_resume(config, output_dir, "auto")
        else:
            folder = run_named(config, output_dir, name)
        if folder is None:
            store = RunStore.create(output_dir, config, name)
            store.write_json("config.json", saved(config, config.batch_size))
            folder = store.folder
    return folder


def _searched(
    config: ExperimentConfig, store: ShardStore, shard: Shard, mine: list[Prompt]
) -> None:
    """Search for the process's own prompts."""
    planned = plan(config)
    share = replace(planned, prompts=mine)  # whether to compile depends on how much there is to do
    config, engine = agreed_engine(
        config, planned, store, lambda config: _placed(config, shard), lambda c: load(c, share)
    )
    print(f"Results go to {store.folder}", flush=True)
    ran(engine.experiment(config, share, store, ShardExperiment))


def _placed(config: ExperimentConfig, shard: Shard) -> ExperimentConfig:
    device = own_device(config.engine_args.device, shard)
    engine_args = config.engine_args.model_copy(update={"device": device})
    return config.model_copy(update={"engine_args": engine_args})


def _merged(store: ShardStore, prompts: list[Prompt], shard: Shard) -> int:
    """How many prompts of the run failed, said by the process that ends last: a launcher takes an
    exit code other than 0 for a reason to end the others."""
    with waited_for(store.folder, GATE):
        in_all = merge(store, prompts)
    if in_all is None:
        print(f"{str(shard).capitalize()} is done; the last one to end writes summary.json.")
        return 0
    done = "The prompt is" if len(prompts) == 1 else f"All {len(prompts)} prompts are"
    print(f"{done} done: {store.folder / 'summary.json'}")
    tell_failed(store, in_all)
    return in_all
