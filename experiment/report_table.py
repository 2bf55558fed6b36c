"""Runs in numbers: table.csv, one line a quantity, and table.md to be read."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment.report_features import Gallery
from experiment.report_measures import (
    COSTS,
    Pair,
    Told,
    best_of_n,
    drawn,
    pairs,
    shared_metrics,
    spent,
)
from experiment.statistics import FEWEST, LEVEL, RESAMPLES, Estimate, estimate
from utils import counted, significant, write_atomically

COLUMNS = (
    "run", "quantity", "metric", "against", "n", "prompts", "value", "low", "high", "category"
)  # fmt: skip
MOST_CATEGORIES = 40  # more are as good as none
MOST_FAILED = 50  # prompts that table.md names
SIGNED = "+.3g"


@dataclass(frozen=True)
class Line:
    """One quantity of a run. n: of draws, for the best of n; low and high: nan for no interval.

    category: of the prompts it is over, if these are not all.
    """

    run: str
    quantity: str
    metric: str
    prompts: int
    estimate: Estimate
    against: str = ""
    n: int | None = None
    category: str = ""


def write_tables(
    runs: Sequence[Told], folder: Path, galleries: Sequence[Gallery] = ()
) -> tuple[Path, Path]:
    """table.csv and table.md in a folder. galleries: what a feature model says of each run."""
    lines = list(_lines(runs, galleries))
    csv_path, md_path = folder / "table.csv", folder / "table.md"
    write_atomically(csv_path, as_csv(lines).encode("utf-8", "replace"))
    write_atomically(md_path, as_markdown(runs, galleries).encode("utf-8", "replace"))
    return csv_path, md_path


def as_csv(lines: Sequence[Line]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        ends = (line.estimate.mean, line.estimate.low, line.estimate.high)
        numbers = ["" if math.isnan(value) else f"{value:.9g}" for value in ends]
        n = "" if line.n is None else line.n
        head = [line.run, line.quantity, line.metric, line.against, n, line.prompts]
        writer.writerow([*head, *numbers, line.category])
    return text.getvalue()


def _lines(runs: Sequence[Told], galleries: Sequence[Gallery]) -> Iterator[Line]:
    for run in runs:
        name, winners = run.name, len(run.winners)
        for metric in run.metrics:
            known = _known(run.scores(metric.label))
            yield Line(name, "winner", metric.label, len(known), estimate(known))
        for category, keys in _categories(run).items():
            for metric in run.metrics:
                known = _known(run.scores(metric.label, keys))
                mean = estimate(known)
                yield Line(name, "winner", metric.label, len(known), mean, category=category)
        for cost in COSTS:
            each = _costs(run, cost)
            yield Line(name, cost, "", len(each), estimate(each, binary=False))
        for n, best in best_of_n(run):
            yield Line(name, "best_of_n", run.metric, len(drawn(run)), best, n=n)
        for label, rho in run.correlations.items():
            number = Estimate(rho, math.nan, math.nan)
            yield Line(name, "rank_correlation", run.metric, winners, number, against=label)
        if run.judges:
            number = Estimate(float(len(run.fooled)), math.nan, math.nan)
            yield Line(name, "fooled", run.metric, winners, number)
        for status, count in run.failures.items():
            number = Estimate(float(count), math.nan, math.nan)
            yield Line(name, "failures", status, len(run.run.searched), number)
        for reason, count in Counter(run.run.failed.values()).items():
            number = Estimate(float(count), math.nan, math.nan)
            yield Line(name, "failed_prompts", reason, run.run.wanted, number)
        if run.run.unfinished:
            number = Estimate(float(run.run.done), math.nan, math.nan)
            yield Line(name, "finished_prompts", "", run.run.wanted, number)
    for run, gallery in zip(runs, galleries, strict=False):
        for quantity, value in gallery.numbers.items():
            number = Estimate(value, math.nan, math.nan)
            yield Line(run.name, quantity, gallery.model, gallery.images, number)
    for pair in pairs(runs):
        ours, theirs = pair.ours.name, pair.theirs.name
        yield Line(ours, "difference", pair.metric, pair.prompts, pair.difference, theirs)
        for quantity, p in (("p", pair.difference.p), ("p_holm", pair.difference.adjusted)):
            if not math.isnan(p):
                number = Estimate(p, math.nan, math.nan)
                yield Line(ours, quantity, pair.metric, pair.prompts, number, theirs)
        yield Line(ours, "win_rate", pair.metric, pair.prompts, pair.wins, theirs)


def as_markdown(runs: Sequence[Told], galleries: Sequence[Gallery]) -> str:
    lines = [
        "# " + ", ".join(_plain(run.name) for run in runs),
        "",
        f"In brackets: {LEVEL:.0%} intervals over prompts, from {FEWEST} prompts on: Wilson's where"
        f" all scores are 0 or 1, else by bootstrap ({RESAMPLES} resamples).",
        "",
        *_winners(runs),
        *_failed(runs),
        *_by_category(runs),
        *_best_of_n(runs),
        *_trust(runs),
        *_against(runs),
        *_galleries(runs, galleries),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _winners(runs: Sequence[Told]) -> Iterator[str]:
    labels = list(dict.fromkeys(metric.label for run in runs for metric in run.metrics))
    costs = [f"{cost} per prompt" for cost in COSTS]
    yield from ("## Winners", "")
    yield from _head("run", "prompts", *labels, *costs)
    for run in runs:
        scores = [_text(estimate(_known(run.scores(label)))) for label in labels]
        spending = [_text(estimate(_costs(run, cost), binary=False)) for cost in COSTS]
        scored = f"{len(run.winners)} of {run.run.wanted}"
        scored += f", unfinished: {run.run.done} done" if run.run.unfinished else ""
        yield _row(run.name, scored, *scores, *spending)
    yield ""


def _failed(runs: Sequence[Told]) -> Iterator[str]:
    """The prompts whose search failed, and why."""
    if not any(run.run.failed for run in runs):
        return
    yield from ("## Prompts that failed", "")
    for run in runs:
        failed = list(run.run.failed.items())
        for (text, _), reason in failed[:MOST_FAILED]:
            who = f"{_plain(run.name)}, " if len(runs) > 1 else ""
            yield f"- {who}{_plain(text)}: {_plain(reason)}"
        if len(failed) > MOST_FAILED:
            yield f"- and {len(failed) - MOST_FAILED} more of {_plain(run.name)}"
    yield ""


def _by_category(runs: Sequence[Told]) -> Iterator[str]:
    """Means of the metric that each run went by, a line a category of prompts."""
    found = {run.name: _categories(run) for run in runs}
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    if not names:
        return
    yield from ("## Winners by category", "")
    heads = (f"{run.name}: {run.metric}" if len(runs) > 1 else run.metric for run in runs)
    yield from _head("category", "prompts", *heads)
    for category in names:
        keys = {key for each in found.values() for key in each.get(category, ())}
        scores = (_known(run.scores(run.metric, found[run.name].get(category, ()))) for run in runs)
        yield _row(category, str(len(keys)), *(_text(estimate(known)) for known in scores))
    yield ""


def _categories(run: Told) -> dict[str, list[tuple[str, int]]]:
    """The prompts of each category, where there are several."""
    found: dict[str, list[tuple[str, int]]] = {}
    for searched in run.run.searched:
        if searched.category:
            found.setdefault(searched.category, []).append(searched.key)
    return found if 1 < len(found) <= MOST_CATEGORIES else {}


def _best_of_n(runs: Sequence[Told]) -> Iterator[str]:
    found = {run.name: (run.metric, dict(best_of_n(run))) for run in runs}
    sizes = sorted({n for _, curve in found.values() for n in curve})
    if not sizes:
        return
    yield from ("## Expected best of n draws", "")
    yield from _head("run", "metric", *map(str, sizes))
    for name, (metric, curve) in found.items():
        if curve:
            yield _row(name, metric, *(_text(curve[n]) if n in curve else "-" for n in sizes))
    yield ""


def _trust(runs: Sequence[Told]) -> Iterator[str]:
    """What the judges make of the verifier's choices, and what it could not judge."""
    judged = [run for run in runs if run.judges]
    if judged:
        yield from ("## Verifier and judges", "")
        yield from _head("run", "judge", "rank correlation over winners", "fooled?")
        for run in judged:
            for label, rho in run.correlations.items():
                yield _row(run.name, label, significant(rho), str(len(run.fooled)))
        yield ""
    for run in judged:
        for text, _ in (key for key in run.winners if key in run.fooled):
            yield f"- {_plain(run.name)}, fooled? {_plain(text)}"
    if any(run.fooled for run in judged):
        yield ""
    failed = [run for run in runs if run.failures]
    if failed:
        yield from ("## Without a score", "")
        for run in failed:
            counts = ", ".join(f"{n} {_plain(status)}" for status, n in run.failures.most_common())
            yield f"- {_plain(run.name)}: {counts}"
        yield ""


def _against(runs: Sequence[Told]) -> Iterator[str]:
    found = pairs(runs)
    for metric in shared_metrics(runs):
        of_metric = [pair for pair in found if pair.metric == metric]
        if of_metric:
            yield from (f"## {_plain(metric)}, paired by prompt", "")
            yield from _head("run", "against", "prompts", "difference", "win rate")
            yield from map(_pair, of_metric)
            yield from ("", _tested(of_metric), "")


def _tested(found: Sequence[Pair]) -> str:
    """What bold print means, where there can be any."""
    if not any(pair.difference.bounded for pair in found):
        return f"No intervals and no tests: fewer than {FEWEST} prompts."
    share = all(pair.share for pair in found)
    tests = "the exact sign test (McNemar's)" if share else "a sign-flip randomization test"
    if not share and any(pair.share for pair in found):
        tests += ", the exact sign test (McNemar's) where all scores are 0 or 1"
    compared = sum(not math.isnan(pair.difference.p) for pair in found)
    return (
        f"Bold: the difference has p < {1 - LEVEL:.2g} by {tests}, after Holm's correction for the"
        f" {counted(compared, 'pair')} of runs that were tested. In a win rate a tie"
        " is half a win."
    )


def _pair(pair: Pair) -> str:
    difference = _text(pair.difference, SIGNED)
    if pair.difference.significant:
        difference = f"**{difference}**"
    return _row(
        pair.ours.name, pair.theirs.name, str(pair.prompts), difference, _text(pair.wins)
    )  # fmt: skip


def _galleries(runs: Sequence[Told], galleries: Sequence[Gallery]) -> Iterator[str]:
    if not galleries:
        return
    quantities = list(dict.fromkeys(name for each in galleries for name in each.numbers))
    yield from (f"## Winners under {_plain(galleries[0].model)}", "")
    yield from _head("run", "images", *quantities)
    for run, gallery in zip(runs, galleries, strict=True):
        numbers = (significant(gallery.numbers.get(name, math.nan)) for name in quantities)
        yield _row(run.name, str(gallery.images), *numbers)
    yield ""


def _costs(run: Told, cost: str) -> list[float]:
    """By prompt; one that failed before it had a candidate is none that was searched for."""
    return _known([spent(each, cost) for each in run.run.searched if each.candidates])


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _text(found: Estimate, form: str = ".3g") -> str:
    if math.isnan(found.mean):
        return "-"
    mean = f"{found.mean:{form}}"
    if not found.bounded:
        return mean
    return f"{mean} [{found.low:{form}}, {found.high:{form}}]"


def _head(*cells: str) -> tuple[str, str]:
    return _row(*cells), "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
