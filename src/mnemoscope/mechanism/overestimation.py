r"""Over-estimation is the factor k by which the guided clean estimate holds the training image.

Formula::

    k_t      = <x0_g - c, x - c> / ||x - c||²           c = 0, or the mean of the unconditional
    residual = ||x0_g - c - k·(x - c)|| / sqrt(d)           estimate at the first call
    cosine   = <x0_g, x> / (||x0_g||·||x||)

and, with the final sample for x, how close the estimate already is to where the path will end.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnemoscope.core.stats import bootstrap, median
from mnemoscope.mechanism.base import (
    Analysis,
    Measured,
    Record,
    Samples,
    Statistic,
    Trace,
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
        "In the quarter of the memorized prompts with the highest severity, the median k (c = "
        "mean) at the first call is within 35 % of g",
        "The median k at the first call is above 1 for memorized prompts, and above that of the "
        "others",
        "The conditional estimate alone does not over-estimate: its median k at the first call is "
        "at most 1.2 for memorized prompts",
        "The median k of memorized prompts at the last call is within 0.1 of 1",
        "The median cosine with the final sample reaches 0.9 at an earlier call for memorized "
        "prompts",
    )
    guided: ClassVar = (0, 1)

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
        strong = _strongest(record)
        near = middle((v for p, v in k_mean.at(0).items() if p in strong), fewest=1)
        ours, theirs = k.typical(record.memorized), k.typical(record.others)
        first, end = float(ours[0]), float(ours[-1])
        other = float(theirs[0])
        bare = float(alone.typical(record.memorized)[0])
        when = [_arrival(final.typical(p)) for p in (record.memorized, record.others)]
        return Measured(
            panels[0].caption,
            panels,
            statistics,
            self.curves(record, *traces),
            (
                self.check(
                    0,
                    f"k = {near:.2f} at g = {g:g}, {len(strong)} prompts",
                    ruling(abs(near / g - 1) <= 0.35, near),
                    "" if np.isfinite(near) else "no reference mean, or too few memorized prompts",
                ),
                self.check(
                    1,
                    f"k = {first:.2f} against {other:.2f}",
                    ruling(first > 1 and first > other, first, other),
                ),
                self.check(2, f"k = {bare:.2f} at g = 1", ruling(bare <= 1.2, bare)),
                self.check(3, f"k = {end:.3f}", ruling(abs(end - 1) <= 0.1, end)),
                self.check(
                    4,
                    f"call {when[0]:g} against {when[1]:g}, of {len(k.calls)}",
                    ruling(when[0] < when[1], *when),
                ),
            ),
        )

    def _trace(self, record: Record, samples: Samples, quantity: str, values: Tensor) -> Trace:
        return record.trace(quantity, samples, values, reference="target")


def _strongest(record: Record) -> frozenset[str]:
    """Return the quarter of the memorized prompts with the highest severity."""
    severity = record.severity.get(record.guidance, {})
    ranked = sorted((p for p in record.memorized if p in severity), key=lambda p: -severity[p])
    return frozenset(ranked[: -(-len(ranked) // 4)])


def _arrival(cosine: NDArray[np.float64]) -> float:
    """Return the first call whose cosine is at least `ARRIVED`; their number where none is."""
    if not np.isfinite(cosine).all():
        return float("nan")
    reached = np.flatnonzero(cosine >= ARRIVED)
    return float(reached[0]) if len(reached) else float(len(cosine))
