"""Figures draw the panels of a finding in one style, for print and for the page.

A panel is data only; who it shows fixes how it looks (Okabe and Ito, 2008, safe for colour-blind
readers, and told apart by dash and marker as well)::

    memorized       vermilion, solid, circle        control    green, dash-dot, triangle
    not memorized   blue, long dash, square         schedule   grey, short dash

For print each finding is one PNG and one PDF, panels side by side. For the page each panel is one
SVG whose colours are variables of the page, so that it follows light and dark, and whose elements
are a fixed list, so that no label can become anything but text.

Contents: Role, ROLES, svg, save, null_panel (drawn with draw_null).
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnemoscope.mechanism.base import BarPanel, CurvePanel, Panel, ScatterPanel


@dataclass(frozen=True)
class Role:
    """How everything that stands for one population is drawn."""

    colour: str
    variable: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


ROLES = {
    "memorized": Role("#d55e00", "memorized", "-", "o"),
    "not memorized": Role("#0072b2", "plain", (0, (6, 1.6)), "s"),
    "control": Role("#00916b", "control", "-.", "^"),
    "schedule": Role("#7a7a7a", "schedule", (0, (2.4, 2)), ""),
}
"""The look of each population, by the label panels use."""

_OTHER = (
    Role("#8a5a9e", "other1", "-", "D"),
    Role("#b8860b", "other2", (0, (4, 1, 1, 1)), "v"),
    Role("#56707f", "other3", ":", "P"),
)
_INK, _FAINT, _PAPER = "#1b1b1f", "#c9c9cd", "#ffffff"
_VARIABLES = {
    **{role.colour: f"var(--{role.variable})" for role in (*ROLES.values(), *_OTHER)},
    _INK: "currentColor",
    _FAINT: "var(--rule)",
    _PAPER: "var(--paper)",
}
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.7,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.8,
    "figure.facecolor": _PAPER,
    "savefig.facecolor": _PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "mnemoscope",
    "pdf.fonttype": 42,
}
_SIZE = (4.6, 3.4)
"""Inches of one panel; three side by side fill a landscape page."""

_ACROSS = 3
"""Panels in one row of a figure for print."""


def role_of(label: str, others: Sequence[str] = ()) -> Role:
    """Find how a population is drawn.

    Args:
        label: The population's name as the panel gives it.
        others: The names of the panel that have no fixed look, in order.

    Returns:
        Its fixed look, or the look of its place among the others.
    """
    if label in ROLES:
        return ROLES[label]
    place = others.index(label) if label in others else 0
    return _OTHER[place % len(_OTHER)]


def _others(labels: Sequence[str]) -> list[str]:
    return [label for label in dict.fromkeys(labels) if label not in ROLES]


def _draw_curves(axes: Axes, panel: CurvePanel) -> None:
    others = _others([series.role for series in panel.series])
    for series in panel.series:
        role = role_of(series.role, others)
        if series.low is not None and series.high is not None:
            axes.fill_between(
                series.x, series.low, series.high, color=role.colour, alpha=0.16, linewidth=0
            )
        width = 1.4 if series.role == "schedule" else 1.8
        axes.plot(
            series.x, series.y, color=role.colour, ls=role.dash, lw=width, label=series.label
        )


def _draw_points(axes: Axes, panel: ScatterPanel) -> None:
    others = _others([points.role for points in panel.points])
    for points in panel.points:
        role = role_of(points.role, others)
        axes.scatter(
            points.x, points.y, s=26, color=role.colour, alpha=0.8, linewidths=0,
            marker=role.marker or "o", label=points.label,
        )  # fmt: skip
    if panel.note:
        axes.text(
            0.98, 0.03, panel.note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8
        )


def _draw_bars(axes: Axes, panel: BarPanel) -> None:
    others = _others([bar.role for bar in panel.bars])
    for place, bar in enumerate(panel.bars):
        role = role_of(bar.role, others)
        axes.bar(place, bar.value, width=0.62, color=role.colour, alpha=0.85)
        if bar.low is not None and bar.high is not None:
            reach = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
            axes.errorbar(place, bar.value, yerr=reach, color=_INK, lw=1.0, capsize=3)
    axes.set_xticks(range(len(panel.bars)), [bar.label for bar in panel.bars])
    axes.grid(axis="x", visible=False)
