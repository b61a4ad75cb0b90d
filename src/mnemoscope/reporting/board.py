"""A leaderboard's section shows how detectors compare on a run: a table, and AUC against its price.

The folder is what `mnemoscope bench detectors` writes; it belongs to a run where its `bench.json`
names the same weights.

Contents: `Board`, `board`, `Place`, `picture`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mnemoscope.core.panels import Points, Role, ScatterPanel
from mnemoscope.errors import RunError
from mnemoscope.reporting.text import number, visible
from mnemoscope.runs.folder import Run
from mnemoscope.runs.parts import MAX_PART, decode
from mnemoscope.runs.records import read_bytes, unsealed
from mnemoscope.runs.tables import TABLES

RANKING, FACTS = "ranking.parquet", "bench.json"
TOLD = ("cut", "measure", "guidance", "memorized", "others", "left_out")
"""What the page tells of how prompts were judged."""

METRICS = ("auc", "tpr", "auc_matched", "severity")
"""Metrics of the table, in the order of its columns."""

PAIRS = "pair scores (take the image)"
"""Origin of detectors beside "ours", "published" and "baselines"."""

ROLES: dict[str, Role] = {
    "ours": "memorized",
    "published": "not memorized",
    "baselines": "control",
}
"""Looks of the origins in the picture."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a detector stands in the picture.

    Attributes:
        detector: Its name.
        origin: Who it comes from, or what it takes.
        calls: Network calls a prompt.
        auc: Its AUC.
    """

    detector: str
    origin: str
    calls: float
    auc: float


@dataclass(frozen=True)
class Standing:
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
        reasons: Why numbers of the table are withheld.
    """

    lines: tuple[Standing, ...]
    facts: dict[str, Any]
    panel: ScatterPanel | None
    reasons: tuple[str, ...]


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
        facts, has_digest = unsealed(read_bytes(at / FACTS))
        digest = facts["model"]["digest"]
        told = {name: facts[name] for name in TOLD}
        data = read_bytes(at / RANKING, MAX_PART)
        # Folders from before there were digests have none.
        if has_digest and hashlib.sha256(data).hexdigest() != facts["files"][RANKING]:
            raise ValueError(f"{RANKING} differs from what was written")
        rows = decode(data).cast(TABLES["ranking"].schema).to_pylist()
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
    return Board(lines, told, _panel(lines, facts.get("origins", {})), _reasons(rows))


def _lines(rows: Sequence[Row]) -> list[Standing]:
    found: list[Standing] = []
    for name in dict.fromkeys(row["detector"] for row in rows):
        mine = [row for row in rows if row["detector"] == name]
        # Fitted weights are judged on the half of the prompts that they were not fitted on.
        population = "judging half" if mine[0]["kind"] == "calibrated" else "all"
        held = {row["metric"]: row for row in mine if row["population"] == population}
        first = held.get("auc", mine[0])
        found.append(
            Standing(
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


def _reasons(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return each reason of the table's numbers once."""
    here = (row for row in rows if row["metric"] in METRICS and row["population"] == "all")
    return tuple(dict.fromkeys(row["reason"] for row in here if row["reason"]))


def _panel(lines: Sequence[Standing], origins: Mapping[str, Any]) -> ScatterPanel | None:
    placed = [
        Place(line.detector, str(origins.get(line.detector, line.kind)), line.calls, line.auc)
        for line in lines
        if line.auc is not None and line.calls is not None and line.kind != "calibrated"
    ]
    return picture(placed) if placed else None


def picture(places: Sequence[Place]) -> ScatterPanel:
    """Return AUC against cost, the detectors named that no cheaper one equals."""
    front: list[Place] = []
    for place in sorted(places, key=lambda place: (place.calls, -place.auc)):
        if not front or place.auc > front[-1].auc:
            front.append(place)
    bought = "; ".join(
        f"{p.detector} ({number(p.calls)} calls, AUC {number(p.auc)})" for p in front
    )
    groups = [
        Points(
            origin,
            ROLES.get(origin, "other"),
            np.array([place.calls for place in places if place.origin == origin]),
            np.array([place.auc for place in places if place.origin == origin]),
            tuple(place.detector for place in places if place.origin == origin),
        )
        for origin in dict.fromkeys(place.origin for place in places)
    ]
    return ScatterPanel(
        "What a detector's AUC costs",
        "network calls a prompt, noise bank warm",
        "AUC",
        "One dot a detector: the chance that a memorized prompt scores above another, against the "
        f"network calls it takes. Nothing cheaper equals {bought}.",
        tuple(groups),
        named=tuple(place.detector for place in front),
        log_x=True,
    )
