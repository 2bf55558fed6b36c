"""Which search methods a landscape favours: stated thresholds, each beside what it rests on.

The toy behind the first two rules: random Fourier features on a sphere in 512 dimensions, the gain
in standard deviations of the score after 50 images, means of 24 seeds. Behind the preview rule:
one-cut and three-cut pruning replayed on the score matrices published with TTSnap (200 prompts, 200
seeds, 20 steps; FLUX and SDXL by ImageReward, PickScore and HPSv2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from experiment.probe_landscape import Landscape
from experiment.probe_statistics import Measured
from utils import significant

NEAR, FAR = 0.95, 0.7
ABOVE = 1.01  # above any correlation
FEW_STEPS = 4
WIDE_ENOUGH = 0.52  # at cosine 0.7, midway between the toy's 0.74, where ses led, and its 0.30
PREVIEW_SIGNAL = 0.5
FIRST_HALF = 0.5
BEST_OF_16 = 1.77  # E[max of 16 standard normals]
MOSTLY_BETWEEN = 0.9


@dataclass(frozen=True)
class Advice:
    """What one number favours. settled: its whole interval says the same."""

    favours: tuple[str, ...]
    text: str
    settled: bool


@dataclass(frozen=True)
class Toy:
    """A landscape on which the methods were compared: correlation at cosine 0.95, and gains."""

    name: str
    correlation: float
    gains: str
    favours: tuple[str, ...]


TOYS = (  # each is near from midway below it to midway above it: 0.40, 0.72, 0.89
    Toy("rugged", 0.19, "all 2.3 to 2.5, random too, which needs nothing tuned", ("random",)),
    Toy(
        "middling",
        0.61,
        "random 2.3, zero-order (resample) 3.1, ses 2.2, evolution 2.6",
        ("zero-order", "evolution"),
    ),
    Toy(
        "smooth",
        0.82,
        "random 2.1, zero-order (resample) 3.2, ses 2.5, evolution 2.8",
        ("zero-order", "evolution", "ses"),
    ),
    Toy(
        "very smooth",
        0.95,
        "random 2.1, zero-order (resample) 3.2, ses 3.3, evolution 3.0",
        ("ses", "zero-order", "evolution"),
    ),
)


@dataclass(frozen=True)
class Cut:
    """What halving was worth where previews at half of the steps had this rank correlation."""

    low: float
    favours: tuple[str, ...]
    verdict: str


CUTS = (
    Cut(-ABOVE, (), "halving is not worth it: it was worth 0.75 to 1.1 times the images"),
    Cut(0.65, (), "halving is about even: it was worth 0.9 to 1.3 times the images"),
    Cut(0.75, ("halving",), "halving pays: it was worth 1.05 to 1.6 times the images"),
)


def advice(found: Landscape) -> list[Advice]:
    """What the landscape favours, one entry a rule that applies."""
    return [*_neighbours(found), *_few_steps(found), *_previews(found), *_spread(found)]


def _neighbours(found: Landscape) -> Iterator[Advice]:
    near, far = (found.by_cosine.get(cosine) for cosine in (NEAR, FAR))
    if near is None or not near.known:
        text = f"How scores correlate at cosine {NEAR} could not be measured"
        yield Advice(("random",), f"{text}: random supposes nothing.", False)
        return
    toy = next(toy for toy, low, high in _classes() if low <= near.value < high)
    text = (
        f"At cosine {NEAR} scores correlate by {near}: {toy.name}. On a toy at {toy.correlation}"
        f" the gains of 50 images were, in s.d. of the score: {toy.gains}."
    )
    others = [t.name for t, low, high in _classes() if t is not toy and near.overlaps(low, high)]
    if others:
        text += f" The interval allows {' and '.join(others)} too."
    yield Advice(toy.favours, text, not others)
    if toy is TOYS[0]:
        yield from _closer(found)
    elif far is not None and far.known:
        wide = far.value >= WIDE_ENOUGH
        settled = far.within(WIDE_ENOUGH, ABOVE) if wide else far.within(-ABOVE, WIDE_ENOUGH)
        says = (
            "ses, which makes large moves, can lead" if wide else "large moves forget their start"
        )
        text = f"At cosine {FAR} it is {far}, against {WIDE_ENOUGH}: {says}."
        yield Advice(("ses",) if wide else (), text, settled)


def _classes() -> list[tuple[Toy, float, float]]:
    """Each toy with the correlations nearer to it than to any other."""
    middles = [(a.correlation + b.correlation) / 2 for a, b in pairwise(TOYS)]
    return list(zip(TOYS, [-ABOVE, *middles], [*middles, ABOVE], strict=True))


def _closer(found: Landscape) -> Iterator[Advice]:
    """On rugged ground a shorter step may still find a slope."""
    for cosine, m in found.by_cosine.items():
        if cosine > NEAR and m.known and m.value >= TOYS[1].correlation:
            settled = m.low >= TOYS[1].correlation
            text = (
                f"Closer by, at cosine {cosine}, it is {m}, as on toys where zero-order gained at"
                f" 0.95: if you climb, set search_args.threshold={cosine}."
            )
            yield Advice(("zero-order",), text, settled)
            return


def _few_steps(found: Landscape) -> Iterator[Advice]:
    if found.steps <= FEW_STEPS:
        text = (
            f"Sampling takes {found.steps} steps: methods that branch on the way (steering, svdd,"
            " code, rbf) have no room, those that search over noises do."
        )
        yield Advice((), text, True)


def _previews(found: Landscape) -> Iterator[Advice]:
    known = {step: m for step, m in found.previews.items() if m.known}
    if not known or found.steps <= FEW_STEPS:
        return
    half = min(known, key=lambda step: abs(step / found.steps - FIRST_HALF))
    m = known[half]
    cut = [cut for cut in CUTS if m.value >= cut.low][-1]
    settled = [c for c in CUTS if m.low >= c.low][-1:] == [c for c in CUTS if m.high >= c.low][-1:]
    text = (
        f"Previews after {half} of {found.steps} steps rank images like the final score by {m}"
        f" (thresholds {CUTS[1].low} and {CUTS[2].low}): {cut.verdict}."
    )
    yield Advice(cut.favours, text, settled)
    yield _first_signal(found, known)


def _first_signal(found: Landscape, known: dict[int, Measured]) -> Advice:
    dumb = max((step for step, m in known.items() if m.value < PREVIEW_SIGNAL), default=-1)
    telling = [step for step in sorted(known) if step > dumb]
    if not telling or telling[0] > FIRST_HALF * found.steps:
        step = max((s for s in known if s <= FIRST_HALF * found.steps), default=min(known))
        text = (
            f"From no step of the first half on do previews have a rank correlation of"
            f" {PREVIEW_SIGNAL}: after {step} steps it is {known[step]}, so methods that choose by"
            " early previews (steering, svdd, code, rbf) would choose by noise."
        )
        settled = known[step].high < PREVIEW_SIGNAL
        return Advice(("random",), text, settled)
    m = known[telling[0]]
    text = (
        f"From step {telling[0]} on previews have a rank correlation of at least {PREVIEW_SIGNAL}"
        f" ({m}): methods that choose on the way can start there."
    )
    settled = m.low >= PREVIEW_SIGNAL
    return Advice(("steering", "svdd", "code", "rbf"), text, settled)


def _spread(found: Landscape) -> Iterator[Advice]:
    if found.flat:
        text = (
            f"{found.flat} of {found.prompts} prompts give one score to all images: no search finds"
            " anything there, so ask a verifier with finer scores."
        )
        yield Advice((), text, True)
    within, between = found.within, found.between
    if within.known and within.value > 0:
        text = (
            f"Within a prompt scores have an s.d. of {significant(within.value)}"
            f" [{significant(within.low)}, {significant(within.high)}]: best of 16 by random search"
            f" gains about {BEST_OF_16} of them, {significant(BEST_OF_16 * within.value)},"
            " which any other method has to beat."
        )
        yield Advice((), text, True)
    if between.known and between.value >= MOSTLY_BETWEEN:
        settled = between.low >= MOSTLY_BETWEEN
        text = (
            f"{between} of the variance lies between prompts: the score tells prompts apart rather"
            " than images of one; another verifier may leave more to choose."
        )
        yield Advice((), text, settled)
