r"""Convergence is the loss of diversity: how far the samples of one prompt stay apart across seeds.

Formula, over the N seeds of a prompt, at every call, for the state and the guided clean estimate::

    variance = mean over coordinates of Var_s      distance = mean ||a_s - a_s'|| / sqrt(d)
    cosine   = mean cos(a_s, a_s')                 rank     = (Σ l)² / Σ l²

with l the eigenvalues of the centred N×N Gram matrix of the seeds. No pair holds a seed twice.
Beside it, for every sample, how far it ends from the training image in the latent space, against
its similarity to it:  ||x_0 - x|| / sqrt(d).
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mnemoscope.core.panels import Panel, Points, ScatterPanel
from mnemoscope.core.stats import SWAPPED, bootstrap, median, nothing, spearman, swapped
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    GROUPS,
    Analysis,
    Check,
    Measured,
    Record,
    Statistic,
    Trace,
    by_group,
    in_words,
    middle,
    ruling,
    with_target,
)

LABELS = {
    "x_variance": "variance of the state",
    "x_distance": "distance of the states, RMS",
    "x_cosine": "cosine of the states",
    "x_rank": "effective rank of the states",
    "x0_g_variance": "variance of the estimate",
    "x0_g_distance": "distance of the estimates, RMS",
    "x0_g_cosine": "cosine of the estimates",
    "x0_g_rank": "effective rank of the estimates",
}


class SeedConvergence(Analysis):
    """Do the samples of a memorized prompt run together?"""

    name: ClassVar = "convergence"
    order: ClassVar = 6
    question: ClassVar = "Do the paths of different seeds run together under memorization?"
    formula: ClassVar = "variance, pairwise distance and cosine, effective rank across seeds"
    source: ClassVar = (
        "Kim, Kim & Lee 2025, the collapse of diversity; measures made explicit by us"
    )
    expected: ClassVar = (
        "The variance starts at 1 per coordinate for all prompts; that of memorized prompts falls "
        "below σ_t² early and ends near 0, that of others ends at the variance of images."
    )
    claims: ClassVar = (
        "At the first call the median variance over all prompts is within 0.1 of 1",
        "The least variance over sigma_t² in the first half of the calls is below 0.95 for "
        "memorized prompts (median), and below that of the others by more than between random "
        "groups",
        "At the last call the median variance of memorized prompts is at most a tenth of the "
        "others', by more than between random groups",
        "Severity falls with the distance between samples: Spearman's rho is at most -0.5, and "
        "below that of similarity to other images",
    )
    evidence: ClassVar = (1, 2, 3)

    def measure(self, record: Record) -> Measured:
        """Summarise the spread across seeds over prompts."""
        g = record.guidance
        spread = record.convergence.get(g)
        if spread is None or not len(spread.prompts):
            raise NeedsError(
                f"the run holds no spread across seeds at guidance {g:g}; it needs two seeds or "
                "more"
            )
        traces = {
            name: Trace(
                label,
                "path",
                g,
                "",
                spread.prompts,
                spread.calls,
                spread.log_snr,
                spread.values[name],
            )
            for name, label in LABELS.items()
            if name in spread.values
        }
        schedule = spread.sigma**2
        panels: list[Panel] = [
            self.panel(
                record,
                trace,
                f"{trace.quantity[0].upper()}{trace.quantity[1:]}",
                trace.quantity,
                *([("schedule σ²", schedule)] if name == "x_variance" else []),
            )
            for name, trace in traces.items()
        ]
        statistics = [
            Statistic.of(
                self.name,
                trace.quantity,
                bootstrap(median, trace.of(prompts)[:, -1]),
                population=f"{group} prompts",
                guidance=g,
                window="last call",
            )
            for trace in traces.values()
            for group, prompts in record.groups.items()
        ]
        variance = traces["x_variance"]
        everyone = record.memorized | record.others
        start = float(variance.typical(everyone)[0])
        severity = record.severity.get(g, {})
        apart = traces["x0_g_distance"].at(-1)
        known = [p for p in spread.prompts if p in everyone and p in severity]
        falling = bootstrap(
            spearman,
            np.array([apart[p] for p in known], dtype=np.float64),
            np.array([severity[p] for p in known], dtype=np.float64),
        )
        statistics.append(
            Statistic.of(
                self.name,
                f"Spearman rho of severity ({record.measure}) and distance of the last estimates",
                falling,
                population="all prompts",
                guidance=g,
                window="last call",
            )
        )
        panels.append(
            ScatterPanel(
                "Severity and diversity",
                "distance between the samples of a prompt, RMS",
                f"severity ({record.measure})",
                f"One dot a prompt; distance of the last clean estimates, mean over pairs of "
                "seeds; "
                f"g = {g:g}; n = {falling.n}. Interval: 95 % percentile bootstrap over prompts.",
                tuple(
                    Points(
                        f"{group} (n = {len(inside)})",
                        group,
                        np.array([apart[p] for p in inside]),
                        np.array([severity[p] for p in inside]),
                        tuple(inside),
                    )
                    for group in GROUPS
                    for inside in [[p for p in known if p in record.groups.get(group, frozenset())]]
                    if inside
                ),
                in_words(falling).replace("r =", "rho =", 1),
            )
        )
        panels += _terminal(record)
        return Measured(
            f"{panels[0].caption} Seeds a prompt: {spread.seeds.min()} to {spread.seeds.max()}.",
            tuple(panels),
            tuple(statistics),
            self.curves(record, *traces.values()),
            (
                self.check(0, f"{start:.3f}", ruling(abs(start - 1) <= 0.1, start)),
                *self._collapse(record.apart),
                self._falls(record, apart),
            ),
        )

    def _collapse(self, record: Record) -> tuple[Check, Check]:
        """Compare the variance of memorized prompts with the schedule and with the others'."""
        spread = record.convergence[record.guidance]
        half = slice(0, spread.values["x_variance"].shape[1] // 2)
        ratio = (spread.values["x_variance"] / spread.sigma**2)[:, half].min(axis=1)
        last = spread.values["x_variance"][:, -1]
        least = dict(zip(spread.prompts, ratio.tolist(), strict=True))
        # By the logarithm, since it spans decades; equal samples have no variance and no logarithm.
        end = np.log(np.maximum(last, np.finfo(float).tiny))
        ends = dict(zip(spread.prompts, end.tolist(), strict=True))

        def typical(values: Mapping[str, float], prompts: frozenset[str]) -> float:
            return middle(value for prompt, value in values.items() if prompt in prompts)

        low = typical(least, record.memorized)
        ours, theirs = (float(np.exp(typical(ends, p))) for p in (record.memorized, record.others))
        return (
            self.weigh(
                1,
                f"least ratio {low:.2f}",
                ruling(low < 0.95, low),
                by_group(record, least),
                -1,
            ),
            self.weigh(
                2,
                f"{ours:.4f} against {theirs:.4f}",
                ruling(ours <= 0.1 * theirs, ours, theirs),
                by_group(record, ends),
                -1,
            ),
        )

    def _falls(self, record: Record, apart: Mapping[str, float]) -> Check:
        """Compare the correlation with severity with that of similarity to other images."""
        severity = record.severity.get(record.guidance, {})
        try:
            other = record.swapped.severity.get(record.guidance, {})
        except NeedsError as missing:
            contrast = nothing(SWAPPED, str(missing))
        else:
            known = sorted((record.memorized | record.others) & apart.keys())
            distance, own, null = (
                np.array([side.get(p, np.nan) for p in known], dtype=np.float64)
                for side in (apart, severity, other)
            )
            contrast = swapped(spearman, [distance, own], [distance, null])
        rho = contrast.value
        met = ruling(rho.value <= -0.5, rho.value)
        words = in_words(rho).replace("r =", "rho =", 1)
        return self.weigh(3, words, met, contrast, -1)


def _terminal(record: Record) -> list[Panel]:
    """Set the distance at which each sample ends from the image against its similarity to it."""
    g = record.guidance
    rated = record.rated.get(g, {})
    try:
        samples = with_target(record.take())
    except NeedsError:
        return []
    ends = samples.gram.rms({"x_0": 1.0, "target": -1.0})[:, 0].tolist()
    held = [
        (str(prompt), end, rated[str(prompt), int(seed)])
        for prompt, seed, end in zip(samples.prompts, samples.seeds, ends, strict=True)
        if (str(prompt), int(seed)) in rated
    ]
    points = tuple(
        Points(
            f"{group} (n = {len(mine)} samples)",
            group,
            np.array([end for _, end, _ in mine]),
            np.array([value for *_, value in mine]),
            tuple(prompt for prompt, *_ in mine),
        )
        for group in GROUPS
        for mine in [[row for row in held if row[0] in record.groups.get(group, frozenset())]]
        if mine
    )
    if not points:
        return []
    return [
        ScatterPanel(
            "Where samples end, and what they show",
            "distance of the final sample from the training image, RMS",
            f"similarity ({record.measure})",
            f"One dot a sample, g = {g:g}; n = {sum(len(p.x) for p in points)} samples.",
            points,
        )
    ]
