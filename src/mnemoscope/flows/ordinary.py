"""Ordinary scores say where a score lies among prompts that are known not to be memorized.

Formulas, for a score s and the n ordinary scores of the same detector::

    above     #{ordinary < s} / n
    flagged   s > the k-th smallest of them, k = ceil((1 - FPR)·(n + 1))

Of new prompts of the same kind, a share of FPR is flagged at most; of prompts of another kind
nothing is known. Scores are held to those of the same model, recipe and number of seeds alone;
which noise was drawn, and whether prompts shared it, changes no score's distribution.

A calibration file, which `mnemoscope calibrate` writes, holds thresholds and no scores.

Contents: `Ordinary`, the scores of one detector; `Known`, those of a folder or file.

Source: split conformal calibration (Vovk et al. 2005).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from mnemoscope.errors import InputError, RunError
from mnemoscope.guarding.calibration import Calibration
from mnemoscope.ranking.thresholds import conformal, fewest
from mnemoscope.reporting.board import FACTS
from mnemoscope.runs.folder import Run, open_run
from mnemoscope.runs.parts import MAX_PART, decode
from mnemoscope.runs.records import read_bytes, unsealed
from mnemoscope.sampling.recipe import Recipe
from mnemoscope.severity.truth import truth_of

SCORES = "scores.parquet"
"""File of a benchmark's scores, with a column that says which prompts are memorized."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ordinary:
    """Scores of ordinary prompts by one detector.

    Attributes:
        scores: The scores, rising; none where only the threshold is known.
        rate: Share of them that may be flagged.
        threshold: The score above which a prompt is flagged; NaN where there are too few.
    """

    scores: Float[np.ndarray, " prompt"]
    rate: float
    threshold: float

    @classmethod
    def of(cls, scores: Sequence[float], rate: float) -> "Ordinary":
        """Set the threshold on scores, at a false positive rate."""
        rising = np.sort(np.array(scores, dtype=np.float64))
        return cls(rising, rate, float(conformal(rising, rate)))

    @property
    def told(self) -> str:
        """Say what scores are held to."""
        n = len(self.scores)
        said = f"above ordinary: how many of {n} ordinary prompts score lower. " if n else ""
        if math.isnan(self.threshold):
            return said + (
                f"Whether a prompt is memorized is not said: {self.rate:.2g} false positives take "
                f"{fewest(self.rate)} ordinary prompts (--false-positives)"
            )
        return said + (
            f"memorized?: above {self.threshold:.4g}, which a share of {self.rate:.2g} of such "
            "prompts exceeds at most"
        )

    def above(self, score: float) -> float | None:
        """Return the share of ordinary prompts that score lower; None where none is known."""
        if not len(self.scores):
            return None
        return float(np.searchsorted(self.scores, score, side="left")) / len(self.scores)

    def flagged(self, score: float) -> bool | None:
        """Return whether a score is flagged; None where there are too few to say."""
        return None if math.isnan(self.threshold) else bool(score > self.threshold)


@dataclass(frozen=True)
class Known:
    """What a folder or file knows of ordinary prompts.

    Attributes:
        path: The folder.
        digest: SHA-256 of the model's weights.
        recipes: Rows of table `recipes`, by key.
        rows: Rows of table `scores`.
        ordinary: Prompts that are known not to be memorized; by key of the recipe.
        calibration: Thresholds in place of scores, where it is a calibration file.
    """

    path: Path
    digest: str
    recipes: Mapping[str, Row]
    rows: Sequence[Row]
    ordinary: Mapping[str, frozenset[str]]
    calibration: Calibration | None = None

    @classmethod
    def of(cls, folder: str | Path) -> "Known":
        """Read the folder of a benchmark or of a run, or a calibration file.

        In a benchmark and a study, prompts that were judged not memorized are ordinary; in a
        detection, its controls, or all of its prompts where it has none.

        Raises:
            InputError: If it is a file and no calibration.
            RunError: If it is a folder of neither kind, or damaged.
        """
        folder = Path(folder)
        if folder.is_file():
            made = Calibration.read(folder)
            digest = made.model.get("digest", "")
            return cls(folder, digest, {"": made.recipe}, (), {}, made)
        return _of_benchmark(folder) if (folder / FACTS).is_file() else _of_run(open_run(folder))

    def held(
        self, detectors: Sequence[str], digest: str, recipe: Recipe, seeds: int, rate: float
    ) -> dict[str, Ordinary]:
        """Return the ordinary scores of some detectors, those that there are.

        Args:
            detectors: Names of the detectors.
            digest: SHA-256 of the model's weights.
            recipe: How prompts are sampled.
            seeds: Samples a prompt.
            rate: Share of ordinary prompts that may be flagged.

        Raises:
            InputError: If the folder is of another model or another question.
        """
        if self.digest != digest:
            raise InputError(
                f"{str(self.path)!r} is of other weights ({self.digest[:16]} there, {digest[:16]} "
                "here); give ordinary prompts of this model"
            )
        asked = _question(recipe.row)
        keys = [key for key, row in self.recipes.items() if _question(row) == asked]
        if not keys:
            known = [_question(row) for row in self.recipes.values()]
            apart = sorted({n for row in known for n in asked if row.get(n) != asked[n]})
            there = "; ".join(
                f"{name}: {', '.join(sorted({str(row.get(name)) for row in known}))} there, "
                f"{asked[name]} here"
                for name in apart
            )
            raise InputError(f"{str(self.path)!r} was sampled otherwise ({there}); give the same")
        if self.calibration is not None:
            return _thresholds(self.calibration, self.path, detectors, seeds)
        scores: dict[str, list[float]] = {}
        other: set[int] = set()
        for row in self.rows:
            here = row["recipe"] in keys and row["detector"] in detectors
            if not here or row["prompt_id"] not in self.ordinary[row["recipe"]]:
                continue
            if row["seeds"] != seeds:
                other.add(row["seeds"])
            elif row["score"] is not None and math.isfinite(row["score"]):
                scores.setdefault(row["detector"], []).append(row["score"])
        if not scores:
            raise InputError(
                f"{str(self.path)!r} has scores of {sorted(other)[0]} seeds, and {seeds} are "
                "asked for; give the same"
                if other
                else f"{str(self.path)!r} holds no ordinary prompt that was scored by "
                f"{', '.join(detectors)}; score some by `mnemoscope detect`"
            )
        return {name: Ordinary.of(some, rate) for name, some in scores.items()}


def _thresholds(
    made: Calibration, path: Path, detectors: Sequence[str], seeds: int
) -> dict[str, Ordinary]:
    """Return the threshold of a calibration for a number of samples: that for as many, or fewer."""
    if made.detector not in detectors:
        raise InputError(
            f"{str(path)!r} is a calibration of {made.detector}; score by it "
            f"(--detectors {made.detector})"
        )
    known = [level for level in made.thresholds if level.seeds <= seeds]
    if not known:
        raise InputError(
            f"{str(path)!r} has thresholds for {made.thresholds[0].seeds} seeds and more, and "
            f"{seeds} are asked for; give as many"
        )
    return {made.detector: Ordinary(np.empty(0), made.fpr, known[-1].value)}


def _question(row: Row) -> dict[str, Any]:
    """Return what has to agree: how was sampled, the noise aside."""
    names = Recipe.__dataclass_fields__.keys() - {"seed", "noise", "intervention"}
    intervention = row.get("intervention")
    return {name: row.get(name) for name in sorted(names)} | {
        "intervention": None if intervention is None else str(intervention)
    }


def _of_benchmark(folder: Path) -> Known:
    try:
        facts, has_digest = unsealed(read_bytes(folder / FACTS))
        recipe = facts["recipe"]
        data = read_bytes(folder / SCORES, MAX_PART)
        if has_digest and hashlib.sha256(data).hexdigest() != facts["files"][SCORES]:
            raise ValueError(f"{SCORES} differs from what was written")
        rows = decode(data).to_pylist()
        ordinary = frozenset(row["prompt_id"] for row in rows if row["memorized"] is False)
        digest = facts["model"]["digest"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise RunError(
            f"the benchmark in {str(folder)!r} is damaged, or of an earlier version: {error!r}; "
            "make it again with `mnemoscope bench detectors`"
        ) from error
    key = recipe["recipe"]
    return Known(folder, digest, {key: recipe}, rows, {key: ordinary})


def _of_run(run: Run) -> Known:
    prompts = run.table("prompts").to_pylist()
    if run.manifest.flow == "study":
        measure = run.manifest.options["similarity"][0]
        ordinary: dict[str, frozenset[str]] = {}
        for key, row in run.recipes.items():
            truth = truth_of(run, guidance=row["guidance"], measure=measure, recipe=key)
            pairs = zip(truth.prompt_id, truth.judged & ~truth.memorized, strict=True)
            ordinary[key] = frozenset(name for name, plain in pairs if plain)
    else:
        controls = frozenset(row["prompt_id"] for row in prompts if row["group"] == "control")
        every = frozenset(row["prompt_id"] for row in prompts)
        ordinary = dict.fromkeys(run.recipes, controls or every)
    rows = run.table("scores").to_pylist()
    return Known(run.path, run.manifest.model["digest"], run.recipes, rows, ordinary)
