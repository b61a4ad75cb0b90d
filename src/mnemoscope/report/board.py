"""A leaderboard's section shows how detectors compare on a run: a table, and AUC against its price.

The folder is what `mnemoscope bench detectors` writes; it belongs to a run where its `bench.json`
names the same weights.

Contents: `Board`, `board`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mnemoscope.errors import RunError
from mnemoscope.mechanism.base import Points, ScatterPanel
from mnemoscope.report.text import number, visible
from mnemoscope.runs import Run
from mnemoscope.tables import TABLES

RANKING, FACTS = "ranking.parquet", "bench.json"
TOLD = ("cut", "measure", "guidance", "memorized", "others", "left_out")
"""What the page tells of how prompts were judged."""

METRICS = ("auc", "tpr", "auc_matched", "severity")
"""Metrics of the table, in the order of its columns."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One detector.

    Attributes:
        detector: Its name, spelled out.
        kind: "prompt", "pair" or "calibrated".
        population: The prompts it was judged on.
        metrics: Row of table `ranking` of each of `METRICS`; None where there is none.
        calls: Network calls a prompt; None where unknown.
        seconds: Seconds a prompt; None where unknown.
        memorized: Memorized prompts it was judged on.
        others: Other prompts it was judged on.
    """

    detector: str
    kind: str
    population: str
    metrics: tuple[Row | None, ...]
    calls: float | None
    seconds: float | None
    memorized: int
    others: int

    @property
    def auc(self) -> float | None:
        """Return its AUC; None where it was withheld."""
        return self.metrics[0]["value"] if self.metrics[0] else None


@dataclass(frozen=True)
class Board:
    """What the section shows.

    Attributes:
        lines: Detectors, best AUC first.
        facts: How prompts were judged: the entries `TOLD` of `bench.json`.
        panel: AUC against price; None where no detector has both.
    """

    lines: tuple[Line, ...]
    facts: dict[str, Any]
    panel: ScatterPanel | None


def board(run: Run, folder: str | Path | None) -> Board | None:
    """Read the leaderboard of a run.

    Args:
        run: The run.
        folder: Folder of the leaderboard; the one the run lies in where not given and it is one.

    Returns:
        The leaderboard; None where none is given and the run lies in none.

    Raises:
        RunError: If the folder holds no leaderboard, is damaged, or is of another model.

    Source: ours.
    """
    at = run.path.resolve().parent if folder is None else Path(folder)
    missing = [name for name in (RANKING, FACTS) if not (at / name).is_file()]
    if missing and folder is None:
        return None
    if missing:
        raise RunError(
            f"{str(at)!r} is no leaderboard: it holds no {missing[0]}; give the folder that "
            "`mnemoscope bench detectors` wrote"
        )
    try:
        facts = json.loads((at / FACTS).read_bytes())
        digest = facts["model"]["digest"]
        told = {name: facts[name] for name in TOLD}
        table = pq.read_table(at / RANKING, use_threads=False, pre_buffer=False)
        rows = table.cast(TABLES["ranking"].schema).to_pylist()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise RunError(
            f"the leaderboard in {str(at)!r} is damaged: {error}; make it again with "
            "`mnemoscope bench detectors`"
        ) from error
    if digest != run.manifest.model["digest"]:
        if folder is None:
            return None
        raise RunError(
            f"the leaderboard in {str(at)!r} is of other weights than the run ({digest[:16]} "
            f"there, {run.manifest.model['digest'][:16]} here); give the one of this model"
        )
    lines = tuple(sorted(_lines(rows), key=lambda line: -(-1.0 if line.auc is None else line.auc)))
    return Board(lines, told, _panel(lines))


def _lines(rows: Sequence[Row]) -> list[Line]:
    found: list[Line] = []
    for name in dict.fromkeys(row["detector"] for row in rows):
        mine = [row for row in rows if row["detector"] == name]
        # Fitted weights are judged on the half of the prompts that they were not fitted on.
        population = "judging half" if mine[0]["kind"] == "calibrated" else "all"
        held = {row["metric"]: row for row in mine if row["population"] == population}
        first = held.get("auc", mine[0])
        found.append(
            Line(
                visible(name, 60),
                visible(first["kind"], 20),
                population,
                tuple(held.get(metric) for metric in METRICS),
                first["network_calls"],
                first["seconds"],
                first["memorized"],
                first["others"],
            )
        )
    return found


def _panel(lines: Sequence[Line]) -> ScatterPanel | None:
    placed = [line for line in lines if line.auc is not None and line.calls]
    if not placed:
        return None
    best: list[str] = []
    reached = -1.0
    for line in sorted(placed, key=lambda line: (line.calls or 0.0, -(line.auc or 0.0))):
        if (line.auc or 0.0) > reached:
            reached = line.auc or 0.0
            best.append(f"{line.detector} ({number(line.calls)} calls, AUC {number(line.auc)})")
    groups = [
        Points(
            kind,
            "other",
            np.log10([line.calls or 1.0 for line in placed if line.kind == kind]),
            np.array([line.auc or 0.0 for line in placed if line.kind == kind]),
            tuple(line.detector for line in placed if line.kind == kind),
        )
        for kind in dict.fromkeys(line.kind for line in placed)
    ]
    return ScatterPanel(
        "What a detector tells, against its price",
        "network calls a prompt, log₁₀",
        "AUC",
        "One dot a detector: the chance that a memorized prompt scores above another, against the "
        "network calls it takes. Nothing cheaper is better than " + "; ".join(best) + ".",
        tuple(groups),
    )
