r"""Convergence is the loss of diversity: how far the samples of one prompt stay apart across seeds.

Formula, over the N seeds of a prompt, at every call, for the state and the guided clean estimate::

    variance = mean over coordinates of Var_s      distance = mean ||a_s - a_s'|| / sqrt(d)
    cosine   = mean cos(a_s, a_s')                 rank     = (Σ l)² / Σ l²

with l the eigenvalues of the centred N×N Gram matrix of the seeds. No pair holds a seed twice.
"""

from typing import ClassVar

import numpy as np

from mnemoscope.core.panels import Panel, Points, ScatterPanel
from mnemoscope.core.stats import bootstrap, median, spearman
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    GROUPS,
    Analysis,
    Measured,
    Record,
    Statistic,
    Trace,
    in_words,
    ruling,
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
        "The median variance of memorized prompts is below 0.95·sigma_t² at some call of the "
        "first half",
        "At the last call the median variance of memorized prompts is at most a tenth of the "
        "others'",
        "Severity falls with the distance between samples: Spearman's rho is at most -0.5 and its "
        "95 % interval below 0",
    )

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
        ours, theirs = variance.typical(record.memorized), variance.typical(record.others)
        half = slice(0, len(ours) // 2)
        under = np.flatnonzero(ours[half] < 0.95 * schedule[half])
        least = float((ours[half] / schedule[half]).min())
        when = (
            f"at call {under[0]} of {len(ours)}" if len(under) else "at no call of the first half"
        )
        end = float(ours[-1]), float(theirs[-1])

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
        return Measured(
            f"{panels[0].caption} Seeds a prompt: {spread.seeds.min()} to {spread.seeds.max()}.",
            tuple(panels),
            tuple(statistics),
            self.curves(record, *traces.values()),
            (
                self.check(0, f"{start:.3f}", ruling(abs(start - 1) <= 0.1, start)),
                self.check(1, f"{when}; least ratio {least:.2f}", ruling(len(under) > 0, least)),
                self.check(
                    2, f"{end[0]:.4f} against {end[1]:.4f}", ruling(end[0] <= 0.1 * end[1], *end)
                ),
                self.check(
                    3,
                    in_words(falling).replace("r =", "rho =", 1),
                    ruling(falling.value <= -0.5 and falling.high < 0, falling.value, falling.high),
                    falling.reason,
                ),
            ),
        )
