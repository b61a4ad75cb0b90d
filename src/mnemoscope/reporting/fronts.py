"""Fronts show what each mitigation buys at what price: one dot a mitigation and strength.

A dot lies on the front where no other is at least as good on both axes and better on one; those are
named, beside their dots or beneath the figure. A change "in seeds" is in units of the distance
between two seeds.

Contents: `fronts`; `ROWS`, `PAIRS` and `FACTS`, the files of a comparison.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np

from mnemoscope.core.panels import Points, Role, ScatterPanel
from mnemoscope.ranking.outcomes import front

ROWS, PAIRS, FACTS = "mitigations.parquet", "pairs.parquet", "bench.json"

ORIGINS: dict[str, Role] = {"ours": "memorized", "published": "not memorized", "none": "control"}
"""Looks of who a mitigation is from."""

NAMED = 6
"""Most dots that have room for a name."""

Row = Mapping[str, Any]
"""A row of table `mitigations`."""

Axis = tuple[str, str, str]
"""Population, metric, and what it is called."""

COPIES: Axis = ("memorized", "copies", "share that copies a training image")
FIGURES: tuple[tuple[str, str, Axis, Axis, int], ...] = (
    (
        "right-new",
        "What is right, and new",
        COPIES,
        ("memorized", "right_new", "share right and new"),
        1,
    ),
    (
        "alignment",
        "What is kept of the caption",
        COPIES,
        ("memorized", "right", "share showing what is named"),
        1,
    ),
    (
        "clip",
        "What is kept of the caption, by CLIP",
        COPIES,
        ("memorized", "alignment", "cosine of picture, caption"),
        1,
    ),
    (
        "quality",
        "What becomes of the pictures",
        COPIES,
        ("memorized", "scene_distance", "distance to scenes"),
        -1,
    ),
    (
        "others",
        "What ordinary prompts pay",
        COPIES,
        ("others", "changed", "change of others, in seeds"),
        -1,
    ),
    (
        "price",
        "What it costs",
        ("memorized", "network_calls", "network calls a sample"),
        ("memorized", "copies", "share that copies an image"),
        -1,
    ),
)
"""Name, title, x (smaller is better), y, and whether larger (1) or smaller (-1) y is better."""


def fronts(rows: Sequence[Row], origins: Mapping[str, str]) -> dict[str, ScatterPanel]:
    """Return the figures of a comparison by name; a figure without numbers is left out.

    Args:
        rows: Rows of table `mitigations`.
        origins: Who each setting is from, "ours" or "published".

    Source: ours.
    """
    found: dict[str, ScatterPanel] = {}
    for gated in (False, True):
        here = [row for row in rows if row["gated"] == gated or not row["setting"]]
        for name, title, x, y, better in FIGURES:
            panel = _panel(here, title, x, y, better, gated, origins)
            if panel is not None:
                found[f"{name}-gated" if gated else name] = panel
    return found


def called(row: Row) -> str:
    """Return the mitigation of a row with its strength, short.

    Source: ours.
    """
    if not row["setting"]:
        return "none"
    return row["method"] + ("" if row["strength"] is None else f":{row['strength']:g}")


def _panel(
    rows: Sequence[Row],
    title: str,
    x: Axis,
    y: Axis,
    better: int,
    gated: bool,
    origins: Mapping[str, str],
) -> ScatterPanel | None:
    known = {(row["setting"], row["population"], row["metric"]): row["value"] for row in rows}
    names = {row["setting"]: called(row) for row in rows}

    def value(setting: str, axis: Axis) -> float:
        found = known.get((setting, *axis[:2]))
        return nan if found is None else found

    dots = [
        _Dot(
            name,
            origins.get(setting, "published") if setting else "none",
            value(setting, x),
            value(setting, y),
        )
        for setting, name in names.items()
    ]
    dots = [dot for dot in dots if isfinite(dot.x) and isfinite(dot.y)]
    if len(dots) < 2:
        return None
    best = [dots[at] for at in front([d.x for d in dots], [better * d.y for d in dots])]
    groups = [
        Points(
            origin,
            role,
            np.array([dot.x for dot in mine]),
            np.array([dot.y for dot in mine]),
            tuple(dot.name for dot in mine),
        )
        for origin, role in ORIGINS.items()
        if (mine := [dot for dot in dots if dot.origin == origin])
    ]
    where = "suspicious prompts alone" if gated else "every prompt"
    told = "; ".join(f"{dot.name} ({dot.x:.2g}, {dot.y:.2g})" for dot in best)
    # A long front is named evenly, both ends among them.
    evenly = np.unique(np.linspace(0, len(best) - 1, min(len(best), NAMED)).round().astype(int))
    return ScatterPanel(
        title,
        x[2],
        y[2],
        f"One dot a mitigation and strength, acting on {where}: {x[2]} ({x[0]} prompts) and {y[2]} "
        f"({y[0]} prompts). Nothing is at least as good on both axes as {told}.",
        tuple(groups),
        # Names stand above their dots: beneath all others there is no room for them.
        named=tuple(best[at].name for at in evenly.tolist()) if better > 0 else (),
        log_x=x[1] == "network_calls",
    )


@dataclass(frozen=True)
class _Dot:
    """Where a mitigation stands in a figure."""

    name: str
    origin: str
    x: float
    y: float
