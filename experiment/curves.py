"""The picture of a comparison: scores against compute, one line for each method."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.compare_table import Table
from experiment.line_styles import REFERENCE, color_of, end_at_bounds, line_style
from experiment.statistics import LEVEL, Estimate
from utils import counted, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CEILING = "#777777"
PANEL = (6.4, 4.4)  # inches
HIGHER = 0.32  # inches that a panel is high for each method, if that is more
LABEL = 8  # points
SPREAD = 0.8  # of the way from one budget to the next, that the intervals at a budget take up


def write_curves(table: Table, path: Path) -> None:
    """A column for each metric: above the scores, below the differences to the first method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, columns = min(len(table.methods), 2), len(table.metrics)
    size = (PANEL[0] * columns, _height(table) * rows)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    for column, metric in enumerate(table.metrics):
        _draw_scores(panels[0][column], table, metric)
        if rows == 2:
            _draw_differences(panels[1][column], table, metric)
    numbers = f"{counted(table.prompts, 'prompt')}, {counted(len(table.seeds), 'seed')}"
    figure.suptitle(f"{table.name}: {numbers}{_intervals(table)}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())


def _height(table: Table) -> float:
    """Of a panel, in inches: names stand beside it."""
    return max(PANEL[1], HIGHER * len(table.methods))


def _intervals(table: Table) -> str:
    """What bars and bands are, if there are any."""
    if not any(found.bounded for entry in table.entries for found in entry.scores.values()):
        return ""
    shown = "band" if len(table.budgets) > 1 else "bar above"
    return f"; {LEVEL:.0%} intervals ({shown}: of {table.methods[0]})"


def _draw_scores(panel: Axes, table: Table, metric: str) -> None:
    """Mean scores, and the interval of the first method's; the others' are about as wide."""
    names: list[str] = []
    ends: list[float] = []
    colors: list[str] = []
    drawn: list[float] = []
    for at, method in enumerate(table.methods):
        estimates = [table.entry(method, budget).scores[metric] for budget in table.budgets]
        means = [estimate.mean for estimate in estimates]
        panel.plot(
            table.budgets, means, zorder=4 if at == 0 else 3, clip_on=False, **line_style(at)
        )
        drawn += means
        if at == 0:
            drawn += _draw_interval(panel, table, estimates)
        names.append(method)
        ends.append(means[-1])
        colors.append(color_of(at))
    ceilings = [each for each in table.ceilings if each.metric == metric]
    if ceilings:
        ceiling = [each.score.mean for each in ceilings]
        panel.plot(
            [each.budget for each in ceilings], ceiling, color=CEILING, lw=1.2, ls=(0, (1, 1))
        )
        drawn += ceiling
        names.append(f"best possible choice\namong images of {table.methods[0]}")
        ends.append(ceiling[-1])
        colors.append(CEILING)
    panel.set_title(metric, loc="left")
    panel.set_ylabel("mean score of the chosen image")
    _draw_axes(panel, table)
    end_at_bounds(panel, drawn)
    _label_ends(panel, table, names, ends, colors)


def _draw_interval(panel: Axes, table: Table, estimates: Sequence[Estimate]) -> list[float]:
    """The first method's: a band, or a bar where there is one budget. Returns its ends."""
    lows, highs = [e.low for e in estimates], [e.high for e in estimates]
    if len(table.budgets) > 1:
        panel.fill_between(table.budgets, lows, highs, color=REFERENCE, alpha=0.08, lw=0)
    elif reach := _reach(estimates):
        means = [estimate.mean for estimate in estimates]
        panel.errorbar(table.budgets, means, yerr=reach, color=REFERENCE, elinewidth=1, zorder=1)
    return lows + highs


def _draw_differences(panel: Axes, table: Table, metric: str) -> None:
    """Paired differences with their intervals, side by side at each budget."""
    others = table.methods[1:]
    for at, method in enumerate(others, 1):
        estimates = [table.entry(method, budget).differences[metric] for budget in table.budgets]
        panel.errorbar(
            [_beside(budget, table.budgets, at - 1, len(others)) for budget in table.budgets],
            [estimate.mean for estimate in estimates],
            yerr=_reach(estimates),
            elinewidth=1.3,
            **{**line_style(at), "ls": "none"},
        )
    panel.axhline(0, color=REFERENCE, lw=1.2, zorder=1)
    panel.set_ylabel(f"difference to {table.methods[0]}, paired by prompt")
    _draw_axes(panel, table)
    panel.legend(
        [panel.plot([], [], **line_style(at))[0] for at in range(1, len(table.methods))],
        others,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=LABEL,
        frameon=False,
        handlelength=4,
    )


def _reach(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]] | None:
    """How far the intervals go below and above; None where there are none."""
    if not any(each.bounded for each in estimates):
        return None
    return [e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]


def _draw_axes(panel: Axes, table: Table) -> None:
    low, high = table.budgets[0], table.budgets[-1]
    panel.set_xscale("log")
    panel.set_xlim(_beside(low, table.budgets, 0, 1) / 1.5, high * 1.5)
    panel.set_xticks(table.budgets, [str(budget) for budget in table.budgets])
    panel.minorticks_off()
    panel.set_xlabel("NFE per prompt")
    panel.grid(axis="y", color="#DDDDDD", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _label_ends(
    panel: Axes, table: Table, names: Sequence[str], ends: Sequence[float], colors: Sequence[str]
) -> None:
    """A line's name beside its end, in its color; names that would overlap are moved apart."""
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)  # no longer moved by what is drawn
    inches = _height(table) * 0.82  # of the axes, about
    heights = [LABEL * 1.35 * (name.count("\n") + 1) / (inches * 72) for name in names]
    places = spread([(end - low) / (high - low) for end in ends], heights)
    for name, end, color, place in zip(names, ends, colors, places, strict=True):
        if not math.isnan(end):
            panel.annotate(
                name,
                xy=(table.budgets[-1], end),
                xytext=(1.03, place),
                textcoords="axes fraction",
                va="center",
                fontsize=LABEL,
                color=color,
                arrowprops={
                    "arrowstyle": "-",
                    "color": color,
                    "lw": 0.5,
                    "shrinkB": 3,
                    "relpos": (0, 0.5),
                },
                annotation_clip=False,
            )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places near the wanted ones, in their order, at which things this high do not overlap; of
    equal ones the first is highest.

    Groups that overlap are joined and put where their members want to be on average.
    """
    groups: list[tuple[list[int], float]] = []  # members from below, and where their middle is
    for at in sorted(range(len(wanted)), key=lambda i: (wanted[i], -i)):
        group, middle = [at], wanted[at]
        while groups:
            below, center = groups[-1]
            gap = (sum(heights[i] for i in below) + sum(heights[i] for i in group)) / 2
            if middle - center >= gap:
                break
            groups.pop()
            group = below + group
            middle = sum(wanted[i] for i in group) / len(group)
        groups.append((group, middle))
    places = [0.0] * len(wanted)
    for group, middle in groups:
        edge = middle - sum(heights[i] for i in group) / 2
        for i in group:
            places[i] = edge + heights[i] / 2
            edge += heights[i]
    # Names may stand above the panel, but not under its axis.
    lift = max(0.0, -min(places, default=0.0))
    return [place + lift for place in places]


def _beside(budget: int, budgets: Sequence[int], at: int, count: int) -> float:
    """The place of one of several intervals at a budget, on a logarithmic axis."""
    ratios = [after / before for before, after in itertools.pairwise(budgets)]
    width = SPREAD * math.log(min(ratios, default=2.0))
    return float(budget * math.exp(width * ((at + 0.5) / count - 0.5)))
