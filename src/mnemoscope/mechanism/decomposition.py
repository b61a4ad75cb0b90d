r"""The decomposition writes every state as a mixture of the clean image and the initial noise.

Formula::

    (w0, wT) = argmin ||x_t - w0·x - wT·x_T||²,   residual = ||x_t - w0·x - wT·x_T|| / sqrt(d)

at the destination of every update. With a = <x,x>, b = <x,x_T>, c = <x_T,x_T>, p = <x_t,x>,
q = <x_t,x_T> and D = ac - b²::

    w0 = (pc - qb) / D        wT = (qa - pb) / D

x is the training image, or the final sample. The clean estimate that the sampler is given, x0_g, is
written likewise; that it holds a negative part of x_T is why wT falls below the schedule. The
schedule is w0 = alpha, wT = sigma. The exact unguided predictor does not follow it: it starts from
pure noise and has, for a sampler without noise of its own, w0 = alpha - alpha_T·sigma/sigma_T and
wT = sigma/sigma_T. A sampler that injects noise forgets x_T sooner by construction, so there the
exact predictor's wT is what wT is compared with.
"""

from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mnemoscope.core.panels import CurvePanel, Panel, Role, Series
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    NO_TARGET,
    REFERENCES,
    Analysis,
    Check,
    Measured,
    Record,
    Statistic,
    Trace,
    against_others,
    against_swapped,
    caption,
    ruling,
    share,
    weights,
    with_target,
)

FIRST_JUDGED = 3
"""The destination, counted from 1, from which on the weights of memorized prompts are judged."""


class Decomposition(Analysis):
    """When does the image enter the path, and when does the initial noise leave it?"""

    name: ClassVar = "decomposition"
    order: ClassVar = 7
    question: ClassVar = "Does x enter the path too early, and x_T leave it too early?"
    formula: ClassVar = "(w0, wT) = argmin ‖x_t − w0·x − wT·x_T‖², no intercept"
    source: ClassVar = "Kim, Kim & Lee 2025, the decomposition of x_t; exact predictor ours"
    expected: ClassVar = (
        "Memorized: w0 overtakes α within the first few updates and stays above it until late; wT "
        "drops below σ. Others follow the schedule closely."
    )
    claims: ClassVar = (
        "Reference target: from the third update to 80 % of the path the median w0 of memorized "
        "prompts is above alpha at 90 % of the destinations or more, and above what it is with "
        "other images",
        "Reference target: from the third update on the median wT of memorized prompts is below "
        "sigma (for a sampler that injects noise, below the exact predictor's wT) at 90 % of the "
        "destinations or more, and below that of the others by more than between random groups",
        "Reference final sample: the median w0 and wT of the other prompts stay within 0.1 of the "
        "schedule, averaged over destinations",
        "Reference target: the median w0 and wT of the other prompts stay within 0.1 of the "
        "schedule, averaged over destinations",
    )
    guided: ClassVar = (0, 1)
    evidence: ClassVar = (0, 1)

    def measure(self, record: Record) -> Measured:
        """Fit every state by x and x_T, for both references."""
        states = record.take().states()
        level = states.gram.level
        alpha, sigma = level.alpha.numpy(), level.sigma.numpy()
        exact = record.exact
        traces: dict[tuple[str, str], Trace] = {}
        panels: list[Panel] = []
        for reference in REFERENCES:
            try:
                w0, wT, residual = weights(record, states, reference)
            except NeedsError:
                continue
            for name, trace in (("w0", w0), ("wT", wT), ("residual", residual)):
                traces[reference, name] = trace
            beside0 = [("exact, unguided", exact.w0)] if exact else []
            beside_t = [("exact, unguided", exact.wT)] if exact else []
            panels += [
                self.panel(
                    record, w0, f"Image, x the {reference}", "w0", ("schedule α", alpha), *beside0
                ),
                self.panel(
                    record,
                    wT,
                    f"Initial noise, x the {reference}",
                    "wT",
                    ("schedule σ", sigma),
                    *beside_t,
                ),
                self.panel(record, residual, f"Neither, x the {reference}", "residual RMS"),
                *self._stacked(record, w0, wT),
            ]
        for name, trace in self._estimate(record).items():
            traces["target", name] = trace
            panels.append(self.panel(record, trace, f"Guided estimate, {name}", name))
        statistics = tuple(
            Statistic.of(
                self.name,
                f"largest {name} - schedule" if name == "w0" else f"largest schedule - {name}",
                bootstrap(median, excess.max(axis=1)),
                population=f"{group} prompts",
                guidance=record.guidance,
                reference=reference,
                window="all updates",
            )
            for (reference, name), trace in traces.items()
            if name in ("w0", "wT")
            for group, prompts in record.groups.items()
            for excess in [trace.of(prompts) - alpha if name == "w0" else sigma - trace.of(prompts)]
        )
        leaving = exact.wT if exact is not None and record.stochastic else sigma
        return Measured(
            panels[0].caption,
            tuple(panels),
            statistics,
            self.curves(record, *traces.values()),
            (
                self._above(record.apart, alpha),
                self._below(record.apart, leaving),
                self._close(record, 2, "final sample", traces, alpha, leaving),
                self._close(record, 3, "target", traces, alpha, leaving),
            ),
        )

    def _above(self, record: Record, alpha: Float[np.ndarray, " call"]) -> Check:
        try:
            trace, _, _ = weights(record, record.take().states(), "target")
        except NeedsError as missing:
            return self.check(0, "not measured", None, str(missing))
        late = max(FIRST_JUDGED, round(0.8 * len(alpha)))
        window = slice(FIRST_JUDGED - 1, late)
        ours = trace.typical(record.memorized)
        above = share(ours[window] > alpha[window], ours[window])
        most = float((ours - alpha).max())
        contrast = against_swapped(record, partial(_mean, which=0, window=window), record.memorized)
        return self.weigh(
            0,
            f"above at {above:.0%}; largest excess {most:.2f}",
            ruling(above >= 0.9, above),
            contrast,
        )

    def _below(self, record: Record, leaving: Float[np.ndarray, " call"]) -> Check:
        try:
            _, trace, _ = weights(record, record.take().states(), "target")
        except NeedsError as missing:
            return self.check(1, "not measured", None, str(missing))
        window = slice(FIRST_JUDGED - 1, None)
        ours = trace.typical(record.memorized)
        below = share((ours < leaving)[window], ours[window])
        most = float((leaving - ours).max())
        contrast = against_others(record, partial(_mean, which=1, window=window))
        return self.weigh(
            1,
            f"below at {below:.0%}; largest shortfall {most:.3f}",
            ruling(below >= 0.9, below),
            contrast,
            -1,
        )

    def _stacked(self, record: Record, w0: Trace, wT: Trace) -> list[Panel]:
        """Draw what a memorized state is made of, the weights on top of each other."""
        whose = record.memorized
        if not len(w0.of(whose)):
            return []
        image, both = w0.typical(whose), w0.typical(whose) + wT.typical(whose)
        x = w0.calls.astype(np.float64)
        lines: tuple[tuple[str, Role, Float[np.ndarray, " call"]], ...] = (
            ("w0", "memorized", image),
            ("w0 + wT", "other", both),
        )
        title = f"Image and initial noise, stacked, x the {w0.reference}"
        series = tuple(
            Series(label, role, x, y, None, None, w0.log_snr) for label, role, y in lines
        )
        note = f"{caption(record, w0)} Medians of memorized prompts alone."
        return [CurvePanel(title, "call, from first to last", "weight", note, series)]

    def _estimate(self, record: Record) -> dict[str, Trace]:
        """Return the weights of the guided estimate at every call, x the target."""
        try:
            samples = with_target(record.take())
        except NeedsError:
            return {}
        fit = samples.gram.fit("x0_g", ["target", "x_T"])
        return {
            f"{name} of x0_g": record.trace(
                f"{name} of x0_g", samples, fit.weights[..., at], reference="target"
            )
            for at, name in enumerate(("w0", "wT"))
        }

    def _close(
        self,
        record: Record,
        claim: int,
        reference: str,
        traces: dict[tuple[str, str], Trace],
        alpha: Float[np.ndarray, " call"],
        leaving: Float[np.ndarray, " call"],
    ) -> Check:
        if (reference, "w0") not in traces:
            return self.check(claim, "not measured", None, NO_TARGET)
        off0, off_t = (
            float(np.abs(traces[reference, name].typical(record.others) - schedule).mean())
            for name, schedule in (("w0", alpha), ("wT", leaving))
        )
        return self.check(
            claim,
            f"off by {off0:.3f} (w0) and {off_t:.3f} (wT)",
            ruling(max(off0, off_t) <= 0.1, off0, off_t),
        )


def _mean(record: Record, which: int, window: slice) -> dict[str, float]:
    """Return the mean weight of every prompt over some destinations; 0 for w0, 1 for wT."""
    trace = weights(record, record.take().states(), "target")[which]
    values = trace.values[:, window].mean(axis=1)
    return dict(zip(trace.prompts, values.tolist(), strict=True))
