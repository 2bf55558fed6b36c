"""A comparison's table as files: JSON, CSV, and Markdown to be read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiment.compare_table import COSTS, Entry, Table
from experiment.statistics import FEWEST, LEVEL, RESAMPLES, Difference, Estimate
from utils import json_number, significant, write_atomically


def write_table(table: Table, folder: Path) -> None:
    """table.json, table.csv and table.md in the comparison's folder."""
    content = json.dumps(_jsonable(asdict(table)), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "table.json", content.encode())
    write_atomically(folder / "table.csv", as_csv(table).encode())
    write_atomically(folder / "table.md", as_markdown(table).encode())


def _jsonable(value: Any) -> Any:
    """The same with nan as null."""
    if isinstance(value, Mapping):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return json_number(value) if isinstance(value, float) else value


def as_csv(table: Table) -> str:
    """One line for each method and budget; every mean is followed by the ends of its interval.

    A difference is followed by its test too: p, and p after Holm's correction.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "budget", "prompts", *_columns(table)])
    for entry in table.entries:
        cells: list[object] = []
        for metric in table.metrics:
            own = entry.differences.get(metric)
            tested = ["", ""] if own is None else _numbers(own.p, own.adjusted)
            cells += [*_ends(entry.scores[metric]), *_ends(own), *tested]
        for cost in COSTS:
            cells += _ends(entry.costs[cost])
        writer.writerow([entry.method, entry.budget, table.prompts, *cells])
    return text.getvalue()


def _columns(table: Table) -> list[str]:
    ends = ("", "_low", "_high")
    columns = []
    for metric in table.metrics:
        columns += [metric + end for end in ends]
        columns += [f"{metric}_difference{end}" for end in (*ends, "_p", "_p_holm")]
    return columns + [cost + end for cost in COSTS for end in ends]


def _ends(found: Estimate | None) -> list[object]:
    return ["", "", ""] if found is None else _numbers(found.mean, found.low, found.high)


def _numbers(*values: float) -> list[object]:
    return ["" if math.isnan(value) else value for value in values]


def as_markdown(table: Table) -> str:
    """One table for each budget; differences that pass their test stand in bold."""
    reference = table.methods[0]
    lines = [f"# {table.name}", "", _legend(table)]
    for metric, answered in table.answered.items():
        if answered < table.prompts:
            lines.append(f"`{metric}`: {answered} prompts, for which every method has a score.")
        if answered < FEWEST <= table.prompts:
            lines.append(f"`{metric}` has no intervals and no tests: fewer than {FEWEST} prompts.")
    for budget in table.budgets:
        heads = [head for metric in table.metrics for head in (metric, f"Δ {metric}")]
        lines += ["", f"## {budget} NFE", "", _row("method", *heads, *COSTS)]
        lines.append(_row("---", *("---:" for _ in (*heads, *COSTS))))
        lines += [_method_row(table, table.entry(method, budget)) for method in table.methods]
        ceilings = {c.metric: c.score for c in table.ceilings if c.budget == budget}
        if ceilings:
            cells = [
                cell
                for metric in table.metrics
                for cell in (_shown(ceilings[metric]) if metric in ceilings else "", "")
            ]
            lines.append(
                _row(
                    f"*best possible choice among `{reference}`'s images*",
                    *cells,
                    *("" for _ in COSTS),
                )
            )
    return "\n".join(lines) + "\n"


def _legend(table: Table) -> str:
    """What the numbers are over, and what brackets, differences and bold print mean."""
    text = f"{table.prompts} of {table.wanted} prompts, {_seeds(table)}."
    others = len(table.methods) - 1
    if others:
        text += f" Δ: difference to `{table.methods[0]}` at the same budget, paired by prompt."
    if table.prompts < FEWEST:
        return f"{text} No intervals and no tests: fewer than {FEWEST} prompts."
    means = [metric for metric in table.metrics if metric not in table.shares]
    shares = ", ".join(f"`{metric}`" for metric in table.shares)
    text += f" In brackets: {LEVEL:.0%} intervals over prompts"
    if means:
        text += f", by bootstrap ({RESAMPLES} resamples)"
    if shares:
        text += f"; for shares ({shares}) Wilson's, and for their differences Newcombe's"
    text += "."
    if others and shares:
        text += " After the difference of a share: on how many prompts it is higher : lower."
    if others:
        tests = ["the exact sign test (McNemar's)"] if shares else []
        tests += ["a sign-flip randomization test"] if means else []
        which = " for shares, else ".join(tests)
        text += (
            f" Bold: the difference has p < {1 - LEVEL:.2g} by {which}, after Holm's correction"
            f" for the {others} {'method' if others == 1 else 'methods'} compared in a column."
        )
    return text


def _seeds(table: Table) -> str:
    if len(table.seeds) == 1:
        return f"seed {table.seeds[0]}"
    return f"seeds {', '.join(map(str, table.seeds))} averaged within a prompt"


def _method_row(table: Table, entry: Entry) -> str:
    cells = []
    for metric in table.metrics:
        own = entry.differences.get(metric)
        cells += [
            _shown(entry.scores[metric]),
            "" if own is None else _compared(table, metric, own),
        ]
    costs = [significant(entry.costs[name].mean) for name in COSTS]
    return _row(entry.method, *cells, *costs)


def _compared(table: Table, metric: str, own: Difference) -> str:
    shown = _shown(own, "+")
    if metric in table.shares and own.bounded:
        shown += f" {own.better} : {own.worse}"
    return f"**{shown}**" if own.significant else shown


def _shown(found: Estimate, sign: str = "") -> str:
    if not found.bounded:
        return f"{found.mean:{sign}.3g}"
    return f"{found.mean:{sign}.3g} [{found.low:{sign}.3g}, {found.high:{sign}.3g}]"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
