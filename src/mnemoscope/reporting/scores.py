"""Scores of a study's detectors, as a reader can take them: by rank, and by what they tell apart.

A score has a unit of its own, so a prompt's page shows where it lies among the run's others, at the
same guidance scale, and the overview how well each detector tells memorized prompts from others::

    rank = 1 + number of the run's prompts that score higher
    auc  = P(score of a memorized prompt > that of another), ties half

Contents: `Scores` and `scores_of`; `Told` and `told`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from mnemoscope.core.stats import Estimate, roc_auc
from mnemoscope.ranking.metrics import auc
from mnemoscope.reporting.quantities import Key
from mnemoscope.reporting.text import short, visible
from mnemoscope.reporting.verdict import Verdict

FIRST = ("consensus_whitened", "gap_norm")
"""Detectors that stand first: the one we recommend, and the one that most others are held to."""

RECOMMENDED = FIRST[0]

MOST = 1000
"""Prompts up to which an AUC has an interval; with more it is narrow, and slow to find."""


@dataclass(frozen=True)
class At:
    """Scores at one guidance scale.

    Attributes:
        score: Score of each prompt by each detector; NaN where there is none.
        rank: Rank of each, from 1; 0 where there is no score.
        counts: Prompts that each detector scored.
    """

    score: Float[np.ndarray, "prompt detector"]
    rank: Int[np.ndarray, "prompt detector"]
    counts: Int[np.ndarray, " detector"]


@dataclass(frozen=True)
class Scores:
    """Scores of a run.

    Attributes:
        detectors: Their names, those in `FIRST` first, the others by name.
        kinds: "prompt" or "pair", by detector.
        calls: Network calls a prompt, alone; by detector.
        places: Row of each prompt.
        at: By guidance scale.
        reasons: Why there is no score, by prompt, guidance scale and place of the detector.
    """

    detectors: tuple[str, ...]
    kinds: Mapping[str, str]
    calls: Mapping[str, float]
    places: Mapping[str, int]
    at: Mapping[float, At]
    reasons: Mapping[tuple[str, float, int], str]

    @property
    def first(self) -> tuple[str, ...]:
        """Return those in `FIRST` that the run holds."""
        return tuple(name for name in self.detectors if name in FIRST)

    def column(self, detector: str) -> dict[Key, float | None]:
        """Return a detector's scores by prompt and guidance scale."""
        place = self.detectors.index(detector)
        return {
            (prompt, scale): float(at.score[row, place])
            for scale, at in self.at.items()
            for prompt, row in self.places.items()
        }

    def listed(self) -> list[dict[str, Any]]:
        """Return the detectors, JSON-ready, with how many prompts each scored at each scale."""
        return [
            {
                "name": visible(name, 80),
                "kind": self.kinds[name],
                "n": {f"{scale:g}": int(at.counts[place]) for scale, at in self.at.items()},
            }
            for place, name in enumerate(self.detectors)
        ]

    def of(self, prompt: str, guidance: float) -> list[list[Any]]:
        """Return a prompt's [score, rank], or [None, reason], by detector; JSON-ready."""
        at, row = self.at.get(guidance), self.places.get(prompt)
        if at is None or row is None:
            return []
        return [
            [short(score), rank]
            if rank
            else [None, visible(self.reasons.get((prompt, guidance, place), ""), 200)]
            for place, (score, rank) in enumerate(
                zip(at.score[row].tolist(), at.rank[row].tolist(), strict=True)
            )
        ]


def scores_of(table: pa.Table) -> Scores:
    """Sort the scores of a run.

    Args:
        table: The view of table `scores`, with the guidance scale of each row.
    """
    found = {name: table[name].to_pylist() for name in ("prompt_id", "detector", "guidance")}
    known = dict.fromkeys(found["detector"])
    detectors = tuple(n for n in FIRST if n in known) + tuple(sorted(known.keys() - set(FIRST)))
    of_detector = {name: place for place, name in enumerate(detectors)}
    of_prompt = {name: place for place, name in enumerate(dict.fromkeys(found["prompt_id"]))}
    rows = np.array([of_prompt[name] for name in found["prompt_id"]], dtype=np.intp)
    columns = np.array([of_detector[name] for name in found["detector"]], dtype=np.intp)
    scales = np.array(found["guidance"], dtype=np.float64)
    values = table["score"].to_numpy().astype(np.float64)
    kinds = dict(zip(found["detector"], table["kind"].to_pylist(), strict=True))
    prices = table["network_calls"].to_numpy().astype(np.float64).tolist()
    # A pair score of a prompt without an image costs nothing, and is no price.
    calls: dict[str, float] = {}
    for name, price in zip(found["detector"], prices, strict=True):
        calls[name] = max(calls.get(name, 0.0), price)
    at: dict[float, At] = {}
    for scale in np.unique(scales).tolist():
        here = scales == scale
        score = np.full((len(of_prompt), len(detectors)), np.nan)
        score[rows[here], columns[here]] = values[here]
        score[~np.isfinite(score)] = np.nan
        at[scale] = At(score, _ranks(score), np.isfinite(score).sum(axis=0))
    reasons = {
        (found["prompt_id"][row], found["guidance"][row], int(columns[row])): reason
        for row, reason in enumerate(table["reason"].to_pylist())
        if reason
    }
    return Scores(detectors, kinds, calls, of_prompt, at, reasons)


def _ranks(score: Float[np.ndarray, "prompt detector"]) -> Int[np.ndarray, "prompt detector"]:
    """Rank every column, the highest first; equal scores share a rank, no score is 0."""
    ranks = np.zeros(score.shape, dtype=np.int64)
    for place, column in enumerate(score.T):
        there = np.isfinite(column)
        ordered = np.sort(column[there])
        higher = len(ordered) - np.searchsorted(ordered, column[there], side="right")
        ranks[there, place] = 1 + higher
    return ranks


@dataclass(frozen=True)
class Told:
    """How well one detector tells memorized prompts from others.

    Attributes:
        detector: Its name.
        kind: "prompt" or "pair".
        auc: Its AUC.
        memorized: Memorized prompts that it scored.
        others: Other prompts that it scored.
        calls: Network calls a prompt, alone.
    """

    detector: str
    kind: str
    auc: Estimate
    memorized: int
    others: int
    calls: float


def told(scores: Scores, found: Verdict) -> tuple[Told, ...]:
    """Hold a run's scores to its verdict, at the verdict's guidance scale.

    Prompts that are not judged, and those that copy another image than their own, do not count.

    Returns:
        Detectors, the best AUC first; none where prompts of one kind are missing.
    """
    at = scores.at.get(found.guidance) if found.guidance is not None else None
    if at is None:
        return ()
    counts = [name in found.judged and found.judged[name].counts for name in scores.places]
    judged = np.array(counts, dtype=bool)
    memorized = np.array([name in found.memorized for name in scores.places], dtype=bool)
    rows: list[Told] = []
    for place, name in enumerate(scores.detectors):
        use = judged & np.isfinite(at.score[:, place])
        yes = memorized[use]
        measured = (auc if len(yes) <= MOST else roc_auc)(at.score[use, place], yes)
        if isfinite(measured.value):
            rows.append(
                Told(
                    visible(name, 80),
                    scores.kinds[name],
                    measured,
                    int(yes.sum()),
                    int((~yes).sum()),
                    scores.calls[name],
                )
            )
    return tuple(sorted(rows, key=lambda row: -row.auc.value))


def shown_first(rows: Sequence[Told], most: int) -> tuple[Told, ...]:
    """Choose the rows that are not folded away: those in `FIRST`, then the best."""
    chosen = {row.detector for row in rows if row.detector in FIRST}
    for row in rows:
        if len(chosen) < most:
            chosen.add(row.detector)
    return tuple(row for row in rows if row.detector in chosen)
