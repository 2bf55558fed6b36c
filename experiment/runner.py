"""Runs an experiment: prompts x search -> files."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.calls import called, refuse_scheduler, refuse_unfit
from experiment.config import ExperimentConfig
from experiment.disk import short_of_room
from experiment.fitting import first_attention, fit
from experiment.guests import Apart, placed, verifier_device
from experiment.lock import locked
from experiment.manifest import device_name, manifest
from experiment.plan import Plan, make_plan, refuse_cuts
from experiment.progress import remove_state
from experiment.prompts import Prompt, load_prompts
from experiment.resume import (
    CONFIG_HASH,
    check_world,
    config_hash,
    config_of_run,
    finished,
    run_named,
    run_to_resume,
    told_of,
)
from experiment.searching import Experiment
from experiment.shard_files import alone, take_over
from experiment.speed import images_at_once
from experiment.stops import Stopped
from experiment.store import RunStore, refuse_unwritable
from experiment.tracker import asked_trackers
from experiment.trackers import Trackers, tracked
from pipelines.denoiser import Denoiser
from pipelines.loading import (
    check_dtype,
    choose_device,
    hush,
    load_pipeline,
    only_deterministic,
    pipeline_index,
    refuse_reserved,
)
from pipelines.parts import kind_of, models_of, named_denoisers
from pipelines.placement import settle
from pipelines.profiles import check_profile, copies_needed
from pipelines.quantization import check_quantization
from utils import (
    UserError,
    counted,
    digest,
    find_checkpoint,
    free_name,
)
from verifiers.base import Chosen

logger = logging.getLogger(__name__)


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
    report_to: Sequence[str] = (),
) -> Ran:
    """Run the whole experiment, or go on with one.

    resume: the folder of a run, or "auto": the newest one of this config, or a new one where there
    is none. A run that is finished is left as it is. run_name: of a run that begins, or goes on if
    it has begun. report_to: names of trackers.
    """
    trackers = asked_trackers(report_to)
    folder = None if resume is None else run_to_resume(config, output_dir, resume)
    if run_name is not None:
        folder = run_named(config, output_dir, run_name)
    if folder is not None:
        try:
            return _gone_on(config, folder, trackers)
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"{error.filename} cannot be used ({error.strerror}): mend that, or start a new"
                " run."
            ) from error
    planned = plan(config)
    refuse_unwritable(output_dir)
    engine = load(config, planned)
    store = RunStore.create(output_dir, config, run_name)
    with locked(store.folder):
        if not (store.folder / "config.json").exists():
            store.write_json("config.json", engine.saved(config))
            store.write_json("manifest.json", world(engine, planned, store.folder))
            print(f"Results go to {store.folder}", flush=True)
            return _ran_alone(config, planned, engine, store, trackers)
    # While this process was loading, another has begun the run of this name.
    return run(config, output_dir, resume, run_name, report_to)


def _gone_on(config: ExperimentConfig, folder: Path, trackers: Sequence[str]) -> Ran:
    """Go on with a run in the way it began."""
    refuse_unwritable(str(folder))
    with alone(folder):
        config = config_of_run(folder, config)
        store = RunStore(folder, config.export)
        if finished(folder):
            remove_state(store)
            print(
                f"{folder} is finished: there is nothing to resume. Leave out --resume for a new"
                " run.",
                flush=True,
            )
            return Ran(folder)
        planned = plan(config)
        take_over(store, planned.prompts)
        engine = load(config, planned)
        check_or_write_world(store, world(engine, planned, folder))
        print(f"Going on with {folder}", flush=True)
        return _ran_alone(config, planned, engine, store, trackers)


def check_or_write_world(store: RunStore, now: Mapping[str, Any]) -> None:
    """Say what differs from when the run began, or note it down as it begins."""
    if other := check_world(store.folder, now):
        print(told_of(other))
    if not (store.folder / "manifest.json").exists():
        store.write_json("manifest.json", now)


def _ran_alone(
    config: ExperimentConfig,
    planned: Plan,
    engine: Engine,
    store: RunStore,
    names: Sequence[str],
) -> Ran:
    with tracked(names, store, config, planned.prompts) as trackers:
        done = ran(engine.experiment(config, planned, store, trackers=trackers))
    tell_failed(store, done.failed)
    return done


def ran(experiment: Experiment) -> Ran:
    """Run it to its end, and say how to go on where it does not get there."""
    store, call_args = experiment.store, experiment.denoiser.call_args
    tell_notes(experiment.planned)
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


def tell_notes(planned: Plan) -> None:
    """What is hardly what was wanted, before it costs anything."""
    for note in planned.notes:
        print(f"Note: {note}.", file=sys.stderr, flush=True)


def tell_failed(store: RunStore, failed: int) -> None:
    if failed:
        said = f"{counted(failed, 'prompt')} failed: summary.json says why."
        print(f"{said} {hint(store)}", flush=True)


def hint(store: RunStore) -> str:
    return f"To resume: python main.py --resume {shlex.quote(str(store.folder))}"


def world(engine: Engine, planned: Plan, folder: Path) -> dict[str, Any]:
    """The manifest: all that images may depend on beside the config, and a digest of that."""
    texts = json.dumps([prompt.text for prompt in planned.prompts])
    return {
        **engine.manifest,
        "prompts_hash": digest(texts),
        CONFIG_HASH: config_hash(folder),
    }


@dataclass(frozen=True)
class Engine:
    """What searches run on, loaded; its manifest says what that is."""

    denoiser: Denoiser
    verifier: Chosen
    judges: Mapping[str, Chosen]
    batch_size: int
    manifest: dict[str, Any]
    compiled: bool = False

    def experiment(
        self,
        config: ExperimentConfig,
        planned: Plan,
        store: RunStore,
        kind: type[Experiment] = Experiment,
        trackers: Trackers | None = None,
    ) -> Experiment:
        """The planned prompts' searches, to be written to this store."""
        return kind(
            config,
            self.denoiser,
            self.verifier,
            self.judges,
            store,
            planned,
            self.batch_size,
            trackers,
        )

    def saved(self, config: ExperimentConfig) -> dict[str, Any]:
        """The resolved config with what was chosen here, on which an image's last bits depend."""
        residence = self.denoiser.residence
        vae = None if residence is None else residence.placement.vae
        return saved(config, self.batch_size, vae, self.compiled, self.denoiser.attention)


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
        if not config.climbs:  # which needs it at hand
            verifier = elsewhere(verifier, "")
    for name, judge in judges.items():
        if judge.preview_noise is not None:
            raise UserError(f"'{name}' wants previews, which only verifier_args gets, not a judge.")
    call = called(config, planned.checkpoint)
    refuse_unfit(config, call, planned.prompts)
    refuse_scheduler(config, planned.checkpoint)
    refuse_cuts(config, planned.checkpoint)
    device = choose_device(config.engine_args.device)
    check_dtype(config.torch_dtype, device)
    only_deterministic(config.engine_args.deterministic)
    check_quantization(config.engine_args.quantization, config.torch_dtype, device)
    _check_profile(config, planned.checkpoint)
    judging = _judging_device(config, device)
    verifier = placed(verifier, judging, device)
    judges = {name: placed(judge, judging, device) for name, judge in judges.items()}
    apart = any(isinstance(judge, Apart) for judge in (verifier, *judges.values()))
    attention = first_attention(config, device, apart=apart)

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
    beside = [judge for judge in asked.values() if not isinstance(judge, Apart)]
    batch_size = images_at_once(config, call.build)
    residence = settle(
        pipe,
        device,
        call.args,
        batch_size,
        offload=config.engine_args.offload,
        vae=config.engine_args.vae,
        gradient=config.climbs,
        take_turns=config.use_low_gpu_vram and bool(beside),
        others=[judge.offload for judge in beside],
        copies=copies_needed(config.engine_args.profile, named_denoisers(pipe), device),
    )
    denoiser = Denoiser(pipe, call.args, residence)
    denoiser.use_attention(attention)
    check_profile(config.engine_args.profile, (), residence.placement.offload, settled=True)
    engine = config.engine_args
    denoiser.use_profile(engine.profile, engine.quantization, engine.cache_threshold)

    denoiser.expect(prompt.text for prompt in planned.prompts)
    _try_call(config, denoiser, planned.prompts[0], batch_size)
    denoiser.try_profile(planned.prompts[0].text)
    ran_on = manifest(pipe, planned.checkpoint, device)
    ran_on["placement"] = residence.described()
    ran_on["verifier_device"] = device_name(judging)
    ran_on["rubrics"] = {name: judge.rubric_hash for name, judge in asked.items()}
    fitted = fit(config, planned, denoiser, device, call.build, ran_on, apart=apart, beside=beside)
    ran_on["placement"] = fitted.placement
    return Engine(denoiser, verifier, judges, fitted.batch_size, ran_on, fitted.compiled)


def _judging_device(config: ExperimentConfig, device: str) -> str:
    """Where verifiers run; refuses another place than the pipeline's to a search by gradients."""
    wanted = config.engine_args.verifier_device
    if not config.climbs:
        return verifier_device(wanted, device)
    if wanted not in ("auto", device):
        raise UserError(
            "A search that needs gradients has its verifier beside the pipeline: leave out"
            " engine_args.verifier_device."
        )
    return device


def _check_profile(config: ExperimentConfig, checkpoint: str) -> None:
    models = [model for _, model in models_of(pipeline_index(checkpoint))]
    parts = [model for model in models if kind_of(model) == "denoiser"]
    check_profile(config.engine_args.profile, parts, config.engine_args.offload)


def _try_call(
    config: ExperimentConfig, denoiser: Denoiser, prompt: Prompt, batch_size: int
) -> None:
    """Call the pipeline up to its first step: what it refuses, it refuses here."""
    try:
        denoiser.steps(prompt.text, batch_size)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        also = "" if config.scheduler is None else " or the config's scheduler"
        raise UserError(f"The pipeline refuses its call arguments{also}: {reason}.") from error


def named_judges(config: ExperimentConfig) -> dict[str, Chosen]:
    """Judges by name; the second of the same name gets a number."""
    named: dict[str, Chosen] = {}
    for judge in (args.build() for args in config.judges):
        named[free_name(judge.name, named)] = judge
    return named


def saved(
    config: ExperimentConfig,
    batch_size: int | str,
    vae: str | None = None,
    compiled: bool | None = None,
    attention: str | None = None,
) -> dict[str, Any]:
    """The resolved config with the batch size, how to decode and attend, and whether to compile.

    What is None is not chosen yet, and stays as asked for.
    """
    whole = config.resolved()
    whole["engine_args"]["batch_size"] = batch_size
    whole["engine_args"]["vae"] = vae or config.engine_args.vae
    whole["engine_args"]["attention"] = attention or config.engine_args.attention
    if compiled is not None:
        whole["engine_args"]["compile"] = "on" if compiled else "off"
    whole["batch_size_for_img_gen"] = None
    return whole
