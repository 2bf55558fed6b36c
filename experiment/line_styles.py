"""How lines of one picture differ: by color, dash and marker, all three; and where axes end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE = "#000000"
# Okabe and Ito's colors, which the color-blind can tell apart, their yellow darkened; and two more,
# so that of 18 methods no three share one.
COLORS = (
    "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9C8B00", "#7B3FA0",
    "#8C4A32",
)  # fmt: skip
# Where the colors come round again: dashed with hollow markers, then dotted with filled ones.
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "osD^vPX<>"


def color_of(at: int) -> str:
    """The color of the line at this place; the first is the reference."""
    return REFERENCE if at == 0 else COLORS[(at - 1) % len(COLORS)]


def line_style(at: int) -> dict[str, Any]:
    """What matplotlib draws the line at this place with; the first is heavier than the others."""
    turn, place = divmod(at - 1, len(COLORS)) if at else (0, 0)
    style = {
        "color": color_of(at),
        "ls": DASHES[turn % len(DASHES)],
        "lw": 2.6 if at == 0 else 1.4,
        # Shifted from turn to turn: lines of one color have different markers too.
        "marker": "o" if at == 0 else MARKERS[(place + 1 + 4 * turn) % len(MARKERS)],
        "ms": 6 if at == 0 else 5,
    }
    return {**style, "markerfacecolor": "white"} if turn % 2 else style


def end_at_bounds(panel: Axes, values: Iterable[float]) -> None:
    """Let the scores' axis not go beyond 0 or 1 unless what is drawn does: few scores can."""
    drawn = [value for value in values if value == value]
    low, high = panel.get_ylim()
    if drawn and min(drawn) >= 0:
        low = max(low, 0.0)
    if drawn and max(drawn) <= 1:
        high = min(high, 1.0)
    panel.set_ylim(low, high)
