"""A finding is a question with its answer: panels, statistics, curves and checks, all plain data.

Contents: `Statistic`, `Curve` and `Check` of a `Kind`, the rows of tables; `Measured`, what an
analysis found; `Finding`, that beside its question.
"""

from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mnemoscope.core.panels import Panel
from mnemoscope.core.stats import Estimate
from mnemoscope.mechanism.base.record import Law


@dataclass(frozen=True)
class Statistic:
    """A row of table `statistics`."""

    analysis: str
    name: str
    population: str
    guidance: float
    reference: str
    window: str
    value: float
    low: float
    high: float
    n: int
    method: str

    @classmethod
    def of(
        cls,
        analysis: str,
        name: str,
        estimate: Estimate,
        *,
        population: str,
        guidance: float = nan,
        reference: str = "",
        window: str = "",
    ) -> "Statistic":
        """Name an estimate; the reason for what it lacks joins the method.

        Source: ours.
        """
        method = estimate.method + (f"; {estimate.reason}" if estimate.reason else "")
        return cls(
            analysis,
            name,
            population,
            guidance,
            reference,
            window,
            estimate.value,
            estimate.low,
            estimate.high,
            estimate.n,
            method,
        )


@dataclass(frozen=True)
class Curve:
    """The rows of one curve of table `curves`."""

    analysis: str
    quantity: str
    group: str
    guidance: float
    law: Law
    reference: str
    call: Int[np.ndarray, " call"]
    log_snr: Float[np.ndarray, " call"]
    median: Float[np.ndarray, " call"]
    low: Float[np.ndarray, " call"]
    high: Float[np.ndarray, " call"]
    n: int


Kind = Literal["evidence", "sanity"]
"""Evidence of memorization has to beat its null; a sanity check holds for any sound model."""


@dataclass(frozen=True)
class Check:
    """One expectation of the founding paper, held against the run.

    Attributes:
        analysis: Who checks it.
        claim: The expectation, with the numeric criterion that was fixed beforehand.
        measured: What was found.
        holds: Whether the criterion is met, and for evidence the null beaten; None where that
            cannot be told.
        reason: Why it cannot be told; empty where it can.
        kind: What it is worth.
        null_kind: What the null is; empty for a sanity check.
        value: Statistic of the claim, with its 95 % interval in `low` and `high`.
        null: The same under the null, with `null_low` and `null_high`.
        difference: The one less the other, with `difference_low` and `difference_high`.
    """

    analysis: str
    claim: str
    measured: str
    holds: bool | None
    reason: str = ""
    kind: Kind = "sanity"
    null_kind: str = ""
    value: float = nan
    low: float = nan
    high: float = nan
    null: float = nan
    null_low: float = nan
    null_high: float = nan
    difference: float = nan
    difference_low: float = nan
    difference_high: float = nan


@dataclass(frozen=True)
class Measured:
    """What an analysis measured, before it is put beside its question."""

    caption: str
    panels: tuple[Panel, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    curves: tuple[Curve, ...] = ()
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A question with its answer.

    Attributes:
        name: Name of the analysis.
        question: What it asks.
        formula: What it computes.
        source: Where that comes from.
        expected: What the founding paper leads one to expect.
        caption: Population, aggregation, interval and n.
        panels: The figure, as data.
        statistics: Rows of table `statistics`.
        curves: Rows of table `curves`.
        checks: Rows of table `checks`.
    """

    name: str
    question: str
    formula: str
    source: str
    expected: str
    caption: str
    panels: tuple[Panel, ...]
    statistics: tuple[Statistic, ...]
    curves: tuple[Curve, ...]
    checks: tuple[Check, ...]
