"""The landscape probe: a run that measures how scores vary with the noise, and what that favours.

The probe is a search like any other, played by the ordinary driver with its records; this file
sets it up, and reads its rows.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from experiment.config import BudgetArgs, ExperimentConfig, SearchArgs
from experiment.plan import Plan
from experiment.probe_advice import Advice, advice
from experiment.probe_landscape import Landscape, landscape
from experiment.probe_picture import picture
from experiment.records import SUMMARY, CandidateRecord, read_candidates
from experiment.runner import plan
from experiment.store import model_folder
from search.core import Space
from search.probing import PreviewProbing, Probing
from utils import counted, find_checkpoint, significant, write_atomically
from verifiers.base import metric_name

WIDTH = 100
MANY_STEPS = 1000


@dataclass(frozen=True)
class Probe:
    """A probe that is set up: the run's config, and why it makes no previews, if it makes none."""

    config: ExperimentConfig
    skipped: str | None

    @property
    def search(self) -> Probing:
        made: Probing = self.config.search_args.build()
        return made

    @property
    def title(self) -> str:
        config = self.config
        model = model_folder(config.pretrained_model_name_or_path)
        metric = metric_name(config.verifier_args.metric)
        return f"{model} by {config.verifier_args.name} ({metric})"


def set_up(config: ExperimentConfig, noises: int, *, offline: bool = False) -> Probe:
    """The config with the probe in place of its search, without its budget, rounds and judges.

    offline: a checkpoint that is not here is taken to allow previews.
    """
    skipped = _no_previews(config, offline)
    kind = Probing if skipped else PreviewProbing
    search = SearchArgs.model_validate(
        {
            "search_method": f"{kind.__module__}:{kind.__name__}",
            "search_rounds": 1,
            "noises": noises,
        }
    )
    changes = {"search_args": search, "budget": BudgetArgs(), "judges": ()}
    return Probe(config.model_copy(update=changes), skipped)


def _no_previews(config: ExperimentConfig, offline: bool = False) -> str | None:
    """Why nothing can be previewed; None if it can."""
    if config.verifier_args.make().preview_noise is not None:
        return f"'{config.verifier_args.name}' judges an image beside a preview of its own"
    if config.pipeline_call_args.get("num_inference_steps") == 1:
        return "a single step has no point midway"
    checkpoint = find_checkpoint(config.pretrained_model_name_or_path)
    if offline and not Path(checkpoint).is_dir():
        return None
    from pipelines.loading import load_scheduler
    from pipelines.schedule import is_one_step

    scheduler = load_scheduler(checkpoint, config.scheduler)
    if is_one_step(scheduler):
        return None
    return f"{type(scheduler).__name__} keeps a history of steps, so sampling cannot stop midway"


def probe_plan(config: ExperimentConfig, noises: int) -> str:
    """What the probe will do and cost; loads nothing."""
    made = set_up(config, noises, offline=True)
    planned = plan(made.config)
    lines = [str(planned), f"{'verifications':<14}{_verifications(made, planned)}"]
    if made.skipped:
        lines.append(f"{'previews':<14}none: {made.skipped}")
    return "\n".join(lines)


def _verifications(probe: Probe, planned: Plan) -> str:
    images = probe.search.images
    about = "" if planned.steps or probe.skipped else "at most "
    # Enough steps for every preview, where their number is not known.
    span = SimpleNamespace(first=0, steps=planned.steps or MANY_STEPS)
    previews = 2 * probe.search.noises * len(probe.search.stops(cast(Space, span)))
    n = len(planned.prompts)
    return (
        f"{about}{images + previews} per prompt ({images} images, {previews} previews),"
        f" {about}{(images + previews) * n} in all"
    )


def findings(folder: Path, config: ExperimentConfig) -> str | None:
    """Of a run that is a probe, has ended and measured something: write probe.json and probe.png
    into its folder, and return the report."""
    if not isinstance(config.search_args.build(), Probing) or not (folder / SUMMARY).exists():
        return None
    rows = read_candidates(folder)
    return _written(folder, Probe(config, _no_previews(config)), rows) if rows else None


def _written(folder: Path, probe: Probe, rows: Sequence[CandidateRecord]) -> str:
    found = landscape(rows)
    favours = advice(found)
    total = json.loads((folder / SUMMARY).read_bytes())["total"]
    cost = {
        "nfe": total["nfe"],
        "images": sum(row.step == row.steps for row in rows),
        "previews": sum(row.step < row.steps for row in rows),
        "seconds": total["seconds"],
    }
    sample = f"{counted(found.prompts, 'prompt')} of {2 * probe.search.noises} noises"
    drawn = picture(found, f"{probe.title}, {sample}", probe.skipped)
    write_atomically(folder / "probe.png", drawn)
    content = {
        "model": probe.config.pretrained_model_name_or_path,
        "verifier": probe.config.verifier_args.name,
        "metric": probe.config.verifier_args.metric,
        "prompts": found.prompts,
        "noises": probe.search.noises,
        "steps": found.steps,
        "cost": cost,
        **found.as_json(),
        "previews_skipped": probe.skipped,
        "advice": [
            {"favours": list(a.favours), "settled": a.settled, "text": a.text} for a in favours
        ],
    }
    text = json.dumps(content, indent=4, allow_nan=False)
    write_atomically(folder / "probe.json", (text + "\n").encode())
    return "\n".join(_report(probe, found, favours, cost, folder))


def _report(
    probe: Probe, found: Landscape, favours: list[Advice], cost: dict[str, Any], folder: Path
) -> Iterator[str]:
    yield f"\nLandscape of {probe.title}, {counted(found.prompts, 'prompt')}, {found.steps} steps"
    yield (
        f"cost: {cost['nfe']} NFE, {cost['images']} images, {cost['previews']} previews,"
        f" {cost['seconds']:.1f} s"
    )
    yield "\nscores of two noises, correlation within a prompt [95 % interval]"
    for cosine, m in found.by_cosine.items():
        yield f"  cosine {cosine:<9g}{m!s:<22}{counted(m.n, 'pair')}"
    yield "\npreview and final score, rank correlation within a prompt [95 % interval]"
    if probe.skipped:
        yield f"  not measured: {probe.skipped}"
    for step, m in found.previews.items():
        share = f"step {step} ({100 * step / found.steps:.0f} %)"
        yield f"  {share:<16}{m!s:<22}{counted(m.n, 'image')}"
    yield "\nspread of final scores"
    w = found.within
    yield (
        f"  within a prompt, s.d.       {significant(w.value)}"
        f" [{significant(w.low)}, {significant(w.high)}]"
    )
    yield f"  variance between prompts    {found.between} of all"
    yield "\nwhat this favours"
    for line in favours:
        names = ", ".join(line.favours) or "note"
        sure = "" if line.settled else "?"
        yield from textwrap.wrap(
            f"{names}{sure}: {line.text}", WIDTH, initial_indent="  - ", subsequent_indent="    "
        )
    if not all(line.settled for line in favours):
        yield (
            "  ? the interval allows other answers too: more prompts (--num_prompts) or noises"
            f" (--probe {2 * probe.search.noises}) narrow it"
        )
    yield f"\nWritten: {folder / 'probe.json'} and probe.png"
