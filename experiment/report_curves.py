"""The picture of runs: best score so far against each cost, and the expected best of n draws."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.line_styles import color_of, end_at_bounds, line_style
from experiment.report_measures import COSTS, Told, best_of_n, mean_curve
from experiment.statistics import LEVEL, Estimate
from utils import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (5.6, 3.9)  # inches
COLUMNS = 2
NAMES_IN_A_LINE = 4  # of the legend
MOST_BANDS = 4  # of runs in a panel; more would hide each other's lines

Curve = Sequence[tuple[float, Estimate]] | Sequence[tuple[int, Estimate]]


@dataclass(frozen=True)
class Panel:
    """One set of axes. curves: by the run's place. steps: a value holds until the next point."""

    metric: str
    title: str
    curves: dict[int, Curve]
    steps: bool

    @property
    def banded(self) -> bool:
        """Whether intervals are drawn."""
        few = len(self.curves) <= MOST_BANDS
        return few and any(point[1].bounded for curve in self.curves.values() for point in curve)


def write_report_curves(runs: Sequence[Told], path: Path) -> bool:
    """Panels for each metric that searches went by; False where nothing was scored."""
    panels = [panel for metric in _metrics(runs) for panel in _panels(runs, metric)]
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, columns = math.ceil(len(panels) / COLUMNS), min(COLUMNS, len(panels))
    lines = math.ceil(len(runs) / NAMES_IN_A_LINE)  # of the legend
    size = (PANEL[0] * columns, PANEL[1] * rows + 0.4 + 0.22 * lines)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel)
    handles = [axes[0][0].plot([], [], **line_style(at))[0] for at in range(len(runs))]
    names = [_plain(run.name) for run in runs]
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=NAMES_IN_A_LINE,
        frameon=False,
        handlelength=3,
    )
    bands = f", {LEVEL:.0%} intervals" if any(panel.banded for panel in panels) else ""
    single = all(len(run.run.searched) == 1 for run in runs)
    figure.supxlabel("one prompt" if single else f"means over prompts{bands}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
    return True


def _metrics(runs: Sequence[Told]) -> list[str]:
    return list(dict.fromkeys(run.metric for run in runs))


def _panels(runs: Sequence[Told], metric: str) -> Iterator[Panel]:
    own = [(at, run) for at, run in enumerate(runs) if run.metric == metric]
    for cost in COSTS:
        found: dict[int, Curve] = {at: c for at, run in own if (c := mean_curve(run, cost))}
        if found:
            yield Panel(metric, f"best so far against {cost} per prompt", found, steps=True)
    draws: dict[int, Curve] = {at: d for at, run in own if len(d := best_of_n(run)) > 1}
    if draws:
        yield Panel(metric, "expected best of n draws", draws, steps=False)


def _draw(axis: Axes, panel: Panel) -> None:
    drawn: list[float] = []
    for at, curve in panel.curves.items():
        x, estimates = [float(point[0]) for point in curve], [point[1] for point in curve]
        means = [each.mean for each in estimates]
        lows, highs = [each.low for each in estimates], [each.high for each in estimates]
        style = line_style(at)
        if panel.steps:  # marked where it ends
            line, ends = {**style, "marker": ""}, {**style, "ls": ""}
            axis.plot(*stairs(x, means), solid_joinstyle="miter", clip_on=False, **line)
            axis.plot(x[-1:], means[-1:], clip_on=False, **ends)
        else:
            axis.plot(x, means, clip_on=False, **style)
        drawn += means
        if panel.banded:
            step: Any = "post" if panel.steps else None
            axis.fill_between(x, lows, highs, step=step, color=color_of(at), alpha=0.1, lw=0)
            drawn += lows + highs
    end_at_bounds(axis, drawn)
    if panel.steps:
        axis.set_xlim(left=0)  # where every search begins
        if all(point[0] == int(point[0]) for curve in panel.curves.values() for point in curve):
            axis.locator_params(axis="x", integer=True)
    else:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title(panel.title, loc="left", fontsize=10)
    axis.set_ylabel(_plain(panel.metric))
    axis.grid(axis="y", color="#DDDDDD", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def stairs(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of a line on which a value holds until the next, to the riser of the last."""
    corners = [(x[0], y[0])]
    for at in range(1, len(x)):
        corners += [(x[at], y[at - 1]), (x[at], y[at])]
    return [corner[0] for corner in corners], [corner[1] for corner in corners]


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
