r"""The deviation sums how far the decomposition of a path departs from the schedule.

Formula::

    D1 = Σ_t (E_s[w0(t)] - alpha_t)        D2 = -Σ_t (E_s[wT(t)] - sigma_t)

over the destinations of all updates, or of the first ten; E_s is the mean over seeds. Larger is
more memorized for both, and severity is held against them. Another reference curve in place of the
schedule would move every prompt's D by the same amount, so correlations do not depend on it.

With the training image for x part of the correlation is true by definition: the w0 of the final
state *is* a similarity to that image, and D1 contains it. Three numbers tell what is left: the
correlation within memorized prompts and within the others, and the partial correlation of D with
severity given the final w0, for the whole path and for the first ten updates.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mnemoscope.core.panels import Bar, BarPanel, Panel, Points, Role, ScatterPanel
from mnemoscope.core.stats import Estimate, bootstrap, partial, pearson, spearman
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    EARLY_UPDATES,
    GROUPS,
    NO_TARGET,
    REFERENCES,
    Analysis,
    Check,
    Curve,
    Measured,
    Record,
    Statistic,
    departures,
    in_words,
    ruling,
    weights,
)

EARLY, ALL = f"first {EARLY_UPDATES} updates", "all updates"
QUANTITIES = ("D1", "D2", "D1 + D2")


PEARSON, SPEARMAN, PARTIAL = "Pearson r", "Spearman rho", "partial r given the final w0"

LEFT: tuple[tuple[str, Role, tuple[str, str, str, str, str]], ...] = (
    ("all updates", "other", ("D1", "target", ALL, "all prompts", PEARSON)),
    ("first ten", "other", ("D1", "target", EARLY, "all prompts", PEARSON)),
    ("memorized alone", "memorized", ("D1", "target", ALL, "memorized prompts", PEARSON)),
    ("others alone", "not memorized", ("D1", "target", ALL, "other prompts", PEARSON)),
    ("all updates, final w0 out", "other", ("D1", "target", ALL, "all prompts", PARTIAL)),
    ("first ten, final w0 out", "other", ("D1", "target", EARLY, "all prompts", PARTIAL)),
)
"""What is drawn beside the whole correlation: the parts that definition does not explain."""


@dataclass(frozen=True)
class Sum:
    """A deviation of every prompt.

    Attributes:
        quantity: "D1", "D2" or their sum.
        reference: What stands for x.
        window: Which updates are summed.
        prompts: The prompts.
        values: The sum, a value a prompt.
        final: w0 of the final state.
    """

    quantity: str
    reference: str
    window: str
    prompts: tuple[str, ...]
    values: Float[np.ndarray, " prompt"]
    final: Float[np.ndarray, " prompt"]


class Deviation(Analysis):
    """Does the departure from the schedule tell how severely a prompt is memorized?"""

    name: ClassVar = "deviation"
    order: ClassVar = 8
    question: ClassVar = "Does the departure from the schedule track severity?"
    formula: ClassVar = "D1 = Σ(E[w0] − α), D2 = −Σ(E[wT] − σ), against severity"
    source: ClassVar = (
        "Kim, Kim & Lee 2025, the deviation from the schedule; partial correlation ours"
    )
    expected: ClassVar = (
        "Pearson r of about 0.92 (Stable Diffusion 1.4 and 2.1) and 0.70 (RealisticVision) between "
        "D and severity; whether for D1 or D2 is not stated."
    )
    claims: ClassVar = (
        "Pearson r of D1 with severity (x the target, all updates) is at least 0.70",
        "Pearson r of D2 with severity (x the target, all updates) is at least 0.70",
        "Pearson r of D1 + D2 with severity (x the target, all updates) is at least 0.70",
        "Pearson r of D1 with severity (x the final sample, all updates) is at least 0.70",
        "Pearson r of D1 with severity (x the target, first ten updates) is at least 0.70",
        "What is not true by definition remains: the 95 % interval of the partial correlation of "
        "early D1 with severity, given the final w0, is above 0",
    )

    def measure(self, record: Record) -> Measured:
        """Correlate D1, D2 and their sum with severity, by reference, window and population."""
        g = record.guidance
        severity = record.severity.get(g)
        if not severity:
            raise NeedsError(
                f"the run holds no severity at guidance {g:g}; it needs training images"
            )
        populations = {
            "all prompts": record.memorized | record.others,
            "memorized prompts": record.memorized,
            "other prompts": record.others,
        }
        sums, curves = self._sums(record)
        found = {
            (total.quantity, total.reference, total.window, population, kind): estimate
            for total in sums
            for population, prompts in populations.items()
            for kind, estimate in correlations(total, severity, prompts).items()
        }
        statistics = [
            Statistic.of(
                self.name,
                f"{kind} of {quantity} and severity ({record.measure})",
                estimate,
                population=population,
                guidance=g,
                reference=reference,
                window=window,
            )
            for (quantity, reference, window, population, kind), estimate in found.items()
        ]
        everyone = populations["all prompts"]
        if sums[0].reference == "target":
            final = replace(sums[0], quantity="the final w0", values=sums[0].final)
            statistics.append(
                Statistic.of(
                    self.name,
                    f"{PEARSON} of the final w0 and severity ({record.measure})",
                    correlations(final, severity, everyone)[PEARSON],
                    population="all prompts",
                    guidance=g,
                    reference="target",
                    window="final state",
                )
            )
        shown: list[Panel] = [
            self._scatter(
                record,
                total,
                severity,
                found[total.quantity, total.reference, total.window, "all prompts", PEARSON],
            )
            for total in sums
            if total.window == ALL or total.quantity == "D1"
        ]
        bars = tuple(
            Bar(label, role, estimate.value, estimate.low, estimate.high)
            for label, role, key in LEFT
            for estimate in [found.get(key)]
            if estimate is not None
        )
        if bars:
            shown.insert(
                1,
                BarPanel(
                    "What remains of the correlation of D1",
                    "",
                    f"correlation with severity ({record.measure})",
                    f"Over prompts, mean over seeds, x the target, g = {g:g}. Interval: 95 % "
                    "percentile bootstrap over prompts.",
                    bars,
                ),
            )
        keys = (
            *((quantity, "target", ALL) for quantity in QUANTITIES),
            ("D1", "final sample", ALL),
            ("D1", "target", EARLY),
        )
        return Measured(
            shown[0].caption,
            tuple(shown),
            tuple(statistics),
            curves,
            (
                *(
                    self._strong(claim, found.get((*key, "all prompts", PEARSON)))
                    for claim, key in enumerate(keys)
                ),
                self._remains(found.get(("D1", "target", EARLY, "all prompts", PARTIAL))),
            ),
        )

    def _sums(self, record: Record) -> tuple[list[Sum], tuple[Curve, ...]]:
        """Return every sum the analysis speaks of, and the curves of the summands."""
        states = record.take().states()
        alpha, sigma = (part.numpy() for part in states.gram.level)
        sums: list[Sum] = []
        curves: tuple[Curve, ...] = ()
        for reference in REFERENCES:
            try:
                w0, wT, _ = weights(record, states, reference)
            except NeedsError:
                continue
            steps = departures(w0, wT, alpha, sigma)
            curves += self.curves(record, *steps)
            for window, updates in ((ALL, None), (EARLY, EARLY_UPDATES)):
                for quantity, step in zip(QUANTITIES, steps, strict=True):
                    total = step.values[:, :updates].sum(axis=1)
                    sums.append(
                        Sum(quantity, reference, window, w0.prompts, total, w0.values[:, -1])
                    )
        return sums, curves

    def _remains(self, estimate: Estimate | None) -> Check:
        if estimate is None:
            return self.check(5, "not measured", None, NO_TARGET)
        holds = ruling(estimate.low > 0, estimate.low)
        return self.check(5, in_words(estimate), holds, estimate.reason)

    def _strong(self, claim: int, estimate: Estimate | None) -> Check:
        if estimate is None:
            return self.check(claim, "not measured", None, NO_TARGET)
        holds = ruling(estimate.value >= 0.70, estimate.value, estimate.low)
        return self.check(claim, in_words(estimate), holds, estimate.reason)

    def _scatter(
        self, record: Record, total: Sum, severity: Mapping[str, float], estimate: Estimate
    ) -> Panel:
        values = dict(zip(total.prompts, total.values.tolist(), strict=True))
        points: list[Points] = []
        for group in GROUPS:
            prompts = sorted(
                prompt
                for prompt in record.groups.get(group, frozenset())
                if isfinite(values.get(prompt, nan)) and isfinite(severity.get(prompt, nan))
            )
            if prompts:
                points.append(
                    Points(
                        f"{group} (n = {len(prompts)})",
                        group,
                        np.array([values[prompt] for prompt in prompts]),
                        np.array([severity[prompt] for prompt in prompts]),
                        tuple(prompts),
                    )
                )
        return ScatterPanel(
            f"{total.quantity}, {total.window}, x the {total.reference}",
            f"{total.quantity}, deviation from the schedule",
            f"severity ({record.measure})",
            f"One dot a prompt, mean over its seeds, g = {record.guidance:g}; n = {estimate.n}. "
            "Interval: 95 % percentile bootstrap over prompts.",
            tuple(points),
            in_words(estimate),
        )


def correlations(
    total: Sum, severity: Mapping[str, float], prompts: Collection[str]
) -> dict[str, Estimate]:
    """Correlate a sum with severity over some prompts.

    Returns:
        Pearson's r and Spearman's rho, and with the target for x the partial r given the final w0;
        each with a bootstrap interval over prompts.

    Source: Kim, Kim & Lee 2025 for Pearson's r; the others ours.
    """
    inside = np.array([prompt in prompts for prompt in total.prompts], dtype=np.bool_)
    rated = np.array([severity.get(prompt, nan) for prompt in total.prompts], dtype=np.float64)
    columns = total.values[inside], rated[inside]
    found = {PEARSON: bootstrap(pearson, *columns), SPEARMAN: bootstrap(spearman, *columns)}
    if total.reference == "target":
        found[PARTIAL] = bootstrap(partial, *columns, total.final[inside])
    return found
