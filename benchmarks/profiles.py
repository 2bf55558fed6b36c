"""How well cheap drafts rank noises: each profile's scores beside those of exact images.

    python -m benchmarks.profiles                                    # bundled FLUX, 24 prompts x 16
    python -m benchmarks.profiles --config configs/shapes_sd.json --profiles fp8 draft
    python -m benchmarks.profiles --config my.json --num_prompts 50 --json profiles.json

For each prompt the same noises are denoised exactly and by each profile, and judged by the config's
verifier. `rank` is Spearman's correlation of the two scores over a prompt's noises, averaged over
prompts. `kept` is the share of best-of-N's gain that is left when drafts choose and the chosen is
rendered exactly: sum over prompts of (exact score of the drafts' best - mean), over the sum of
(best - mean). Both with 95 % bootstrap intervals over prompts. `work` counts the denoiser's
arithmetic (torch's FlopCounterMode) against exact, over the first prompts: counting is slow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import machine
from experiment.config import ExperimentConfig, load_config
from experiment.estimators import rank_correlation
from experiment.profiles import WHOLE, Profile
from experiment.runner import Engine, load, plan
from experiment.statistics import LEVEL, RESAMPLES, bootstrap
from pipelines.batching import spans
from pipelines.profiles import THRESHOLD
from pipelines.space import LatentSpace
from search.core import draft_steps
from utils import UserError, write_atomically
from verifiers.base import Item

CHEAP = tuple(name for name in get_args(Profile) if name != "exact")
COUNTED = 2  # prompts whose arithmetic is counted
OVERRIDES: dict[str, Any] = {"prompt": None, "judges": [], "search_args": {}, "budget": {}}

Scores = NDArray[np.float64]
"""[prompts, noises]."""


def measure(
    config: ExperimentConfig,
    profiles: Sequence[str],
    noises: int,
    share: float,
    threshold: float,
) -> dict[str, Any]:
    """Every profile's agreement with exact images, over the config's prompts."""
    planned = plan(config)
    engine = load(config, planned)
    texts = [prompt.text for prompt in planned.prompts]
    exact, whole = _scored(engine, config, texts, noises, None)
    found = {}
    for name in profiles:
        engine.denoiser.use_profile(name, threshold=threshold)
        steps = draft_steps(engine.denoiser.inference_steps, 1.0 if name in WHOLE else share)
        scores, work = _scored(engine, config, texts, noises, steps)
        found[name] = {**agreement(exact, scores), "work": work / whole, "steps": steps}
        print(line(name, found[name]), flush=True)
    engine.denoiser.use_profile("exact")
    return {
        "checkpoint": config.pretrained_model_name_or_path, "verifier": config.verifier_args.name,
        "prompts": len(texts), "noises": noises, "steps": engine.denoiser.inference_steps,
        "threshold": threshold,
        "gain": float((exact.max(1) - exact.mean(1)).mean()), "profiles": found,
        "machine": machine(engine.manifest["device"].split()[0]),
    }  # fmt: skip


def agreement(exact: Scores, drafts: Scores) -> dict[str, Any]:
    """Rank correlation and gain kept, each with its interval over prompts."""
    ranks = [rank_correlation(list(a), list(b)) for a, b in zip(exact, drafts, strict=True)]
    chosen = np.take_along_axis(exact, drafts.argmax(1)[:, None], 1)[:, 0]
    kept, gain = chosen - exact.mean(1), exact.max(1) - exact.mean(1)
    rank = bootstrap(np.array(ranks))
    return {
        "rank": [rank.mean, rank.low, rank.high],
        "median_rank": float(np.median(ranks)),
        "kept": [float(kept.sum() / gain.sum()), *_ratio_interval(kept, gain)],
    }


def _ratio_interval(above: Scores, below: Scores) -> list[float]:
    """Percentile bootstrap of a ratio of sums over prompts."""
    counts = np.random.default_rng(0).multinomial(
        len(above), np.full(len(above), 1 / len(above)), size=RESAMPLES
    )
    ends = np.quantile(counts @ above / (counts @ below), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(end) for end in ends]


def _scored(
    engine: Engine, config: ExperimentConfig, texts: Sequence[str], noises: int, steps: int | None
) -> tuple[Scores, float]:
    """Scores of every prompt's noises, and the FLOP of denoising them; steps: of drafts."""
    denoiser, scores, work = engine.denoiser, [], 0.0
    for number, text in enumerate(texts):
        space = LatentSpace(denoiser, text, config.seed, 0, engine.batch_size)
        if steps is not None:
            space = space.drafted(steps / denoiser.inference_steps)
        drawn, found = space.draw(noises), []
        for a, b in spans(noises, engine.batch_size):
            part = drawn.select(range(a, b))
            counter = FlopCounterMode(display=False)
            counting = counter if number < COUNTED else nullcontext()
            with denoiser.drafting(steps), counting:
                done = denoiser.denoise(text, part.latents, part.seeds, part.step, space.steps)
            work += counter.get_total_flops()
            with denoiser.drafting(steps):
                images = denoiser.decode(text, done.clean, part.seeds, space.steps).media
            found += [
                score.value for score in engine.verifier.score([Item(i, text) for i in images])
            ]
        scores.append(found)
    return np.array(scores), work


def line(name: str, found: Mapping[str, Any]) -> str:
    rank, kept = (
        f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in (found["rank"], found["kept"])
    )
    return f"{name:<8}{found['steps']:3d} steps, work {found['work']:.2f}: rank {rank}, kept {kept}"


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flags.add_argument("--config", default="configs/shapes_flux.json")
    flags.add_argument("--profiles", nargs="+", default=list(CHEAP), choices=CHEAP)
    flags.add_argument("--num_prompts", type=int, default=24)
    flags.add_argument("--noises", type=int, default=16, help="a prompt")
    flags.add_argument("--share", type=float, default=0.5, help="of the steps, by profile draft")
    flags.add_argument("--threshold", type=float, default=THRESHOLD, help="of profile cached")
    flags.add_argument("--steps", type=int, help="of exact images; default: the config's")
    flags.add_argument("--json", type=Path, help="write everything measured there")
    args = flags.parse_args(argv)
    try:
        if args.noises < 2 or args.num_prompts < 1 or not 0 < args.share < 1:
            raise UserError("Give 2 noises or more, a prompt or more, and a share between 0 and 1.")
        changes = {**OVERRIDES, "num_prompts": args.num_prompts}
        if args.steps is not None:
            changes["pipeline_call_args.num_inference_steps"] = args.steps
        config = load_config(args.config, changes)
        found = measure(config, args.profiles, args.noises, args.share, args.threshold)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json is not None:
        write_atomically(args.json, (json.dumps(found, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
