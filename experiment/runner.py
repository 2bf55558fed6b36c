"""Runs an experiment: prompts x search -> files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.calls import called, refuse_unfit
from experiment.config import ExperimentConfig
from experiment.evaluate import Evaluated, Evaluator
from experiment.guests import guest
from experiment.manifest import manifest
from experiment.plan import Plan, images_at_once, make_plan, refuse_cuts
from experiment.prompts import Prompt, load_prompts
from experiment.rounds import RoundBook, RoundResult, recorded
from experiment.store import RunStore, refuse_unwritable
from pipelines.denoiser import Denoiser
from pipelines.loading import (
    check_dtype,
    choose_device,
    hush,
    load_pipeline,
    load_scheduler,
    refuse_reserved,
)
from pipelines.placement import settle
from pipelines.quantization import check_quantization
from pipelines.sde import Sde
from pipelines.space import LatentSpace
from search.core import Rollout
from search.ledger import Cost, Ledger
from search.play import play
from utils import UserError, find_checkpoint, free_name, json_number, significant
from verifiers.base import Chosen, Item


def plan(config: ExperimentConfig) -> Plan:
    """The run's plan; refuses what cannot work, loads nothing."""
    refuse_reserved(config.pipeline_call_args)
    checkpoint = find_checkpoint(config.pretrained_model_name_or_path)
    return make_plan(config, checkpoint, load_prompts(config))


def run(config: ExperimentConfig, output_dir: str) -> RunStore:
    """Run the whole experiment; returns the store of its folder."""
    planned = plan(config)
    refuse_unwritable(output_dir)
    engine = load(config, planned)
    store = RunStore.create(output_dir, config)
    store.write_json("config.json", saved(config, engine.batch_size, engine.vae))
    store.write_json("manifest.json", engine.manifest)
    print(f"Results go to {store.folder}", flush=True)
    experiment = Experiment(
        config, engine.denoiser, engine.verifier, engine.judges, store, planned, engine.batch_size
    )
    experiment.run()
    return store


@dataclass(frozen=True)
class Engine:
    """What searches run on, loaded; its manifest says what that is."""

    denoiser: Denoiser
    verifier: Chosen
    judges: Mapping[str, Chosen]
    batch_size: int
    manifest: dict[str, Any]

    @property
    def vae(self) -> str | None:
        """How pictures are decoded, where that was chosen here."""
        residence = self.denoiser.residence
        return None if residence is None else residence.placement.vae


def load(config: ExperimentConfig, planned: Plan) -> Engine:
    """Check what can be checked before weights load, then load them."""
    hush()
    verifier = config.verifier_args.build()
    judges = _numbered([judge.build() for judge in config.judges])
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


def _numbered(judges: Sequence[Chosen]) -> dict[str, Chosen]:
    """Judges by name; the second of the same name gets a number."""
    named: dict[str, Chosen] = {}
    for judge in judges:
        named[free_name(judge.name, named)] = judge
    return named


def saved(config: ExperimentConfig, batch_size: int, vae: str | None = None) -> dict[str, Any]:
    """The resolved config with the batch size and the way of decoding in use, on which an image's
    last bits depend."""
    whole = config.resolved()
    whole["engine_args"]["batch_size"] = batch_size
    whole["engine_args"]["vae"] = vae or config.engine_args.vae
    whole["batch_size_for_img_gen"] = None
    return whole


@dataclass(frozen=True)
class Outcome:
    """One prompt's search, ended."""

    prompt: Prompt
    book: RoundBook
    spent: Cost

    def summary(self) -> dict[str, Any]:
        best = self.book.best
        return {
            "prompt": self.prompt.text,
            "prompt_index": self.prompt.index,
            "category": self.prompt.category,
            "best": best
            and {
                "id": best.id,
                "score": json_number(self.book.value(best)),
                "round": best.round,
                "seed": best.seed,
                "path": best.path,
                "judges": recorded(best.judged),
            },
            **_cost(self.spent),
            "statuses": dict(self.book.statuses),
        }


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
    ) -> None:
        self.config = config
        self.denoiser = denoiser
        self.verifier = verifier
        self.judges = {name: guest(j, denoiser.residence) for name, j in judges.items()}
        self.store = store
        self.planned = planned
        self.batch_size = batch_size
        self.sde = Sde(**config.stochastic_args.model_dump())

    def run(self) -> list[Outcome]:
        """Search for every prompt in turn; the summary is written last."""
        from tqdm import tqdm

        outcomes = []
        prompts = self.planned.prompts
        for prompt in tqdm(prompts, desc="prompts", disable=None, position=0):
            outcome = self.search(prompt)
            outcomes.append(outcome)
            tqdm.write(report(outcome))
            sys.stdout.flush()  # a log file is read while the run goes on
        total = sum((outcome.spent for outcome in outcomes), Cost())
        self.store.write_summary(
            {"prompts": [outcome.summary() for outcome in outcomes], "total": _cost(total)}
        )
        return outcomes

    def search(self, prompt: Prompt) -> Outcome:
        """Search for one prompt, writing as it goes."""
        config = self.config
        search = config.search_args.build()
        space = LatentSpace(
            self.denoiser, prompt.text, config.seed, prompt.occurrence, self.batch_size
        )
        ledger = self._ledger(prompt)
        values: dict[int, float] = {}
        label = self.denoiser.label(prompt.text)
        book = RoundBook(self.store, prompt, self.verifier, self.judges, values, label)
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
                self.batch_size,
                keep,
                values,
                sde=self.sde if "stochastic" in search.needs else None,
            )
            for _ in play(search, space, evaluator, ledger, config.rounds):
                pass
        book.close()
        if book.best is not None and book.best.path is not None:
            item = Item(book.media(book.best), prompt.text, label=label)
            verifier = guest(self.verifier, self.denoiser.residence)
            for judge in (verifier, *self.judges.values()):
                judge.chose(item)
        return Outcome(prompt, book, ledger.spent)

    def _ledger(self, prompt: Prompt) -> Ledger:
        budget = self.config.budget.build()
        if budget.rows is None:
            return Ledger(budget)
        first, steps = self.denoiser.span(prompt.text, self.batch_size)
        each = self.denoiser.rows_each(prompt.text)
        image = each * (steps - first)
        if budget.rows < image:
            raise UserError(
                f"A budget of {budget.rows} rows cannot finish one image of {image} rows: raise"
                " budget.rows or lower num_inference_steps."
            )
        return Ledger(budget, each)

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
            position=1,
        )


def report(outcome: Outcome) -> str:
    """A prompt's rounds as people read them."""
    text = " ".join(outcome.prompt.text.split())
    lines = [f"\n{text if len(text) <= 100 else text[:97] + '...'}"]
    lines += [_round_line(result) for result in outcome.book.results]
    best = outcome.book.best
    if best is None:
        return "\n".join([*lines, "  nothing could be scored: see candidates.jsonl for reasons"])
    lines.append(
        f"  best     {significant(outcome.book.value(best)):>7}  {best.path}"
        f"  ({outcome.spent.nfe} NFE, {outcome.spent.seconds:.1f} s)"
    )
    return "\n".join(lines)


def _round_line(result: RoundResult) -> str:
    if result.rejected:
        return f"  round {result.round:<3}rejected: none beat its pivot"
    if result.winner is None:
        return f"  round {result.round:<3}no score"
    winner = result.winner
    judged = "".join(
        f"  {judge} {significant(score.value)}" for judge, score in winner.judged.items()
    )
    return (
        f"  round {result.round:<3}{significant(result.value):>7}"
        f"  of {result.num_noises:<4} seed {winner.seed:<11}{judged}"
    )


def _cost(cost: Cost) -> dict[str, Any]:
    return {"nfe": cost.nfe, "rows": cost.rows, "seconds": round(cost.seconds, 3)}
