"""An analysis is a pure function from a record to a finding: one question, one answer.

Contents: `Analysis`, which a file of the package subclasses to be found, and the few functions
by which analyses summarise, judge and word what they measure.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from math import isfinite, nan
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from mnemoscope.core.panels import CurvePanel, Series
from mnemoscope.core.stats import Contrast, Estimate
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base.finding import Check, Curve, Finding, Measured
from mnemoscope.mechanism.base.record import (
    FEWEST,
    GROUPS,
    LAW_IN_WORDS,
    Record,
    Trace,
    quantiles,
)

ABSENT = re.compile(r"\bnan\b")
"""What a number that does not exist is written as, and no reader should see."""


class Analysis(ABC):
    """One question to a record; a subclass in any module of the package is found by itself.

    Attributes:
        name: Its name, and that of its file.
        order: Its place in the argument.
        question: What it asks.
        formula: What it computes.
        source: Where that comes from.
        expected: What the founding paper leads one to expect.
        claims: The expectations it checks, each with its criterion.
        guided: Index of each claim that presupposes guidance and says nothing at g = 1.
        evidence: Index of each claim that has to beat its null; the others are sanity checks, true
            of any sound model.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    question: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    expected: ClassVar[str]
    claims: ClassVar[tuple[str, ...]]
    guided: ClassVar[tuple[int, ...]] = ()
    evidence: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def measure(self, record: Record) -> Measured:
        """Compute the answer.

        Raises:
            NeedsError: If the record lacks what the question needs.
        """

    def analyse(self, record: Record) -> Finding:
        """Answer the question, or say for every claim why it cannot be answered.

        Source: ours.
        """
        try:
            measured = self.measure(record)
        except NeedsError as missing:
            reason = str(missing)
            checks = tuple(
                self.check(i, "not measured", None, reason) for i in range(len(self.claims))
            )
            measured = Measured(f"Not measured: {reason}.", checks=checks)
        checks = measured.checks
        if record.guidances and record.guidance <= 1:
            checks = tuple(
                replace(check, holds=None, reason="the run is unguided; the claim is not about it")
                if claim in self.guided and check.holds is not None
                else check
                for claim, check in enumerate(checks)
            )
        return Finding(
            self.name,
            self.question,
            self.formula,
            self.source,
            self.expected,
            measured.caption,
            measured.panels,
            measured.statistics,
            measured.curves,
            checks,
        )

    def check(self, claim: int, measured: str, holds: bool | None, reason: str = "") -> Check:
        """Hold one of the claims against a measurement.

        Source: ours.
        """
        if holds is None and not reason:
            reason = f"fewer than {FEWEST} prompts of a group have the quantity"
        if claim in self.evidence and holds is not None:
            holds, reason = None, "evidence without a null is none"
        if ABSENT.search(measured):
            measured = "not measured"
        kind = "evidence" if claim in self.evidence else "sanity"
        return Check(self.name, self.claims[claim], measured, holds, reason, kind)

    def weigh(
        self, claim: int, measured: str, met: bool | None, contrast: Contrast, sign: int = 1
    ) -> Check:
        """Hold a claim of the evidence against a measurement and its null.

        Args:
            claim: Which.
            measured: What was found, in words.
            met: Whether the criterion is met.
            contrast: The statistic of the claim beside its null.
            sign: 1 where the statistic should exceed the null, -1 where it should be below.

        Source: ours.
        """
        beats = contrast.beats(sign)
        holds = None if beats is None or met is None else met and beats
        value, null, difference = contrast.value, contrast.null, contrast.difference
        reason = ""
        if holds is None:
            lacking = difference.reason or null.reason or value.reason
            reason = lacking or f"fewer than {FEWEST} prompts of a group have the quantity"
        if beats is False and met is not None:
            measured += f"; does not beat its null ({contrast.kind})"
        return replace(
            self.check(claim, measured, None, reason or "-"),
            holds=holds,
            reason=reason,
            null_kind=contrast.kind,
            **{"value": value.value, "low": value.low, "high": value.high},
            **{"null": null.value, "null_low": null.low, "null_high": null.high},
            difference=difference.value,
            difference_low=difference.low,
            difference_high=difference.high,
        )

    def curves(self, record: Record, *traces: Trace) -> tuple[Curve, ...]:
        """Summarise traces over each group that has values.

        Source: ours.
        """
        rows: list[Curve] = []
        for trace in traces:
            for group in GROUPS:
                values = trace.of(record.groups.get(group, frozenset()))
                if not len(values):
                    continue
                middle, low, high = quantiles(values, (0.5, 0.16, 0.84))
                rows.append(
                    Curve(
                        self.name,
                        trace.quantity,
                        group,
                        trace.guidance,
                        trace.law,
                        trace.reference,
                        trace.calls,
                        trace.log_snr,
                        middle,
                        low,
                        high,
                        len(values),
                    )
                )
        return tuple(rows)

    def panel(
        self,
        record: Record,
        trace: Trace,
        title: str,
        y_label: str,
        *lines: tuple[str, Float[np.ndarray, " call"]],
        log_y: bool = False,
    ) -> CurvePanel:
        """Draw a trace, one series a group, with dashed reference lines.

        Args:
            record: Where the groups come from.
            trace: What to draw.
            title: Title of the panel.
            y_label: Label of its vertical axis.
            *lines: Label and values of each reference line.
            log_y: Whether the vertical axis is logarithmic.

        Source: ours.
        """
        x = trace.calls.astype(np.float64)
        drawn = [
            Series(f"{c.group} (n = {c.n})", role, x, c.median, c.low, c.high, trace.log_snr)
            for c in self.curves(record, trace)
            for role in GROUPS
            if role == c.group
        ]
        drawn += [Series(label, "schedule", x, y, None, None, trace.log_snr) for label, y in lines]
        return CurvePanel(
            title, "call, from first to last", y_label, caption(record, trace), tuple(drawn), log_y
        )


def caption(record: Record, trace: Trace) -> str:
    """State population, aggregation, interval and n of a trace.

    Source: ours.
    """
    counts = {g: len(trace.of(record.groups.get(g, frozenset()))) for g in GROUPS}
    whom = ", ".join(f"{n} {group}" for group, n in counts.items() if n) or "no prompt"
    return (
        f"{LAW_IN_WORDS[trace.law].capitalize()}, g = {trace.guidance:g}. Line: median over "
        "prompts of "
        f"the mean over a prompt's seeds; band: 16 % to 84 % of prompts. n = {whom}."
    )


def ruling(condition: bool | np.bool_, *numbers: float) -> bool | None:
    """Return the condition, or None where one of the numbers it rests on does not exist.

    Source: ours.
    """
    return bool(condition) if all(isfinite(number) for number in numbers) else None


def share(condition: Shaped[np.ndarray, " call"], *numbers: Float[np.ndarray, " call"]) -> float:
    """Return the share of calls at which a condition holds, among those where all numbers exist.

    Returns:
        A share; NaN where no call has all the numbers.

    Source: ours.
    """
    known = np.all([np.isfinite(number) for number in numbers], axis=0)
    return float(condition[known].mean()) if known.any() else nan


def middle(values: Iterable[float], *, fewest: int = FEWEST) -> float:
    """Return the median of the finite values; NaN where there are fewer than `fewest`.

    Source: ours.
    """
    finite = [value for value in values if isfinite(value)]
    return float(np.median(finite)) if len(finite) >= fewest else nan


def in_words(estimate: Estimate) -> str:
    """Write a correlation with its interval and n.

    Source: ours.
    """
    if not np.isfinite(estimate.value):
        return f"not measured, n = {estimate.n}"
    interval = "no interval"
    if np.isfinite(estimate.low):
        interval = f"95 % interval {estimate.low:.2f} to {estimate.high:.2f}"
    return f"r = {estimate.value:.2f}, {interval}, n = {estimate.n}"
