"""What pruning would have cost and brought, from recorded scores alone: no model runs.

A run that scored previews of all its finished candidates (as `main.py --probe` records them) holds
all that a policy could have seen: pools of it are drawn, pruned at the recorded previews, and the
best survivor's recorded score is what the policy would have got. Beside it stands best of N for
the same NFE, by the unbiased estimator. Pools are drawn without replacement, so a pool of nearly
all candidates is nearly always the same one and its interval is over prompts only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiment.estimators import expected_best
from experiment.recorded_draws import Draws, is_scored, read_draws
from experiment.statistics import (
    FEWEST,
    LEVEL,
    Difference,
    Estimate,
    difference,
    estimate,
    is_binary,
)
from utils import UserError, significant

POOLS = 2000  # drawn for each prompt and size
POLICY = re.compile(r"(best|halving@([\d.]+(?:,[\d.]+)*)(?::([\d.]+))?)")


@dataclass(frozen=True)
class Policy:
    """Cuts after these shares of the steps, each leaving a share of the pool; none: best of N."""

    cuts: tuple[float, ...] = ()
    keep: float = 0.5

    @classmethod
    def parse(cls, text: str) -> Policy:
        """From "best", "halving@0.5", "halving@0.3,0.6" or "halving@0.5:0.25" (a quarter kept)."""
        match = POLICY.fullmatch(text)
        if match is None:
            raise UserError(
                f"There is no policy '{text}': write best, halving@0.5, or halving@0.3,0.6:0.25 to"
                " keep a quarter at each of two cuts."
            )
        cuts = tuple(float(c) for c in match[2].split(",")) if match[2] else ()
        keep = float(match[3]) if match[3] else 0.5
        if list(cuts) != sorted(set(cuts)) or not all(0 < c < 1 for c in cuts) or not 0 < keep < 1:
            raise UserError(
                f"The policy '{text}' needs rising shares of the steps between 0 and 1, and a share"
                " to keep between 0 and 1."
            )
        return cls(cuts, keep)

    def sizes(self, pool: int) -> list[int]:
        """How many are left after each cut, as `halving` counts them: rounded up."""
        left = [pool]
        for _ in self.cuts:
            left.append(max(1, math.ceil(left[-1] * self.keep)))
        return left[1:]

    def nfe(self, pool: int, steps: Sequence[int], total: int, first: int = 0) -> int:
        """Steps denoised from `first` on, previews at `steps` and the last at `total`."""
        counts = [pool, *self.sizes(pool)]
        ends = [first, *steps, total]
        return sum(n * (b - a) for n, (a, b) in zip(counts, pairwise(ends), strict=True))


@dataclass(frozen=True)
class Recorded:
    """One prompt's finished candidates. previews: [cuts, n]; final: [n]."""

    previews: NDArray[np.float64]
    final: NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """A policy with pools of one size: means over prompts with their intervals.

    beside: expected best of as many whole images as the same NFE pay for, between the two nearest
    whole numbers.
    """

    pool: int
    nfe: int
    images: float
    score: Estimate
    beside: Estimate
    gain: Difference


@dataclass(frozen=True)
class Pools:
    """What a policy is played on. unscored: draws left out for want of a score."""

    prompts: Sequence[Recorded]
    unscored: int


def simulate(folder: Path, text: str) -> str:
    """The policy on a run's records, as a table."""
    policy = Policy.parse(text)
    draws = read_draws(folder)
    steps = _steps(draws, policy)
    pools = _pools(draws, steps)
    least = min(len(prompt.final) for prompt in pools.prompts)
    sizes = sorted({2**k for k in range(1, least.bit_length()) if 2**k <= least} | {least})
    outcomes = [_played(policy, pools.prompts, n, steps, draws.total, draws.first) for n in sizes]
    return _table(text, outcomes, draws, pools, steps)


def _steps(draws: Draws, policy: Policy) -> list[int]:
    """The recorded steps nearest to the policy's cuts."""
    total = draws.total
    recorded = sorted({s for prompt in draws.prompts for own in prompt for s in own if s < total})
    if policy.cuts and not recorded:
        raise UserError(
            f"'{draws.folder}' has no previews to prune by: record some with main.py --probe."
        )
    steps = [min(recorded, key=lambda step: abs(step - cut * total)) for cut in policy.cuts]
    if len(set(steps)) < len(steps):
        raise UserError(
            f"'{draws.folder}' has previews after steps {recorded} of {total} only, too few for"
            " these cuts."
        )
    return steps


def _pools(draws: Draws, steps: Sequence[int]) -> Pools:
    """Each prompt's draws that have a score at every step asked for, and at the end."""
    found, unscored = [], 0
    for prompt in draws.prompts:
        whole = [draw for draw in prompt if is_scored(draw, (*steps, draws.total))]
        unscored += len(prompt) - len(whole)
        if len(whole) >= 2:
            previews = np.array([[draw[step] for draw in whole] for step in steps])
            previews = previews.reshape(len(steps), len(whole))
            found.append(Recorded(previews, np.array([draw[draws.total] for draw in whole])))
    if not found:
        at = "both at these previews and at the end" if steps else "at the end"
        raise UserError(
            f"'{draws.folder}' has no prompt with two drawn noises that were scored {at}: give a"
            " run by random search, or one of main.py --probe."
        )
    return Pools(found, unscored)


def _played(
    policy: Policy,
    prompts: Sequence[Recorded],
    pool: int,
    steps: Sequence[int],
    total: int,
    first: int = 0,
) -> Outcome:
    nfe = policy.nfe(pool, steps, total, first)
    images = nfe / (total - first)
    got = np.array([_mean_best(policy, prompt, pool) for prompt in prompts])
    beside = np.array([_between(prompt.final, images) for prompt in prompts])
    share = all(is_binary(prompt.final) for prompt in prompts)
    score, other = estimate(got, binary=share), estimate(beside, binary=share)
    return Outcome(pool, nfe, images, score, other, difference(got, beside, binary=share))


def _mean_best(policy: Policy, prompt: Recorded, pool: int) -> float:
    """The mean over random pools of the best survivor's final score."""
    if not policy.cuts:
        return expected_best(prompt.final, pool)
    draw = np.random.default_rng(0)
    n = len(prompt.final)
    alive = np.argsort(draw.random((POOLS, n)), axis=1)[:, :pool]
    for previews, size in zip(prompt.previews, policy.sizes(pool), strict=True):
        order = np.argsort(-previews[alive], axis=1, kind="stable")[:, :size]
        alive = np.take_along_axis(alive, order, axis=1)
    return float(prompt.final[alive].max(axis=1).mean())


def _between(final: NDArray[np.float64], images: float) -> float:
    """Expected best of a number of images that need not be whole."""
    low = min(math.floor(images), len(final))
    high = min(low + 1, len(final))
    if low < 1:
        return expected_best(final, 1)
    share = min(images, len(final)) - low
    return (1 - share) * expected_best(final, low) + share * expected_best(final, high)


def _table(
    text: str, outcomes: Sequence[Outcome], draws: Draws, pools: Pools, steps: Sequence[int]
) -> str:
    """A line for each size of pool; best of N has only itself to stand beside."""
    prompts = f"{len(pools.prompts)} of {len(draws.prompts)} prompts"
    cuts = f", cuts after steps {', '.join(map(str, steps))} of {draws.total}" if steps else ""
    bounded = outcomes[0].score.bounded
    sure = f"{LEVEL:.0%} intervals over prompts" if bounded else f"no intervals: under {FEWEST}"
    head = f"{text} on {prompts}{cuts}; {sure}"
    beside = f"{'best of N, same NFE':>22}{'difference':>30}" if steps else ""
    return "\n".join(
        [
            head,
            *_left_out(draws, pools),
            f"{'pool':>6}{'NFE':>8}{'score':>10}{beside}",
            *(_line(outcome, pruned=bool(steps)) for outcome in outcomes),
        ]
    )


def _left_out(draws: Draws, pools: Pools) -> list[str]:
    notes = []
    if draws.others:
        notes.append(f"{draws.others} finished candidates that are no fresh noises")
    if pools.unscored:
        notes.append(f"{pools.unscored} drawn noises without a score")
    return [f"left out: {', '.join(notes)}"] if notes else []


def _line(outcome: Outcome, *, pruned: bool) -> str:
    score, gain = outcome.score, outcome.gain
    line = f"{outcome.pool:>6}{outcome.nfe:>8}{significant(score.mean):>10}"
    if not pruned:
        ends = f" [{significant(score.low)}, {significant(score.high)}]"
        return f"{line}{ends if score.bounded else ''}"
    ends = f" [{gain.low:+.3g}, {gain.high:+.3g}]" if gain.bounded else ""
    return (
        f"{line}{f'{significant(outcome.beside.mean)} (N = {outcome.images:.3g})':>22}"
        f"{f'{gain.mean:+.3g}{ends}':>30}"
    )
