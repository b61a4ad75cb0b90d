"""The mechanism package asks a run the founding paper's questions, one file a question.

Another distribution adds one by naming its module under the entry point group
`mnemoscope.mechanism`.

Contents: `all_analyses` (found by the registry), `analyse` (a record to findings), `columns`
(findings to table columns), `read` (a run to a record).
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from math import isnan
from typing import Any

from mnemoscope.mechanism.base import Analysis, Check, Curve, Finding, Record, Statistic
from mnemoscope.mechanism.read import read
from mnemoscope.registry import classes, named

MOVING = ("call", "log_snr", "median", "low", "high")
"""What a curve has of every call."""

__all__ = ["Analysis", "Finding", "Record", "all_analyses", "analyse", "columns", "read"]


@cache
def all_analyses() -> tuple[Analysis, ...]:
    """Return every analysis there is, in the order of the argument.

    Raises:
        InputError: If two have the same name, or an extension cannot be imported.

    Source: ours.
    """
    made = [_made(kind) for kind in classes(__name__, Analysis)]
    found = named(((analysis.name, analysis) for analysis in made), "analysis")
    return tuple(sorted(found.values(), key=lambda analysis: (analysis.order, analysis.name)))


def _made(kind: Callable[[], Analysis]) -> Analysis:
    return kind()


def analyse(record: Record) -> dict[str, Finding]:
    """Ask a record every question.

    Returns:
        Findings by name, in the order of the argument. What a record cannot answer is a finding
        too, whose checks hold None with the reason.

    Source: Kim, Kim & Lee 2025 for the questions.
    """
    return {analysis.name: analysis.analyse(record) for analysis in all_analyses()}


def columns(findings: Mapping[str, Finding]) -> dict[str, dict[str, list[Any]]]:
    """Lay findings out as the columns of tables `statistics`, `curves` and `checks`.

    Returns:
        Columns by table; None where a number does not exist.

    Source: ours.
    """
    rows: dict[str, list[dict[str, Any]]] = {"statistics": [], "curves": [], "checks": []}
    for finding in findings.values():
        rows["statistics"] += [vars(statistic) for statistic in finding.statistics]
        rows["checks"] += [vars(check) for check in finding.checks]
        for curve in finding.curves:
            whole = vars(curve)
            moving = {name: whole[name].tolist() for name in MOVING}
            for values in zip(*moving.values(), strict=True):
                rows["curves"].append(whole | dict(zip(moving, values, strict=True)))
    kinds = {"statistics": Statistic, "curves": Curve, "checks": Check}
    return {
        table: {at.name: [_null(row[at.name]) for row in rows[table]] for at in fields(kind)}
        for table, kind in kinds.items()
    }


def _null(value: Any) -> Any:
    """Turn what does not exist into null: NaN, and an empty reference, window or reason."""
    return None if value == "" or (isinstance(value, float) and isnan(value)) else value
