r"""Over-estimation is the factor k by which the guided clean estimate holds the training image.

Formula::

    k_t      = <x0_g - c, x - c> / ||x - c||²           c = 0, or the mean of the unconditional
    residual = ||x0_g - c - k·(x - c)|| / sqrt(d)           estimate at the first call
    cosine   = <x0_g, x> / (||x0_g||·||x||)

and, with the final sample for x, how close the estimate already is to where the path will end.
"""

from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnemoscope.core.stats import MINIMUM, bootstrap, median
from mnemoscope.mechanism.base import (
    Analysis,
    Check,
    Measured,
    Record,
    Samples,
    Statistic,
    Trace,
    against_swapped,
    by_group,
    middle,
    ruling,
    with_target,
)

ARRIVED = 0.9
"""Cosine with the final sample from which on the estimate counts as arrived."""


class Overestimation(Analysis):
    """How much of the training image does the clean estimate hold?"""

    name: ClassVar = "overestimation"
    order: ClassVar = 2
    question: ClassVar = "Does guidance turn a good estimate x̂0 ≈ x into an over-estimate k·x?"
    formula: ClassVar = "k_t = ⟨x̂0_g − c, x − c⟩ / ‖x − c‖², c = 0 or the mean"
    source: ClassVar = "Kim, Kim & Lee 2025, section 3.2; corollary 3 of its revision for c = mean"
    expected: ClassVar = (
        "At the first call k is near g for strongly memorized prompts and near 1 without guidance; "
        "it decays to 1 at the end. Other prompts stay low."
    )
    claims: ClassVar = (
        "In the quarter of the memorized prompts with the highest severity (five or more), the "
        "median k (c = mean) at the first call is within 35 % of g, and above what it is with "
        "other images",
        "The median k at the first call is above 1 for memorized prompts, and above that of the "
        "others and of other images",
        "The conditional estimate alone does not over-estimate: its median k at the first call is "
        "at most 1.2 for memorized prompts",
        "The median k of memorized prompts at the last call is within 0.1 of 1, and above what it "
        "is with other images",
        "The median cosine with the final sample reaches 0.9 at an earlier call for memorized "
        "prompts, by more than between random groups",
    )
    guided: ClassVar = (0, 1)
    evidence: ClassVar = (0, 1, 3, 4)

    def measure(self, record: Record) -> Measured:
        """Fit the guided estimate by the training image, with and without the mean removed."""
        samples = with_target(record.take())
        gram, g = samples.gram, record.guidance
        raw = gram.fit("x0_g", ["target"])
        k = self._trace(record, samples, "k, c = 0", raw.weights[..., 0])
        spread = self._trace(record, samples, "residual, c = 0", raw.residual)
        cosine = self._trace(record, samples, "cosine with x", gram.cosine("x0_g", "target"))
        alone = self._trace(
            record,
            samples,
            "k of the conditional, c = 0",
            gram.fit("x0_c", ["target"]).weights[..., 0],
        )
        centred = gram.fit({"x0_g": 1.0, "mean": -1.0}, [{"target": 1.0, "mean": -1.0}])
        k_mean = self._trace(record, samples, "k, c = mean", centred.weights[..., 0])
        spread_mean = self._trace(record, samples, "residual, c = mean", centred.residual)

        whole = record.take()
        final = record.trace(
            "cosine with the final sample",
            whole,
            whole.gram.cosine("x0_g", "x_0"),
            reference="final sample",
        )
        error = record.trace(
            "mean squared error to the final sample",
            whole,
            whole.gram.square({"x0_g": 1.0, "x_0": -1.0}) / whole.gram.d,
            reference="final sample",
        )
        one = np.ones(len(k.calls))
        panels = (
            self.panel(record, k, "Factor of x in the estimate", "k", ("k = 1", one)),
            self.panel(
                record, k_mean, "Factor of x − mean in the estimate", "k, c = mean", ("k = 1", one)
            ),
            self.panel(record, spread, "What x does not explain", "residual RMS"),
            self.panel(record, cosine, "Direction of the estimate", "cosine with x"),
            self.panel(record, final, "When the estimate arrives", "cosine with the final sample"),
        )
        traces = (k, spread, cosine, alone, k_mean, spread_mean, final, error)
        statistics = tuple(
            Statistic.of(
                self.name,
                f"{trace.quantity} at the {when} call",
                bootstrap(median, trace.of(prompts)[:, column]),
                population=f"{group} prompts",
                guidance=g,
                reference="target",
                window=f"{when} call",
            )
            for trace in (k, k_mean, alone)
            for group, prompts in record.groups.items()
            for when, column in (("first", 0), ("last", -1))
        )
        return Measured(
            panels[0].caption,
            panels,
            statistics,
            self.curves(record, *traces),
            self._checks(record.apart, g),
        )

    def _checks(self, record: Record, g: float) -> tuple[Check, ...]:
        """Judge on seeds that did not choose the groups."""
        ours, theirs = _k(record, 0), _k(record, -1)
        strong = _strongest(record)
        near = middle((v for p, v in _k(record, 0, centred=True).items() if p in strong), fewest=1)
        first, end = (
            middle(v for p, v in k.items() if p in record.memorized) for k in (ours, theirs)
        )
        other = middle(v for p, v in ours.items() if p in record.others)
        bare = middle(v for p, v in _k(record, 0, branch="x0_c").items() if p in record.memorized)
        when = _arrivals(record)
        calls = record.take().gram.calls
        early, late = (
            middle(v for p, v in when.items() if p in whose)
            for whose in (record.memorized, record.others)
        )
        return (
            self.weigh(
                0,
                f"k = {near:.2f} at g = {g:g}, {len(strong)} prompts",
                ruling(abs(near / g - 1) <= 0.35, near),
                against_swapped(record, partial(_k, call=0, centred=True), strong),
            ),
            self.weigh(
                1,
                f"k = {first:.2f} against {other:.2f}",
                ruling(first > 1 and first > other, first, other),
                against_swapped(record, partial(_k, call=0), record.memorized),
            ),
            self.check(2, f"k = {bare:.2f} at g = 1", ruling(bare <= 1.2, bare)),
            self.weigh(
                3,
                f"k = {end:.3f}",
                ruling(abs(end - 1) <= 0.1, end),
                against_swapped(record, partial(_k, call=-1), record.memorized),
            ),
            self.weigh(
                4,
                f"call {early:g} against {late:g}, of {calls}",
                ruling(early < late, early, late),
                by_group(record, when),
                -1,
            ),
        )

    def _trace(self, record: Record, samples: Samples, quantity: str, values: Tensor) -> Trace:
        return record.trace(quantity, samples, values, reference="target")


def _strongest(record: Record) -> frozenset[str]:
    """Return the quarter of the memorized prompts with the highest severity, five at least."""
    severity = record.severity.get(record.guidance, {})
    ranked = sorted((p for p in record.memorized if p in severity), key=lambda p: -severity[p])
    return frozenset(ranked[: max(MINIMUM, -(-len(ranked) // 4))])


def _k(
    record: Record, call: int, branch: str = "x0_g", *, centred: bool = False
) -> dict[str, float]:
    """Return k of every prompt at one call, c = 0 or the mean."""
    samples = with_target(record.take())
    away: dict[str, float | Tensor] = {"mean": -1.0} if centred else {}
    fit = samples.gram.fit({branch: 1.0} | away, [{"target": 1.0} | away])
    return record.trace("", samples, fit.weights[..., 0]).at(call)


def _arrivals(record: Record) -> dict[str, float]:
    """Return the first call at which each prompt's estimate has arrived; their number if none."""
    samples = record.take()
    cosine = record.trace("", samples, samples.gram.cosine("x0_g", "x_0"))
    return {
        prompt: _arrival(row) for prompt, row in zip(cosine.prompts, cosine.values, strict=True)
    }


def _arrival(cosine: NDArray[np.float64]) -> float:
    """Return the first call whose cosine is at least `ARRIVED`; their number where none is."""
    if not np.isfinite(cosine).all():
        return float("nan")
    reached = np.flatnonzero(cosine >= ARRIVED)
    return float(reached[0]) if len(reached) else float(len(cosine))
