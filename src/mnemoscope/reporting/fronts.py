"""Fronts show what each mitigation buys at what price: one dot a mitigation and strength.

A dot lies on the front where no other is at least as good on both axes and better on one; those are
named.

Contents: `fronts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from mnemoscope.core.panels import Points, Role, ScatterPanel
from mnemoscope.ranking.outcomes import Comparison, Outcome, front

ORIGINS: dict[str, Role] = {"ours": "memorized", "published": "not memorized", "none": "control"}
"""Looks of who a mitigation is from."""

Axis = tuple[str, str, str]
"""Population, metric, and what it is called."""

COPIES: Axis = ("memorized", "copies", "share of samples that copy a training image")
FIGURES: tuple[tuple[str, str, Axis, Axis, int], ...] = (
    (
        "alignment",
        "What is kept of the caption",
        COPIES,
        ("memorized", "right", "share of samples that show what the caption names"),
        1,
    ),
    (
        "others",
        "What ordinary prompts pay",
        COPIES,
        ("others", "changed", "change of ordinary samples, in distances of two seeds"),
        -1,
    ),
    (
        "price",
        "What it costs",
        ("memorized", "network_calls", "network calls a sample"),
        COPIES,
        -1,
    ),
)
"""Name, title, x (smaller is better), y, and whether larger (1) or smaller (-1) y is better."""


def fronts(rows: Sequence[Comparison]) -> dict[str, ScatterPanel]:
    """Return the figures of a comparison by name; a figure without numbers is left out.

    Source: ours.
    """
    found: dict[str, ScatterPanel] = {}
    for gated in (False, True):
        here = [row for row in rows if row.outcome.gated == gated or not row.outcome.setting]
        for name, title, x, y, better in FIGURES:
            panel = _panel(here, title, x, y, better, gated)
            if panel is not None:
                found[f"{name}-gated" if gated else name] = panel
    return found


def _panel(
    rows: Sequence[Comparison], title: str, x: Axis, y: Axis, better: int, gated: bool
) -> ScatterPanel | None:
    known = {(row.outcome.setting, row.population, row.metric): row.value.value for row in rows}
    outcomes = {row.outcome.setting: row.outcome for row in rows}
    nothing = float("nan")
    dots = [
        _Dot(outcome, known.get((setting, *x[:2]), nothing), known.get((setting, *y[:2]), nothing))
        for setting, outcome in outcomes.items()
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
            tuple(dot.called for dot in mine),
        )
        for origin, role in ORIGINS.items()
        if (mine := [dot for dot in dots if dot.origin == origin])
    ]
    where = "suspicious prompts alone" if gated else "every prompt"
    told = "; ".join(f"{dot.called} ({dot.x:.2g}, {dot.y:.2g})" for dot in best)
    return ScatterPanel(
        title,
        f"{x[2]} ({x[0]} prompts)",
        f"{y[2]} ({y[0]} prompts)",
        f"One dot a mitigation and strength, acting on {where}. Nothing is at least as good on "
        f"both axes as {told}.",
        tuple(groups),
        named=tuple(dot.called for dot in best),
    )


@dataclass(frozen=True)
class _Dot:
    """Where an outcome stands in a figure."""

    outcome: Outcome
    x: float
    y: float

    @property
    def origin(self) -> str:
        """Return who its mitigation is from."""
        if not self.outcome.setting:
            return "none"
        return "ours" if self.outcome.source.startswith("ours") else "published"

    @property
    def called(self) -> str:
        """Return its mitigation with its strength."""
        if not self.outcome.setting:
            return "none"
        strength = self.outcome.strength
        return self.outcome.method + (f" {strength:g}" if isfinite(strength) else "")
