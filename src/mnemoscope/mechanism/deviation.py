r"""The deviation sums how far the decomposition of a path departs from the schedule.

Formula::

    D1 = Σ_t (E_s[w0(t)] - alpha_t)        D2 = -Σ_t (E_s[wT(t)] - sigma_t)

over the destinations of all updates, or of the first fifth; E_s is the mean over seeds. Larger is
more memorized for both, and severity is held against them. Another reference curve in place of the
schedule would move every prompt's D by the same amount, so correlations do not depend on it.

With the training image for x part of the correlation is true by definition, for any model: the w0
of the final state *is* a similarity to that image, D1 contains it, and some images are nearer to
everything than others. So the same is computed with swapped images, each prompt judged with another
prompt's, and what counts is the difference. Beside it: the correlation within memorized prompts and
within the others; D of one half of the seeds against severity of the other half; and what early D1
adds to the prediction of held-out prompts,

    gain = 1 - Σ e_p² / Σ b_p²

where b_p and e_p are the errors of severity of prompt p, predicted by least squares on all other
prompts from the similarity of its image to the mean, the length of its caption and the gap of the
first call, without and with early D1 (of one half of the seeds, severity being of the other). The
partial correlation given the final w0 describes the path of the effect: early D1 acts *through* the
final w0, so a partial correlation of 0 refutes nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mnemoscope.core.panels import (
    Bar,
    BarPanel,
    CurvePanel,
    Panel,
    Points,
    Role,
    ScatterPanel,
    Series,
)
from mnemoscope.core.stats import (
    SWAPPED,
    Contrast,
    Estimate,
    bootstrap,
    nothing,
    partial,
    pearson,
    spearman,
    swapped,
)
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    GROUPS,
    NO_OTHER,
    NO_TARGET,
    REFERENCES,
    Analysis,
    Check,
    Curve,
    Measured,
    Record,
    Statistic,
    against_swapped,
    departures,
    early,
    in_words,
    ruling,
    weights,
    with_target,
)

EARLY, ALL = "first fifth of the updates", "all updates"
QUANTITIES = ("D1", "D2", "D1 + D2")


PEARSON, SPEARMAN, PARTIAL = "Pearson r", "Spearman rho", "partial r given the final w0"
DISJOINT = "Pearson r on disjoint seeds"

SSCD_CUT = 0.75
"""SSCD from which on the founding paper calls an image memorized."""

LEFT: tuple[tuple[str, Role, tuple[str, str, str, str, str]], ...] = (
    ("all updates", "other", ("D1", "target", ALL, "all prompts", PEARSON)),
    ("early", "other", ("D1", "target", EARLY, "all prompts", PEARSON)),
    ("disjoint seeds", "other", ("D1", "target", ALL, "all prompts", DISJOINT)),
    ("memorized alone", "memorized", ("D1", "target", ALL, "memorized prompts", PEARSON)),
    ("others alone", "not memorized", ("D1", "target", ALL, "other prompts", PEARSON)),
)
"""What is drawn beside the null: the whole correlation and its parts."""


FEWEST_PREDICTED = 10
"""Prompts that a prediction from four numbers and an intercept takes."""


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
        "Kim, Kim & Lee 2025, the deviation from the schedule; null and prediction ours"
    )
    expected: ClassVar = (
        "Pearson r of about 0.92 (Stable Diffusion 1.4 and 2.1) and 0.70 (RealisticVision) between "
        "D and severity; whether for D1 or D2 is not stated."
    )
    claims: ClassVar = (
        "Pearson r of D1 with severity (x the target, all updates) is at least 0.70, and above "
        "that of swapped images",
        "Pearson r of D2 with severity (x the target, all updates) is at least 0.70, and above "
        "that of swapped images",
        "Pearson r of D1 + D2 with severity (x the target, all updates) is at least 0.70, and "
        "above that of swapped images",
        "Pearson r of D1 with severity (x the final sample, all updates) is at least 0.70, and "
        "above that of swapped images",
        "Pearson r of D1 with severity (x the target, first fifth of the updates) is at least "
        "0.70, and above that of swapped images",
        "Early D1 predicts the severity of held-out prompts better than the image's similarity to "
        "the mean, the caption's length and the first gap do: the share of squared error that it "
        "removes is above 0, and above that of swapped images",
        "D1 of memorized prompts (x the target, all updates) is above what it is with other images",
    )
    evidence: ClassVar = (0, 1, 2, 3, 4, 5, 6)

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
        everyone = populations["all prompts"]
        sums, curves = self._sums(record)
        found = {
            (total.quantity, total.reference, total.window, population, kind): estimate
            for total in sums
            for population, prompts in populations.items()
            for kind, estimate in correlations(total, severity, prompts).items()
        }
        found |= self._disjoint(record, populations)
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
        nulls = self._nulls(record, sums, everyone)
        gain = self._gain(record)
        contrasts = [
            (f"{PEARSON} of {quantity} and severity ({record.measure})", reference, window, one)
            for (quantity, reference, window), one in nulls.items()
        ]
        contrasts.append(("share of error that early D1 removes", "target", EARLY, gain))
        statistics += [
            Statistic.of(
                self.name,
                f"{name}, {suffix}",
                estimate,
                population="all prompts",
                guidance=g,
                reference=reference,
                window=window,
            )
            for name, reference, window, one in contrasts
            for suffix, estimate in (("swapped images", one.null), ("less swapped", one.difference))
        ]
        statistics.append(
            Statistic.of(
                self.name,
                "share of error that early D1 removes",
                gain.value,
                population="all prompts",
                guidance=g,
                reference="target",
                window=EARLY,
            )
        )
        statistics += self._at_every_guidance(record, everyone)
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
        bars += tuple(
            Bar(f"{label}, swapped images", "schedule", one.null.value, one.null.low, one.null.high)
            for label, window in (("all updates", ALL), ("early", EARLY))
            for one in [nulls.get(("D1", "target", window))]
            if one is not None and isfinite(one.null.value)
        )
        if bars:
            shown.insert(
                1,
                BarPanel(
                    "The correlation of D1, its parts and its null",
                    "",
                    f"correlation with severity ({record.measure})",
                    f"Over prompts, mean over seeds, x the target, g = {g:g}. Interval: 95 % "
                    "percentile bootstrap over prompts.",
                    bars,
                ),
            )
        shown += self._sweep(record, statistics)
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
                *(self._strong(claim, nulls.get(key)) for claim, key in enumerate(keys)),
                self._predicts(gain),
                self._above(record.apart),
            ),
        )

    def _nulls(
        self, record: Record, sums: Sequence[Sum], prompts: Collection[str]
    ) -> dict[tuple[str, str, str], Contrast]:
        """Compare every correlation with that of swapped images."""
        try:
            other = record.swapped
        except NeedsError as missing:
            return {
                (total.quantity, total.reference, total.window): nothing(SWAPPED, str(missing))
                for total in sums
            }
        severities = [side.severity.get(record.guidance, {}) for side in (record, other)]
        found: dict[tuple[str, str, str], Contrast] = {}
        theirs = {(s.quantity, s.reference, s.window): s for s in self._sums(other)[0]}
        for total in sums:
            key = total.quantity, total.reference, total.window
            if key not in theirs:
                found[key] = nothing(SWAPPED, NO_OTHER)
                continue
            pairs = [
                dict(zip(s.prompts, s.values.tolist(), strict=True)) for s in (total, theirs[key])
            ]
            held = sorted(set(pairs[0]) & set(pairs[1]) & set(prompts))
            own, null = (
                [np.array([side.get(p, nan) for p in held], dtype=np.float64) for side in sides]
                for sides in zip(pairs, severities, strict=True)
            )
            found[key] = swapped(pearson, own, null)
        return found

    def _disjoint(
        self, record: Record, populations: Mapping[str, Collection[str]]
    ) -> dict[tuple[str, str, str, str, str], Estimate]:
        """Correlate D of the even seeds with the severity of the odd ones."""
        try:
            sums, _ = self._sums(record.half(0))
        except NeedsError:
            return {}
        severity = record.half(1).severity.get(record.guidance, {})
        return {
            (total.quantity, total.reference, total.window, population, DISJOINT): estimate
            for total in sums
            if total.quantity == "D1" and total.reference == "target" and record.rated
            for population, prompts in populations.items()
            for estimate in [correlations(total, severity, prompts)[PEARSON]]
        }

    def _at_every_guidance(self, record: Record, prompts: Collection[str]) -> list[Statistic]:
        """Correlate D with severity at every guidance scale, and with the share above the cut."""
        rows: list[Statistic] = []
        for g in record.guidances:
            at = replace(record, samples={("path", g): record.samples["path", g]})
            rated = record.rated.get(g, {})
            share: dict[str, list[float]] = {}
            for (prompt, _), value in rated.items():
                share.setdefault(prompt, []).append(float(value >= SSCD_CUT))
            means = {prompt: float(np.mean(values)) for prompt, values in share.items()}
            sides = {f"severity ({record.measure})": record.severity.get(g, {})}
            if record.measure.startswith("sscd"):
                sides[f"share of samples at {SSCD_CUT} or more ({record.measure})"] = means
            for total in self._sums(at)[0]:
                rows += [
                    Statistic.of(
                        self.name,
                        f"{PEARSON} of {total.quantity} and {name}",
                        correlations(total, values, prompts)[PEARSON],
                        population="all prompts",
                        guidance=g,
                        reference=total.reference,
                        window=total.window,
                    )
                    for name, values in sides.items()
                    if total.window == ALL
                    if (g != record.guidance or not name.startswith("severity")) and values
                ]
        return rows

    def _sweep(self, record: Record, rows: Sequence[Statistic]) -> list[Panel]:
        """Draw r of D1 and severity against guidance, where the run has several scales."""
        name = f"{PEARSON} of D1 and severity ({record.measure})"
        held = sorted(
            (
                row
                for row in rows
                if row.name == name
                and row.window == ALL
                and row.population == "all prompts"
                and row.reference == "target"
            ),
            key=lambda row: row.guidance,
        )
        if len(held) < 2:
            return []
        columns = {
            part: np.array([getattr(row, part) for row in held])
            for part in ("guidance", "value", "low", "high")
        }
        line = Series(
            "D1",
            "other",
            columns["guidance"],
            columns["value"],
            columns["low"],
            columns["high"],
            np.full(len(held), nan),
        )
        note = f"Over prompts, x the target, all updates; n = {held[0].n}. Band: 95 % interval."
        title = "The correlation at every guidance scale"
        return [
            CurvePanel(title, "guidance scale g", f"Pearson r ({record.measure})", note, (line,))
        ]

    def _gain(self, record: Record) -> Contrast:
        """Measure what early D1 adds to the prediction of held-out prompts."""
        try:
            sides = [errors(record), errors(record.swapped)]
        except NeedsError as missing:
            return nothing(SWAPPED, str(missing))
        held = sorted(sides[0].keys() & sides[1].keys())
        own, null = (
            [np.array([side[p][which] for p in held]) for which in (0, 1)] for side in sides
        )
        return swapped(removed, own, null, name="share of held-out error removed")

    def _predicts(self, gain: Contrast) -> Check:
        value = gain.value
        words = f"removes {value.value:.0%} of the error, n = {value.n}"
        if not isfinite(value.value):
            words = "not measured"
        return self.weigh(5, words, ruling(value.low > 0, value.low), gain)

    def _above(self, record: Record) -> Check:
        try:
            states = record.take().states()
            held = _total(record)
        except NeedsError as missing:
            return self.check(6, "not measured", None, str(missing))
        ours = [value for prompt, value in held.items() if prompt in record.memorized]
        middle = float(np.median(ours)) if ours else nan
        contrast = against_swapped(record, _total, record.memorized)
        words = f"{middle:.2f} over {len(states.calls)} updates" if ours else "not measured"
        return self.weigh(6, words, ruling(True, middle), contrast)

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
            for window, updates in ((ALL, None), (EARLY, early(steps[0]))):
                for quantity, step in zip(QUANTITIES, steps, strict=True):
                    total = step.values[:, :updates].sum(axis=1)
                    sums.append(
                        Sum(quantity, reference, window, w0.prompts, total, w0.values[:, -1])
                    )
        return sums, curves

    def _strong(self, claim: int, contrast: Contrast | None) -> Check:
        if contrast is None:
            return self.check(claim, "not measured", None, NO_TARGET)
        r = contrast.value
        return self.weigh(claim, in_words(r), ruling(r.value >= 0.70, r.value), contrast)

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


def _total(record: Record) -> dict[str, float]:
    """Return D1 of every prompt, x the target, over all updates."""
    return _early_or_all(record, whole=True)


def _early_or_all(record: Record, *, whole: bool) -> dict[str, float]:
    states = record.take().states()
    w0, wT, _ = weights(record, states, "target")
    alpha, sigma = (part.numpy() for part in states.gram.level)
    step, _, _ = departures(w0, wT, alpha, sigma)
    total = step.values[:, : None if whole else early(step)].sum(axis=1)
    return dict(zip(w0.prompts, total.tolist(), strict=True))


def errors(record: Record) -> dict[str, tuple[float, float]]:
    """Return the squared error of each held-out prompt's severity, without and with early D1.

    Severity is that of the odd seeds, early D1 and the gap are those of the even ones.

    Raises:
        NeedsError: If there are no two halves, no severity, or no caption lengths.

    Source: ours; leave-one-out errors of least squares from the hat matrix (Allen 1974).
    """
    past, future = record.half(0), record.half(1)
    severity = future.severity.get(record.guidance, {}) if record.rated else {}
    samples = with_target(past.take())
    gram = samples.gram
    near = past.trace("", samples, gram.cosine("target", "mean")).at(0)
    gap = past.trace("", samples, gram.rms({"x0_c": 1.0, "x0_u": -1.0})).at(0)
    lead = _early_or_all(past, whole=False)
    sides = (near, record.tokens, gap, lead, severity)
    everyone = record.memorized | record.others
    held = sorted(p for p in everyone if all(isfinite(side.get(p, nan)) for side in sides))
    if len(held) < FEWEST_PREDICTED:
        raise NeedsError(
            f"{len(held)} prompts have image, caption length and two seeds; a prediction of "
            f"held-out prompts takes {FEWEST_PREDICTED}"
        )
    *features, y = (np.array([side[p] for p in held], dtype=np.float64) for side in sides)
    bare, full = _left_out(features[:-1], y), _left_out(features, y)
    return {p: (float(b), float(f)) for p, b, f in zip(held, bare, full, strict=True)}


def _left_out(
    features: Sequence[Float[np.ndarray, " prompt"]], y: Float[np.ndarray, " prompt"]
) -> Float[np.ndarray, " prompt"]:
    """Return the squared error of each prompt when it is left out of the fit."""
    x = np.column_stack([np.ones(len(y)), *features])
    # Columns of one scale; a caption length that never changes is one with the intercept.
    x = x / np.where(np.abs(x).max(axis=0) > 0, np.abs(x).max(axis=0), 1.0)
    hat = x @ np.linalg.pinv(x)
    return ((y - hat @ y) / np.maximum(1 - np.diag(hat), 1e-9)) ** 2


def removed(
    bare: Float[np.ndarray, "*batch n"], full: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch"]:
    """Return the share of squared error that the fuller model removes; negative if it adds some.

    Source: ours.
    """
    whole = bare.sum(axis=-1)
    return np.where(whole > 0, 1 - full.sum(axis=-1) / np.where(whole > 0, whole, 1.0), np.nan)
