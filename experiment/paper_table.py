"""The table of a paper, as in Ma et al. 2025, table 2: verifier and method by every metric."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiment.paper_read import Choice, Comparison, Key, Tell, read_comparison
from experiment.statistics import FEWEST, LEVEL, RESAMPLES, Estimate, estimate, is_binary
from utils import UserError, significant, write_atomically

BASELINE = "no search"
NAME = "paper_table"
OWN = "†"  # behind a mean: the metric that this search raised
NOTHING = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """A method under a verifier. own: the metric that the search raised.

    nfe: the mean per prompt. scores: by metric, over the prompts that every row has there.
    """

    verifier: str
    method: str
    own: str | None
    nfe: float
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class PaperTable:
    """All rows at one budget.

    prompts: by metric, how many each of its means is over. shares: the metrics of which every
    single score is 0 or 1.
    """

    budget: int
    metrics: tuple[str, ...]
    prompts: Mapping[str, int]
    shares: tuple[str, ...]
    seeds: int
    rows: tuple[Row, ...]

    def best(self, metric: str) -> float:
        """The highest mean, as it is shown."""
        means = [row.scores[metric].mean for row in self.rows]
        return max((_rounded(mean) for mean in means if not math.isnan(mean)), default=math.nan)


def write_paper_table(
    folders: Sequence[Path], output: Path, budget: int | None, tell: Tell
) -> tuple[Path, ...]:
    """The table of these comparisons as .md, .csv and .tex in a folder."""
    table = paper_table([read_comparison(folder, tell) for folder in folders], budget)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, text in ((".md", markdown(table)), (".csv", as_csv(table)), (".tex", latex(table))):
        path = output / f"{NAME}{suffix}"
        write_atomically(path, text.encode("utf-8", "replace"))
        written.append(path)
    return tuple(written)


def paper_table(comparisons: Sequence[Comparison], budget: int | None = None) -> PaperTable:
    """The table at a budget in NFE; unset: the largest one that every method has prompts at."""
    _refuse_mixed(comparisons)
    budget = joint_budget(comparisons, budget)
    shared = _shared(comparisons, budget)
    seeds = {seed for each in comparisons for _, seed in shared[each.folder]}
    prompts = list(dict.fromkeys(text for each in comparisons for text, _ in shared[each.folder]))
    metrics = tuple(dict.fromkeys(name for each in comparisons for name in each.metrics))

    found: list[tuple[str, str, str | None, list[dict[Key, Choice]]]] = []
    if firsts := _firsts(comparisons, shared):
        found.append(("", BASELINE, None, firsts))
    for each in comparisons:
        twins = [other for other in comparisons if other.verifier == each.verifier]
        verifier = each.verifier if len(twins) == 1 else f"{each.verifier}, {each.folder.name}"
        for method in each.methods:
            chosen = {key: method.choices[budget][key] for key in shared[each.folder]}
            found.append((verifier, method.label, each.own, [chosen]))
    columns = {metric: [_values(choices, prompts, metric) for *_, choices in found]
               for metric in metrics}  # fmt: skip
    answered = {metric: _answered(values) for metric, values in columns.items()}
    every = [choice for *_, own in found for each in own for choice in each.values()]
    shares = tuple(m for m in metrics if is_binary([c.scores.get(m, math.nan) for c in every]))
    rows = [
        Row(
            verifier,
            method,
            own,
            float(np.mean([choice.nfe for choice in choices[0].values()])),
            {
                metric: _estimate(columns[metric][at][answered[metric]], binary=metric in shares)
                for metric in metrics
            },
        )
        for at, (verifier, method, own, choices) in enumerate(found)
    ]
    counts = {metric: int(kept.sum()) for metric, kept in answered.items()}
    return PaperTable(budget, metrics, counts, shares, len(seeds), tuple(rows))


def _refuse_mixed(comparisons: Sequence[Comparison]) -> None:
    first, *others = comparisons
    for other in others:
        if other.setting != first.setting:
            raise UserError(
                f"{first.folder} and {other.folder} compare with other models or other call"
                " arguments: make a table of each."
            )


def joint_budget(comparisons: Sequence[Comparison], asked: int | None) -> int:
    """The largest budget at which all methods have done some prompt, or the one asked for."""
    budgets = sorted({b for each in comparisons for m in each.methods for b in m.choices})
    usable = [budget for budget in budgets if all(_shared(comparisons, budget).values())]
    if asked is None and usable:
        return usable[-1]
    if asked in usable:
        return int(asked)
    if not usable:
        raise UserError("No prompt is done by all methods at one budget: go on with --compare.")
    raise UserError(f"At --budget {asked} no prompt is done by all methods: give one of {usable}.")


def _shared(comparisons: Sequence[Comparison], budget: int) -> dict[Path, list[Key]]:
    """By comparison: the prompts and seeds that all its methods have, of prompts that all have."""
    done: dict[Path, list[Key]] = {}
    for each in comparisons:
        first, *others = (method.choices.get(budget, {}) for method in each.methods)
        done[each.folder] = [key for key in first if all(key in other for other in others)]
    common = set.intersection(*({text for text, _ in keys} for keys in done.values()))
    return {folder: [k for k in keys if k[0] in common] for folder, keys in done.items()}


def _firsts(
    comparisons: Sequence[Comparison], shared: Mapping[Path, Sequence[Key]]
) -> list[dict[Key, Choice]]:
    """What plain sampling gives, as far as each comparison knows it: verifiers see the same."""
    found = []
    for each in comparisons:
        for method in each.methods:
            own = {key: method.firsts[key] for key in shared[each.folder] if key in method.firsts}
            if own:
                found.append(own)
    return found


def _values(
    choices: Sequence[Mapping[Key, Choice]], prompts: Sequence[str], metric: str
) -> np.ndarray:
    """[prompt], the mean over its seeds; nan where nobody knows."""
    known: dict[Key, float] = {}
    for each in choices:
        for key, choice in each.items():
            value = choice.scores.get(metric, math.nan)
            if math.isnan(known.get(key, math.nan)):
                known[key] = value
    by_prompt: dict[str, list[float]] = {}
    for (text, _), value in known.items():
        by_prompt.setdefault(text, []).append(value)
    return np.array([np.mean(by_prompt.get(text, [math.nan])) for text in prompts])


def _answered(values: Sequence[np.ndarray]) -> np.ndarray:
    """[prompt], whether every row that has the metric at all has it there."""
    having = [each for each in values if not np.isnan(each).all()]
    if not having:
        return np.zeros(len(values[0]), dtype=bool)
    return ~np.isnan(np.stack(having)).any(axis=0)


def _estimate(values: np.ndarray, *, binary: bool) -> Estimate:
    return NOTHING if np.isnan(values).any() else estimate(values, binary=binary)


def markdown(table: PaperTable) -> str:
    lines = [
        f"# {table.budget} NFE per prompt",
        "",
        f"{_over(table)} {_intervals(table)} Bold: the best mean of a column; nothing is tested."
        f" {OWN}: the metric that this search raised.",
        "",
        _line("verifier", "method", "NFE", *table.metrics),
        "|---|---|---:|" + "---:|" * len(table.metrics),
    ]
    for row in table.rows:
        cells = (f"**{text}**" if best else text for text, best in _cells(table, row, " [{}, {}]"))
        lines.append(_line(row.verifier or "-", row.method, significant(row.nfe), *cells))
    return "\n".join(lines) + "\n"


def _intervals(table: PaperTable) -> str:
    """What the brackets are."""
    if max(table.prompts.values(), default=0) < FEWEST:
        return f"No intervals: fewer than {FEWEST} prompts."
    shares = ", ".join(f"`{metric}`" for metric in table.shares)
    kinds = [f"Wilson's for shares ({shares})"] if shares else []
    if len(table.shares) < len(table.metrics):
        kinds.append(f"{'else ' if shares else ''}by bootstrap ({RESAMPLES} resamples)")
    return f"In brackets: {LEVEL:.0%} intervals over prompts, {', '.join(kinds)}."


def _over(table: PaperTable) -> str:
    """How many prompts the means are over."""
    most = max(table.prompts.values(), default=0)
    fewer = [f"`{name}` {n}" for name, n in table.prompts.items() if n < most]
    seeds = f", {table.seeds} seeds averaged within a prompt" if table.seeds > 1 else ""
    return f"{most} prompts{seeds}{'; for ' + ', '.join(fewer) if fewer else ''}."


def as_csv(table: PaperTable) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [name + end for name in table.metrics for end in ("", "_low", "_high", "_prompts")]
    writer.writerow(["verifier", "method", "budget", "nfe", *ends])
    for row in table.rows:
        cells: list[object] = []
        for metric in table.metrics:
            score = row.scores[metric]
            numbers = (score.mean, score.low, score.high)
            cells += ["" if math.isnan(value) else f"{value:.9g}" for value in numbers]
            cells.append("" if math.isnan(score.mean) else table.prompts[metric])
        writer.writerow([row.verifier, row.method, table.budget, f"{row.nfe:.9g}", *cells])
    return text.getvalue()


def latex(table: PaperTable) -> str:
    """A tabular for the package booktabs."""
    lines = [
        f"% {table.budget} NFE per prompt. {_over(table)} {_intervals(table)}".replace("`", ""),
        r"\begin{tabular}{llr" + "r" * len(table.metrics) + "}",
        r"\toprule",
        " & ".join(map(_tex, ("Verifier", "Method", "NFE", *table.metrics))) + r" \\",
    ]
    last: str | None = None
    for row in table.rows:
        if row.verifier != last:
            lines.append(r"\midrule")
        cells = (
            rf"\textbf{{{text}}}" if best else text
            for text, best in _cells(table, row, r" {{\scriptsize [{}, {}]}}", r"$^\dagger$")
        )
        verifier = "" if row.verifier == last else _tex(row.verifier or "--")
        head = (verifier, _tex(row.method), significant(row.nfe))
        lines.append(" & ".join((*head, *cells)) + r" \\")
        last = row.verifier
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _cells(
    table: PaperTable, row: Row, interval: str, own: str = OWN
) -> Iterator[tuple[str, bool]]:
    """The row's scores as text, and whether each is its column's best."""
    for metric in table.metrics:
        score = row.scores[metric]
        if math.isnan(score.mean):
            yield "-", False
            continue
        text = f"{score.mean:.3g}" + (own if metric == row.own else "")
        if score.bounded:
            text += interval.format(f"{score.low:.3g}", f"{score.high:.3g}")
        yield text, _rounded(score.mean) == table.best(metric)


def _rounded(mean: float) -> float:
    """As it is shown: means that look the same are all the best."""
    return float(f"{mean:.3g}")


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _tex(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)
