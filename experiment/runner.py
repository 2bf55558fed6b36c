"""Runs an experiment: prompts x search -> files."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.calls import called, refuse_unfit
from experiment.config import ExperimentConfig
from experiment.disk import short_of_room
from experiment.lock import locked
from experiment.manifest import manifest
from experiment.plan import Plan, images_at_once, make_plan, refuse_cuts
from experiment.progress import remove_state
from experiment.prompts import Prompt, load_prompts
from experiment.resume import check_world, config_of_run, finished, run_named, run_to_resume
from experiment.searching import Experiment
from experiment.shard_files import alone, take_over
from experiment.stops import Stopped
from experiment.store import RunStore, refuse_unwritable
from pipelines.denoiser import Denoiser
from pipelines.loading import (
    check_dtype,
    choose_device,
    hush,
    load_pipeline,
    load_scheduler,
    only_deterministic,
    refuse_reserved,
)
from pipelines.placement import settle
from pipelines.quantization import check_quantization
from utils import (
    UserError,
    digest,
    find_checkpoint,
    free_name,
)
from verifiers.base import Chosen


def plan(config: ExperimentConfig) -> Plan:
    """The run's plan; refuses what cannot work, loads nothing."""
    refuse_reserved(config.pipeline_call_args)
    checkpoint = find_checkpoint(config.pretrained_model_name_or_path)
    return make_plan(config, checkpoint, load_prompts(config))


@dataclass(frozen=True)
class Ran:
    """A run that has ended: its folder, and how many prompts could not be searched for."""

    folder: Path
    failed: int = 0


def run(
    config: ExperimentConfig,
    output_dir: str,
    resume: str | None = None,
    run_name: str | None = None,
) -> Ran:
    """Run the whole experiment, or go on with one.

    resume: the folder of a run, or "auto": the newest unfinished one of this config, or a new one.
    run_name: of a run that begins, or goes on if it has begun.
    """
    folder = None if resume is None else run_to_resume(config, output_dir, resume)
    if run_name is not None:
        folder = run_named(config, output_dir, run_name)
    if folder is not None:
        return _gone_on(config, folder)
    planned = plan(config)
    refuse_unwritable(output_dir)
    engine = load(config, planned)
    store = RunStore.create(output_dir, config, run_name)
    with locked(store.folder):
        store.write_json("config.json", saved(config, engine.batch_size, engine.vae))
        store.write_json("manifest.json", world(engine, planned))
        print(f"Results go to {store.folder}", flush=True)
        return ran_alone(engine.experiment(config, planned, store))


def _gone_on(config: ExperimentConfig, folder: Path) -> Ran:
    """Go on with a run in the way it began."""
    refuse_unwritable(str(folder))
    with alone(folder):
        config = config_of_run(folder, config)
        store = RunStore(folder, config.export)
        if finished(folder):
            remove_state(store)
            print(f"{folder} is finished: there is nothing to resume.", flush=True)
            return Ran(folder)
        planned = plan(config)
        take_over(store, planned.prompts)
        engine = load(config, planned)
        check_or_write_world(store, world(engine, planned))
        print(f"Going on with {folder}", flush=True)
        return ran_alone(engine.experiment(config, planned, store))


def check_or_write_world(store: RunStore, now: Mapping[str, Any]) -> None:
    """Say what differs from when the run began, or note it down as it begins."""
    if other := check_world(store.folder, now):
        print(f"Other {', '.join(other)} than before: images may differ in their last bits.")
    if not (store.folder / "manifest.json").exists():
        store.write_json("manifest.json", now)


def ran_alone(experiment: Experiment) -> Ran:
    done = ran(experiment)
    tell_failed(experiment.store, done.failed)
    return done


def ran(experiment: Experiment) -> Ran:
    """Run it to its end, and say how to go on where it does not get there."""
    store, call_args = experiment.store, experiment.denoiser.call_args
    if warning := short_of_room(experiment.planned, call_args, store.folder):
        print(warning, flush=True)
    try:
        experiment.run()
    except Stopped as stop:
        raise Stopped(f"{stop}\n{hint(store)}") from stop
    except KeyboardInterrupt:
        print(f"Interrupted. {hint(store)}", file=sys.stderr)
        raise
    return Ran(store.folder, experiment.failed)


def tell_failed(store: RunStore, failed: int) -> None:
    if failed:
        print(f"{failed} prompts failed: summary.json says why. {hint(store)}", flush=True)


def hint(store: RunStore) -> str:
    return f"To resume: python main.py --resume {shlex.quote(str(store.folder))}"


def world(engine: Engine, planned: Plan) -> dict[str, Any]:
    """The manifest: all that images may depend on beside the config."""
    texts = json.dumps([prompt.text for prompt in planned.prompts])
    return {**engine.manifest, "prompts_hash": digest(texts)}


@dataclass(frozen=True)
class Engine:
    """What searches run on, loaded; its manifest says what that is."""

    denoiser: Denoiser
    verifier: Chosen
    judges: Mapping[str, Chosen]
    batch_size: int
    manifest: dict[str, Any]

    def experiment(
        self,
        config: ExperimentConfig,
        planned: Plan,
        store: RunStore,
        kind: type[Experiment] = Experiment,
    ) -> Experiment:
        """The planned prompts' searches, to be written to this store."""
        return kind(
            config, self.denoiser, self.verifier, self.judges, store, planned, self.batch_size
        )

    @property
    def vae(self) -> str | None:
        """How pictures are decoded, where that was chosen here."""
        residence = self.denoiser.residence
        return None if residence is None else residence.placement.vae


def load(
    config: ExperimentConfig,
    planned: Plan,
    elsewhere: Callable[[Chosen, str], Chosen] | None = None,
) -> Engine:
    """Check what can be checked before weights load, then load them.

    elsewhere: what to ask in place of a verifier (named "") and of each judge, by its name.
    """
    hush()
    verifier = config.verifier_args.build()
    judges = named_judges(config)
    if elsewhere is not None:
        judges = {name: elsewhere(judge, name) for name, judge in judges.items()}
        if "gradient" not in config.search_args.build().needs:  # which needs it at hand
            verifier = elsewhere(verifier, "")
    for name, judge in judges.items():
        if judge.preview_noise is not None:
            raise UserError(f"'{name}' wants previews, which only verifier_args gets, not a judge.")
    call = called(config, planned.checkpoint)
    refuse_unfit(config, call, planned.prompts)
    if config.scheduler is not None:
        load_scheduler(planned.checkpoint, config.scheduler)  # a wrong one is refused here
    refuse_cuts(config, planned.checkpoint)
    device = choose_device(config.engine_args.device)
    check_dtype(config.torch_dtype, device)
    only_deterministic(config.engine_args.deterministic)
    check_quantization(config.engine_args.quantization, config.torch_dtype, device)

    pipe = load_pipeline(
        planned.checkpoint,
        config.torch_dtype,
        None,
        build=call.build,
        scheduler=config.scheduler,
        quantization=config.engine_args.quantization,
    )
    asked = {"verifier": verifier, **judges}
    for judge in asked.values():
        judge.load(device)
    batch_size = images_at_once(config, call.build)
    residence = settle(
        pipe,
        device,
        call.args,
        batch_size,
        offload=config.engine_args.offload,
        vae=config.engine_args.vae,
        gradient="gradient" in config.search_args.build().needs,
        take_turns=config.use_low_gpu_vram,
        others=[judge.offload for judge in asked.values()],
    )
    denoiser = Denoiser(pipe, call.args, residence)

    _try_call(denoiser, planned.prompts[0], batch_size)
    ran_on = manifest(pipe, planned.checkpoint, device)
    ran_on["placement"] = residence.described()
    ran_on["rubrics"] = {name: judge.rubric_hash for name, judge in asked.items()}
    return Engine(denoiser, verifier, judges, batch_size, ran_on)


def _try_call(denoiser: Denoiser, prompt: Prompt, batch_size: int) -> None:
    """Call the pipeline up to its first step: what it refuses, it refuses here."""
    try:
        denoiser.steps(prompt.text, batch_size)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"The pipeline refuses its call arguments: {reason}.") from error


def named_judges(config: ExperimentConfig) -> dict[str, Chosen]:
    """Judges by name; the second of the same name gets a number."""
    named: dict[str, Chosen] = {}
    for judge in (args.build() for args in config.judges):
        named[free_name(judge.name, named)] = judge
    return named


def saved(
    config: ExperimentConfig, batch_size: int | str, vae: str | None = None
) -> dict[str, Any]:
    """The resolved config with the batch size and the way of decoding in use, on which an image's
    last bits depend."""
    whole = config.resolved()
    whole["engine_args"]["batch_size"] = batch_size
    whole["engine_args"]["vae"] = vae or config.engine_args.vae
    whole["batch_size_for_img_gen"] = None
    return whole
