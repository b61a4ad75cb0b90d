r"""The loss is how far the clean estimate is from the training image, squared and summed over d.

Formula::

    L_t(b) = ||x0_b - x||² = ||eps - eps_b||² / SNR_t     with  x_t = alpha·x + sigma·eps

for the conditional estimate (b = c) and the guided one (b = g), under each of the three input laws.
Losses are compared by their logarithm, since they span decades.
"""

from typing import ClassVar, Literal

import numpy as np

from mnemoscope.core.panels import Panel
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    LAW_IN_WORDS,
    LAWS,
    Analysis,
    Check,
    Law,
    Measured,
    Quantity,
    Record,
    Statistic,
    Trace,
    against_others,
    against_swapped,
    by_group,
    expected,
    middle,
    ruling,
    share,
    with_target,
)

FITTED: tuple[tuple[int, Law], ...] = ((3, "forward"), (4, "noise"), (5, "path"))
"""Which claim speaks of the first call under which law."""

Branch = Literal["x0_c", "x0_g"]

EARLY, LATE = 0.1, 0.2
"""Shares of the path that count as its beginning and its end: 5 and 10 of 50 calls."""


class Loss(Analysis):
    """Is the loss against the training image smaller or larger for memorized prompts?"""

    name: ClassVar = "loss"
    order: ClassVar = 1
    question: ClassVar = "Does guidance make the loss of memorized prompts larger?"
    formula: ClassVar = "L_t(b) = ‖x̂0_b − x‖², b conditional or guided"
    source: ClassVar = "Kim, Kim & Lee 2025, section 3.2 and figure 1"
    expected: ClassVar = (
        "Without guidance the loss of memorized prompts is the smaller one at all steps; with "
        "guidance it is larger early on and smaller at the end."
    )
    claims: ClassVar = (
        "Without guidance, on its own path, the median loss of memorized prompts is below that of "
        "the others at 95 % of the calls or more, and below what it is against other images",
        "With guidance the median loss of memorized prompts is above that of the others over the "
        "first tenth of the calls, by more than between random groups",
        "With guidance the median loss of memorized prompts is below that of the others over the "
        "last fifth of the calls, and below what it is against other images",
        "On noised training images the conditional loss of memorized prompts is the smaller one "
        "at the first call, by more than between random groups once what the image alone makes of "
        "it is taken off",
        "From pure noise the conditional loss of memorized prompts is the smaller one at the "
        "first call, and below what it is against other images",
        "On generated states the conditional loss of memorized prompts is the smaller one at the "
        "first call, and below what it is against other images",
    )
    guided: ClassVar = (1, 2)
    evidence: ClassVar = (0, 1, 2, 3, 4, 5)

    def measure(self, record: Record) -> Measured:
        """Compute the loss of both estimates under every law the run holds."""
        panels: list[Panel] = []
        traces: list[Trace] = []
        for law in LAWS:
            try:
                found = loss(record, law, "x0_c"), loss(record, law, "x0_g")
            except NeedsError:
                if law == "path":
                    raise
                continue
            for trace, branch in zip(found, ("conditional", "guided"), strict=True):
                traces.append(trace)
                title = f"{LAW_IN_WORDS[law].capitalize()}, {branch} estimate"
                panels.append(
                    self.panel(record, trace, title, "squared error, sum over d", log_y=True)
                )
        apart = record.apart
        checks = [
            self._unguided(apart),
            *self._guided(apart),
            *(self._fitted(apart, claim, law) for claim, law in FITTED),
        ]
        statistics = [
            Statistic.of(
                self.name,
                f"{trace.quantity} at the first call",
                bootstrap(median, trace.of(prompts)[:, 0]),
                population=f"{group} prompts, {LAW_IN_WORDS[trace.law]}",
                guidance=trace.guidance,
                reference="target",
                window="first call",
            )
            for trace in traces
            for group, prompts in record.groups.items()
        ]
        return Measured(
            panels[1].caption,
            tuple(panels),
            tuple(statistics),
            self.curves(record, *traces),
            tuple(checks),
        )

    def _unguided(self, record: Record) -> Check:
        if 1.0 not in record.guidances:
            reason = "the run has no samples at guidance 1; add 1 to its guidance scales"
            return self.check(0, "not measured", None, reason)
        trace = loss(record, "path", "x0_c", 1.0)
        ours, theirs = trace.typical(record.memorized), trace.typical(record.others)
        below = share(ours < theirs, ours, theirs)
        measured = f"below at {below:.0%} of {len(ours)} calls, g = 1"
        whole = slice(None)
        contrast = against_swapped(record, _log("path", "x0_c", whole, 1.0), record.memorized)
        return self.weigh(0, measured, ruling(below >= 0.95, below), contrast, -1)

    def _guided(self, record: Record) -> tuple[Check, Check]:
        trace = loss(record, "path", "x0_g")
        calls = len(trace.calls)
        early, late = (
            slice(0, max(1, round(EARLY * calls))),
            slice(-max(1, round(LATE * calls)), None),
        )
        ratios = {
            name: middle(trace.of(record.memorized)[:, end].mean(axis=1))
            / middle(trace.of(record.others)[:, end].mean(axis=1))
            for name, end in (("early", early), ("late", late))
        }
        words = f"times the median of the others' loss, g = {trace.guidance:g}"
        larger = against_others(record, _log("path", "x0_g", early))
        smaller = against_swapped(record, _log("path", "x0_g", late), record.memorized)
        return (
            self.weigh(
                1,
                f"{ratios['early']:.3g} {words}",
                ruling(ratios["early"] > 1, ratios["early"]),
                larger,
            ),
            self.weigh(
                2,
                f"{ratios['late']:.3g} {words}",
                ruling(ratios["late"] < 1, ratios["late"]),
                smaller,
                -1,
            ),
        )

    def _fitted(self, record: Record, claim: int, law: Law) -> Check:
        try:
            trace = loss(record, law, "x0_c")
        except NeedsError:
            return self.check(claim, "not measured", None, f"the run holds no {LAW_IN_WORDS[law]}")
        ours, theirs = (
            float(trace.typical(prompts)[0]) for prompts in (record.memorized, record.others)
        )
        of = _log(law, "x0_c", slice(0, 1))
        if law == "forward":
            # The state holds the image itself, so any denoiser does better against its own.
            contrast = by_group(record, _beyond(record, of))
        else:
            contrast = against_swapped(record, of, record.memorized)
        measured = f"{ours:.4g} against {theirs:.4g}"
        return self.weigh(claim, measured, ruling(ours < theirs, ours, theirs), contrast, -1)


def _log(law: Law, branch: Branch, calls: slice, guidance: float | None = None) -> Quantity:
    """Return the mean logarithm of the loss over some calls, as a function of the record."""

    def of(record: Record) -> dict[str, float]:
        trace = loss(record, law, branch, guidance)
        # A perfect memorizer's loss is 0 but for rounding, and has no logarithm.
        values = np.log(np.maximum(trace.values[:, calls], np.finfo(float).tiny)).mean(axis=1)
        return dict(zip(trace.prompts, values.tolist(), strict=True))

    return of


def _beyond(record: Record, of: Quantity) -> dict[str, float]:
    """Return what a quantity of each prompt exceeds its null by; nothing without a null."""
    try:
        null = expected(record, of)
    except NeedsError:
        return {}
    return {prompt: value - null[prompt] for prompt, value in of(record).items() if prompt in null}


def loss(record: Record, law: Law, estimate: Branch, guidance: float | None = None) -> Trace:
    """Return ||estimate - target||² per prompt and call, summed over the latent's coordinates.

    Raises:
        NeedsError: If the run lacks the law, or any training image.

    Source: Kim, Kim & Lee 2025, eq. 10.
    """
    samples = with_target(record.take(law, guidance))
    branch = {"x0_c": "conditional", "x0_g": "guided"}[estimate]
    return record.trace(
        f"{branch} loss",
        samples,
        samples.gram.square({estimate: 1.0, "target": -1.0}),
        law=law,
        reference="target",
    )
