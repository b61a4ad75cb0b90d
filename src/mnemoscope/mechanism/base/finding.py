"""A finding is a question with its answer: panels, statistics, curves and checks, all plain data.

Nothing here draws: a panel holds the arrays of a figure, in the roles that decide its colours.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Float, Int

from mnemoscope.mechanism.base.record import Law, Role
from mnemoscope.core.stats import Estimate


@dataclass(frozen=True)
class Series:
    """One line of a curve panel.

    Attributes:
        label: Its name.
        role: What it stands for; decides colour and dash.
        x: Index of the call, from the first to the last.
        y: Value.
        low: Lower edge of its band; None for a line without one.
        high: Upper edge of its band.
        log_snr: Log signal-to-noise ratio at each x.
    """

    label: str
    role: Role
    x: Float[np.ndarray, " call"]
    y: Float[np.ndarray, " call"]
    low: Float[np.ndarray, " call"] | None
    high: Float[np.ndarray, " call"] | None
    log_snr: Float[np.ndarray, " call"]


@dataclass(frozen=True)
class CurvePanel:
    """Curves over the path."""

    title: str
    x_label: str
    y_label: str
    caption: str
    series: tuple[Series, ...]
    log_y: bool = False


@dataclass(frozen=True)
class Points:
    """The points of one group of a scatter panel."""

    label: str
    role: Role
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    prompt_ids: tuple[str, ...]


@dataclass(frozen=True)
class ScatterPanel:
    """One dot a prompt.

    Attributes:
        named: Those of the `prompt_ids` that are written beside their dots.
        log_x: Whether x is logarithmic; from 0 to 1 it is linear.
    """

    title: str
    x_label: str
    y_label: str
    caption: str
    points: tuple[Points, ...]
    note: str = ""
    named: tuple[str, ...] = ()
    log_x: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar; NaN edges where it has no interval."""

    label: str
    role: Role
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BarPanel:
    """Bars with intervals."""

    title: str
    x_label: str
    y_label: str
    caption: str
    bars: tuple[Bar, ...]


Panel = CurvePanel | ScatterPanel | BarPanel


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


@dataclass(frozen=True)
class Check:
    """One expectation of the founding paper, held against the run.

    Attributes:
        analysis: Who checks it.
        claim: The expectation, with the numeric criterion that was fixed beforehand.
        measured: What was found.
        holds: Whether the criterion is met; None where that cannot be told.
        reason: Why it cannot be told; empty where it can.
    """

    analysis: str
    claim: str
    measured: str
    holds: bool | None
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
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
