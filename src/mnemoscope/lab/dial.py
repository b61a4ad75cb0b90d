"""The dial says how much the unconditional branch knows of the planted pictures; this reads it.

Models that differ in nothing but the dial of their planting (`lab.train.Planting.known`) are set
side by side: what a study of each finds of the paper's quantities, and how well each score
separates its memorized prompts from others. At 0 the unconditional branch was shown no planted
picture; at the share of a batch that is planted it was shown as many as the conditional one.

Contents: `Point`, one model; `figures`, the panels. The table is `lab.findings`.

Source: ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Any

import numpy as np

from mnemoscope.core.panels import CurvePanel, Role, Series
from mnemoscope.errors import InputError
from mnemoscope.lab.findings import ROWS, Row, aucs, stated
from mnemoscope.runs.folder import Run

DRAWN: dict[str, Role] = {
    "consensus_whitened": "not memorized",
    "gap_norm": "memorized",
    "gap_norm:all": "control",
    "curvature_difference": "other",
    "bright_ending": "other",
    "attention_entropy": "other",
}
"""Scores that are drawn, and their looks."""

FALL = "largest fall of wT below the schedule, memorized"
FIRST = "k at the first call, memorized"

Told = tuple[float, float, float]
"""A value with the ends of its interval; NaN where there is none."""

NOTHING: Told = (nan, nan, nan)

Lines = Mapping[str, tuple[Role, list[Told]]]
"""What each line stands for, and its value at each point, by name."""


@dataclass(frozen=True)
class Point:
    """A model at one point of the dial.

    Attributes:
        known: The dial.
        statistics: Rows of table `statistics` of a study of it, at one guidance scale.
        measure: The study's first similarity.
        ranking: Rows of `ranking.parquet` of `bench detectors` on it.
    """

    known: float
    statistics: Sequence[Mapping[str, Any]]
    measure: str
    ranking: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, known: float, study: Run, ranking: Sequence[Mapping[str, Any]]) -> "Point":
        """Take what a study found at its highest guidance scale."""
        scale = max(recipe["guidance"] for recipe in study.recipes.values())
        rows = study.table("statistics").to_pylist()
        statistics = [row for row in rows if row["guidance"] in (scale, None)]
        return cls(known, statistics, str(study.manifest.options["similarity"][0]), ranking)

    @cached_property
    def auc(self) -> dict[str, Told]:
        """Return the AUC of every score over all prompts."""
        return {name: _of(row) for name, row in aucs(self.ranking).items()}

    def quantity(self, row: Row) -> Told:
        """Return one of the paper's quantities."""
        found = stated(self.statistics, row, self.measure)
        return NOTHING if found is None else _of(found)


def _of(row: Mapping[str, Any]) -> Told:
    low, value, high = (nan if row[at] is None else row[at] for at in ("low", "value", "high"))
    return value, low, high


def _ordered(points: Iterable[Point]) -> list[Point]:
    """Return points by their dial.

    Raises:
        InputError: If there are fewer than two, or two of one dial.
    """
    ordered = sorted(points, key=lambda point: point.known)
    dials = [point.known for point in ordered]
    if len(dials) < 2 or len(set(dials)) < len(dials):
        raise InputError(f"dials {dials} given; expected two or more, each once")
    return ordered


def figures(points: Iterable[Point]) -> list[CurvePanel]:
    """Draw the AUC of scores, the fall of wT, and k at the first call, against the dial.

    Raises:
        InputError: If there are fewer than two points, or two of one dial.
    """
    ordered = _ordered(points)
    quantities = {row.about: row for row in ROWS}

    def drawn(title: str, y_label: str, lines: Lines) -> CurvePanel:
        return CurvePanel(
            title,
            "planted share of empty captions",
            y_label,
            "Models that differ in the dial alone. Band: 95 %, bootstrap over prompts.",
            tuple(_series(ordered, name, role, values) for name, (role, values) in lines.items()),
        )

    scores: Lines = {
        name: (role, [point.auc.get(name, NOTHING) for point in ordered])
        for name, role in DRAWN.items()
    }
    fall, first = (
        {"memorized": ("memorized", [point.quantity(quantities[name]) for point in ordered])}
        for name in (FALL, FIRST)
    )
    return [
        drawn("Whether a score tells", "AUC", scores),
        drawn("How early the noise leaves", "largest fall of wT", fall),
        drawn("What the first call holds", "k at the first call", first),
    ]


def _series(points: Sequence[Point], name: str, role: Role, values: Sequence[Told]) -> Series:
    y, low, high = np.array(values, dtype=np.float64).T
    x = np.array([point.known for point in points])
    return Series(name, role, x, y, low, high, np.full(len(x), nan))
