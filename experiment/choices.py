"""What a run's processes choose together: whoever loads first chooses, the others take it over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from experiment.calls import called
from experiment.config import ExperimentConfig
from experiment.fitting import first_attention, fit
from experiment.guests import Apart
from experiment.lock import waited_for
from experiment.plan import Plan
from experiment.records import read_object
from experiment.resume import config_of_run
from experiment.runner import Engine, check_or_write_world, world
from experiment.shard_files import GATE, ShardStore
from experiment.store import RunStore
from pipelines.compiling import undo
from pipelines.loading import choose_device
from pipelines.memory_errors import free
from pipelines.parts import denoisers

REFITTED = ("attention", "batch_size", "compile")  # of engine_args, without loading again
CHOSEN = (*REFITTED, "vae")


def agreed_engine(
    config: ExperimentConfig,
    planned: Plan,
    store: ShardStore,
    own: Callable[[ExperimentConfig], ExperimentConfig],
    begin: Callable[[ExperimentConfig], Engine],
) -> tuple[ExperimentConfig, Engine]:
    """The run's config with all choices made, and an engine that has made the same.

    planned: the whole run. own: the config as this process takes it, on its own device. begin:
    loads.
    """
    engine = begin(own(config))
    with waited_for(store.folder, GATE):
        config, others = settled(config, engine, store)
        check_or_write_world(store, world(engine, planned, store.folder))
    if others <= set(REFITTED):
        return config, refitted(engine, own(config), planned) if others else engine
    del engine  # else the second is put where the first has left room
    free()
    return config, begin(own(config))


def settled(
    config: ExperimentConfig, engine: Engine, store: RunStore
) -> tuple[ExperimentConfig, set[str]]:
    """The run's config with all choices made: by whoever loads first. Also which of them this
    engine has made otherwise. Call it with the gate held."""
    chosen = engine.saved(config)
    if not (store.folder / "manifest.json").exists():
        store.write_json("config.json", chosen)
    run = read_object(store.folder / "config.json")
    others = {key for key in CHOSEN if run["engine_args"][key] != chosen["engine_args"][key]}
    return config_of_run(store.folder, config), others


def refitted(engine: Engine, config: ExperimentConfig, planned: Plan) -> Engine:
    """The engine with the batch size, the attention and the compilation that the config names."""
    denoiser, device = engine.denoiser, choose_device(config.engine_args.device)
    apart = any(isinstance(judge, Apart) for judge in (engine.verifier, *engine.judges.values()))
    undo([*denoisers(denoiser.pipe), *denoiser.twins])
    denoiser.use_attention(first_attention(config, device, apart=apart))
    build = called(config, planned.checkpoint).build
    fitted = fit(config, planned, denoiser, device, build, engine.manifest, apart=apart)
    ran_on = {**engine.manifest, "placement": fitted.placement}
    return replace(engine, batch_size=fitted.batch_size, compiled=fitted.compiled, manifest=ran_on)
