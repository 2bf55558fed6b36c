"""The picture of a probe: score correlation over cosine, and previews over steps."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping
from typing import Any

from experiment.lettering import drawable
from experiment.probe_landscape import Landscape
from experiment.probe_statistics import Measured

COLOR, GRID, DIM = "#1f5fa8", "#dddddd", "#666666"


def picture(found: Landscape, title: str, skipped: str | None) -> bytes:
    """A PNG of two panels; `skipped` says why there are no previews."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    figure.suptitle(drawable(title), fontsize=11)
    left, right = figure.subplots(1, 2, sharey=True)
    cosines = {c: m for c, m in found.by_cosine.items() if m.known}
    # Angles, not cosines: 0.99 and 0.95 would lie on one another.
    _curve(left, {math.degrees(math.acos(c)): m for c, m in cosines.items()})
    ticks = sorted(found.by_cosine)
    left.set_xticks([math.degrees(math.acos(c)) for c in ticks], [f"{c:g}" for c in ticks])
    left.set_xlabel("cosine between two noises")
    left.set_ylabel("correlation within a prompt, 95 % interval")
    left.set_title("Final scores of both noises (Pearson)", fontsize=10)
    shares = {100 * k / found.steps: m for k, m in found.previews.items() if m.known}
    _curve(right, shares)
    right.set_xlim(0, 102)
    right.set_xlabel(f"share of the {found.steps} steps done (%)")
    right.set_title("Preview and final score (Spearman)", fontsize=10)
    if not shares:
        why = textwrap.fill(f"not measured: {skipped or 'no preview has a score'}", 40)
        style = {"ha": "center", "va": "center", "color": DIM, "fontsize": 10}
        right.text(0.5, 0.6, why, transform=right.transAxes, backgroundcolor="white", **style)
    lows = [m.low for m in (*found.by_cosine.values(), *found.previews.values()) if m.known]
    left.set_ylim(max(-1.0, min([0.0, *lows])) - 0.05, 1.05)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _curve(axes: Any, points: Mapping[float, Measured]) -> None:
    axes.axhline(0, color=DIM, linewidth=0.8)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    x, measured = list(points), list(points.values())
    values = [m.value for m in measured]
    below = [m.value - m.low for m in measured]
    above = [m.high - m.value for m in measured]
    if points:
        axes.errorbar(x, values, [below, above], color=COLOR, marker="o", markersize=5, capsize=3)
