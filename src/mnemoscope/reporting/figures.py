"""Figures draw the panels of a finding in one style, for print and for the page.

A panel is data only; who it shows fixes how it looks (Okabe and Ito, 2008, safe for colour-blind
readers, and told apart by dash and marker as well)::

    memorized       vermilion, solid, circle        control    green, dash-dot, triangle
    not memorized   blue, long dash, square         schedule   grey, short dash
    another         magenta, dotted, pentagon       a second line beside it: grey, dots

For print each finding is one PNG and one page of a PDF, panels side by side. For the page each
panel is one SVG whose colours are variables of the page, so that it follows light and dark, and
whose elements are a fixed list, so that no label can become anything but text.

Contents: `draw`, `svg`, `save` and `save_png`.
"""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mnemoscope.core.panels import BarPanel, CurvePanel, Panel, Points, ScatterPanel, Series
from mnemoscope.reporting.text import known


@dataclass(frozen=True)
class Look:
    """How everything that stands for one population is drawn."""

    colour: str
    variable: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


LOOKS = {
    "memorized": Look("#d55e00", "memorized", "-", "o"),
    "another": Look("#a03080", "another", (0, (1.0, 1.2)), "p"),
    "not memorized": Look("#0072b2", "plain", (0, (6.0, 1.6)), "s"),
    "control": Look("#00916b", "control", "-.", "^"),
    "schedule": Look("#7a7a7a", "schedule", (0, (2.4, 2.0)), ""),
}
"""The look of each population, by the label panels use."""

_OTHER = (
    Look("#8a5a9e", "other1", "-", "D"),
    Look("#b8860b", "other2", (0, (4.0, 1.0, 1.0, 1.0)), "v"),
    Look("#56707f", "other3", ":", "P"),
    Look("#2a7f7a", "other4", "-", "X"),
    Look("#8c564b", "other5", (0, (7.0, 1.4, 1.0, 1.4)), "h"),
    Look("#3d4fa3", "other6", (0, (3.0, 1.2)), "*"),
)
_SECOND = (0, (0.8, 1.8))
"""Dash of a second reference line, such as the exact predictor beside the schedule."""

_INK, _FAINT, _PAPER = "#1b1b1f", "#c9c9cd", "#ffffff"
_VARIABLES = {
    **{look.colour: f"var(--{look.variable})" for look in (*LOOKS.values(), *_OTHER)},
    _INK: "currentColor",
    _FAINT: "var(--rule)",
    _PAPER: "var(--paper)",
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    # Left to itself, a title looks for room by measuring every tick: a sixth of all time.
    "axes.titley": 1.0,
    "axes.labelsize": 11.0,
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
    "xtick.labelsize": 10.6,
    "ytick.labelsize": 10.6,
    "legend.frameon": False,
    "legend.fontsize": 10.6,
    "legend.handlelength": 1.9,
    "lines.linewidth": 1.8,
    "figure.facecolor": _PAPER,
    "savefig.facecolor": _PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "mnemoscope",
    "pdf.fonttype": 42,
}
_SIZE = (4.6, 3.9)
"""Inches of one panel; three side by side fill a landscape page. A phone shows it with 1.06 pixels
a point, so that the smallest letters of 10.6 points have 11 pixels."""

_SMALL = 10.6
"""Points of the smallest letters."""

_PLACE = (0.155, 0.3, 0.825, 0.565)
"""Axes within a panel of the page: room for a title, both labels and three rows of legend."""

_BARS = (0.36, 0.16, 0.6, 0.705)
"""The same for bars, which lie, so that their names are read without turning the head."""

_WIDE = 0.023
"""Share of the width of axes that a letter of a name takes."""

_END = 0.98
"""Share of the width of axes up to which there are ticks."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

POINTS = 2000
"""Most dots of one group on a page: more cannot be told apart, and each costs 100 bytes."""

_DOTS = "dots-"
"""Beginning of the identifier of a group of dots."""

_MARK = "data-place"
"""Attribute of a dot that stands for a prompt of the page's list."""

_LINE = LOOKS["schedule"].colour

_ACROSS = 3
"""Panels in one row of a figure for print."""


def _others(parts: Sequence[Series | Points]) -> list[str]:
    """Return the labels of a panel that have no fixed look, in order."""
    return list(dict.fromkeys(part.label for part in parts if part.role not in LOOKS))


def _look(part: Series | Points, others: Sequence[str]) -> Look:
    if part.role in LOOKS:
        return LOOKS[part.role]
    return _OTHER[others.index(part.label) % len(_OTHER)]


def _draw_curves(axes: Axes, panel: CurvePanel) -> None:
    others = _others(panel.series)
    lines = 0
    for series in panel.series:
        look = _look(series, others)
        if series.role == "schedule":
            look = replace(look, dash=_SECOND) if lines else look
            lines += 1
        if series.low is not None and series.high is not None:
            axes.fill_between(
                series.x, series.low, series.high, color=look.colour, alpha=0.16, linewidth=0
            )
        width = 1.4 if series.role == "schedule" else 1.8
        axes.plot(series.x, series.y, color=look.colour, ls=look.dash, lw=width, label=series.label)
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        # Half of what names a tick at the very end would lie outside the panel.
        low, high = axes.get_xlim()
        end = low + _END * (high - low)
        axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= end])


def _power(value: float, _: int | None) -> str:
    """Write a decade without markup, since no text of a figure is parsed as any."""
    exponent = round(math.log10(value)) if value > 0 else 0
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def _draw_points(axes: Axes, panel: ScatterPanel) -> None:
    others = _others(panel.points)
    for place, points in enumerate(panel.points):
        look = _look(points, others)
        axes.scatter(
            points.x, points.y, s=26, color=look.colour, alpha=0.8, linewidths=0,
            marker=look.marker or "o", label=points.label, gid=f"{_DOTS}{place}",
        )  # fmt: skip
    if not panel.points:
        return
    if panel.log_x:
        values = np.concatenate([points.x for points in panel.points])
        # Prices may be 0, which a logarithm has no place for; none is below.
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0 if values.min() < 1 else 0.8 * values.min(), 1.3 * values.max())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        if values.max() < 10 * values.min():
            # Powers of ten may all lie outside.
            axes.xaxis.set_major_locator(MaxNLocator(4))
    if panel.equal:
        values = np.concatenate([part for points in panel.points for part in (points.x, points.y)])
        low, high = float(values.min()), float(values.max())
        ends = [low - 0.04 * (high - low), high + 0.04 * (high - low)]
        axes.plot(ends, ends, color=_LINE, lw=1.2, ls=LOOKS["schedule"].dash, label="equal in both")
        axes.set(xlim=ends, ylim=ends)
    if panel.named:
        _name_points(axes, panel)


def _name_points(axes: Axes, panel: ScatterPanel) -> None:
    """Write names up and to the left of their points, above any that would be in their place."""
    low, high = axes.get_ylim()
    # The room for names lies beyond the data, where a tick would promise more of it.
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
    axes.set_ylim(low, high + 0.35 * (high - low))
    point = axes.figure.dpi / 72
    line, beside = 11.5 * point, 7 * point
    room = axes.transAxes.transform((1, 1))[0] - axes.transAxes.transform((0, 0))[0]
    named = sorted(
        (
            (name, x, y)
            for points in panel.points
            for name, x, y in zip(points.prompt_ids, points.x, points.y, strict=True)
            if name in panel.named
        ),
        key=lambda named: named[1:],
    )
    taken: list[tuple[float, float, float]] = []
    for place, (name, x, y) in enumerate(named):
        across, up = axes.transData.transform((x, y))
        wide = _WIDE * len(name) * room
        # To the side on which the name has room.
        left = axes.transAxes.inverted().transform((across, up))[0] < min(0.5, _WIDE * len(name))
        start = across + beside if left else across - beside - wide
        at = up + line / 2
        while any(
            abs(at - other) < line and start < end and begin < start + wide
            for begin, end, other in taken
        ):
            at += line / 4
        taken.append((start, start + wide, at))
        axes.annotate(
            name,
            (x, y),
            xytext=(7 if left else -7, (at - up) / point),
            textcoords="offset points",
            ha="left" if left else "right",
            va="bottom",
            fontsize=_SMALL,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": _INK, "shrinkA": 0, "shrinkB": 0},
            # The line of a name further up passes behind those below it.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            zorder=4 - 0.01 * place,
        )


def _draw_bars(axes: Axes, panel: BarPanel) -> None:
    # Bars name themselves on the axis, so colour only tells populations from everything else.
    for place, bar in enumerate(panel.bars):
        look = LOOKS.get(bar.role, _OTHER[0])
        axes.barh(place, bar.value, height=0.62, color=look.colour, alpha=0.85)
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            reach = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
            axes.errorbar(bar.value, place, xerr=reach, color=_INK, lw=1.0, capsize=3)
    axes.axvline(0, color=_INK, lw=0.8)
    axes.set_yticks(range(len(panel.bars)), [_wrapped(bar.label, 19) for bar in panel.bars])
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def draw(axes: Axes, panel: Panel) -> None:
    """Draw a panel into axes, in the style of the report."""
    match panel:
        case CurvePanel():
            _draw_curves(axes, panel)
        case ScatterPanel():
            _draw_points(axes, panel)
        case BarPanel():
            _draw_bars(axes, panel)
    axes.tick_params(length=0)
    if isinstance(panel, BarPanel):
        # Names are wide, so that the title begins above them.
        axes.set_title(_wrapped(panel.title, 42), x=-_BARS[0] / _BARS[2])
        axes.set_xlabel(_wrapped(panel.y_label, 36))
        return
    axes.set_title(_wrapped(panel.title, 42), x=-_PLACE[0] / _PLACE[2])
    note = known(panel.note) if isinstance(panel, ScatterPanel) else ""
    # Beneath the axes a note hides no dot, wherever the dots are.
    axes.set_xlabel(f"{panel.x_label}\n{note}" if note else panel.x_label)
    axes.set_ylabel(_wrapped(panel.y_label, 34))
    axes.yaxis.set_label_coords(-0.13, 0.5)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Below the axes a legend never hides a curve, whatever the data.
        axes.legend(
            handles, labels, loc="upper left",
            bbox_to_anchor=(-_PLACE[0] / _PLACE[2], -0.31 if note else -0.215),
            ncols=2, borderaxespad=0, columnspacing=1.4,
        )  # fmt: skip


def _place(panel: Panel) -> tuple[float, float, float, float]:
    """Return where the axes lie within a panel."""
    return _BARS if isinstance(panel, BarPanel) else _PLACE


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_long_words=False))


def _sheet(panels: Sequence[Panel]) -> Figure:
    """Draw panels side by side."""
    across = min(len(panels), _ACROSS)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(_SIZE[0] * across, _SIZE[1] * down))
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        left, bottom, width, height = _place(panel)
        # Places are fixed: laying out dozens of axes would take longer than the study's report.
        draw(
            figure.add_axes(
                (
                    (column + left) / across,
                    (down - 1 - row + bottom) / down,
                    width / across,
                    height / down,
                )
            ),
            panel,
        )
    return figure


def save(sheets: Mapping[str, Sequence[Panel]], pdf: Path) -> tuple[Path, ...]:
    """Write figures for print: one PNG each, and one PDF with a page each.

    The pages share their fonts: embedding them anew for each figure takes longer than drawing it.

    Args:
        sheets: Panels of each figure, by name; a figure without panels is left out.
        pdf: Path of the PDF; its folder exists and takes the PNGs.

    Returns:
        The PNGs (150 dots an inch), in order, and the PDF, if there was anything to draw; the same
        panels give the same bytes.

    Source: ours.
    """
    pages, made = io.BytesIO(), list[Path]()
    facts = {"CreationDate": None, "Producer": None, "Creator": None}
    with mpl.rc_context(_STYLE), PdfPages(pages, metadata=facts) as book:
        for name, panels in sheets.items():
            if panels:
                figure = _sheet(panels)
                made.append(pdf.with_name(f"{name}.png"))
                figure.savefig(made[-1], **_PNG)
                book.savefig(figure)
    if made:
        pdf.write_bytes(pages.getvalue())
        made.append(pdf)
    return tuple(made)


def save_png(panels: Sequence[Panel], png: Path) -> None:
    """Write one figure for the screen alone, in half the time.

    Args:
        panels: Its panels.
        png: Where to write it.
    """
    with mpl.rc_context(_STYLE):
        _sheet(panels).savefig(png, **_PNG)


_PNG: dict[str, Any] = {"dpi": 150, "metadata": {"Software": None}}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_ELEMENTS = {"svg", "g", "path", "use", "defs", "clipPath", "rect", "text", "tspan"}
_ATTRIBUTES = {
    "viewBox", "id", "d", "x", "y", "width", "height", "transform", "clip-path", "href", "fill",
    "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray",
    "stroke-dashoffset", "stroke-linejoin", "stroke-linecap", "stroke-miterlimit", "opacity",
    "text-anchor", "font-size", "font-weight", _MARK,
}  # fmt: skip
"""All that a figure of ours needs; anything else matplotlib may write is left out."""
_LENGTHS = {"d", "x", "y", "width", "height", "transform"}
_LONG = re.compile(r"-?\d+\.\d{3,}")
"""A length of more digits than a page can show: a hundredth of a pixel is enough."""


def svg(panel: Panel, name: str, places: Mapping[str, int] | None = None) -> str:
    """Draw a panel for the page.

    Args:
        panel: The panel.
        name: Name of the panel in the page; makes its identifiers unique there.
        places: Place of each prompt in the page's list, which its dots are marked with.

    Returns:
        One `svg` element whose colours are the page's variables; the same panel gives the same
        text.

    Source: ours.
    """
    buffer, panel = io.StringIO(), _thinned(panel)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE)
        draw(figure.add_axes(_place(panel)), panel)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator"))
        )
    drawn = ElementTree.fromstring(buffer.getvalue())
    if places and isinstance(panel, ScatterPanel):
        _mark(drawn, panel, places)
    root = _cleaned(drawn, name)
    for unneeded in ("width", "height", "id"):
        root.attrib.pop(unneeded, None)
    label = known(f"{panel.title}. {panel.caption}")
    root.attrib |= {
        "role": "img",
        "aria-label": label,
        "stroke-linejoin": "round",
        "font-family": "inherit",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _thinned(panel: Panel) -> Panel:
    """Leave out dots evenly where a group has more than a page can show."""
    if not isinstance(panel, ScatterPanel):
        return panel
    groups: list[Points] = []
    for points in panel.points:
        step = math.ceil(len(points.x) / POINTS)
        label = points.label if step < 2 else f"{points.label}, every {step}th drawn"
        part = np.flatnonzero(np.isfinite(points.x) & np.isfinite(points.y))[:: max(1, step)]
        names = tuple(points.prompt_ids[at] for at in part)
        groups.append(Points(label, points.role, points.x[part], points.y[part], names))
    return replace(panel, points=tuple(groups))


def _mark(root: ElementTree.Element, panel: ScatterPanel, places: Mapping[str, int]) -> None:
    """Mark each dot with the place of its prompt."""
    groups = {group.get("id"): group for group in root.iter(f"{{{_SVG}}}g")}
    for at, points in enumerate(panel.points):
        dots = list(groups[f"{_DOTS}{at}"].iter(f"{{{_SVG}}}use")) if len(points.x) else []
        for dot, name in zip(dots, points.prompt_ids, strict=True):
            if name in places:
                dot.set(_MARK, str(places[name]))


def _cleaned(element: ElementTree.Element, name: str) -> ElementTree.Element:
    """Copy an element without namespaces, style attributes and everything not on the list.

    The page's content policy refuses style attributes, so each becomes plain attributes.
    """
    kept = ElementTree.Element(element.tag.removeprefix(f"{{{_SVG}}}"))
    given = dict(element.attrib)
    given |= {
        key.strip(): value.strip()
        for key, _, value in (part.partition(":") for part in given.pop("style", "").split(";"))
    }
    if _XLINK in given:
        given["href"] = given.pop(_XLINK)
    font = re.match(r"(?:(bold|[1-9]00) )?([\d.]+)px", given.get("font", ""))
    if font:
        given["font-size"] = font[2]
        if font[1]:
            given["font-weight"] = font[1]
    for key, value in given.items():
        if key in _ATTRIBUTES and not (key == "id" and kept.tag == "g"):
            if key == "id":
                value = f"{name}-{value}"
            elif key in ("href", "clip-path"):
                value = value.replace("#", f"#{name}-")
            elif key in _LENGTHS:
                value = _LONG.sub(lambda number: f"{float(number[0]):.2f}", value)
                value = " ".join(value.split())
            kept.set(key, _VARIABLES.get(value, value))
    kept.text = element.text if (element.text or "").strip() else None
    for child in element:
        if child.tag.removeprefix(f"{{{_SVG}}}") in _ELEMENTS:
            part = _cleaned(child, name)
            if part.tag != "g" or len(part):
                kept.append(part)
    return kept
