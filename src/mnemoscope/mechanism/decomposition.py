r"""The decomposition writes every state as a mixture of the clean image and the initial noise.

Formula::

    (w0, wT) = argmin ||x_t - w0·x - wT·x_T||²,   residual = ||x_t - w0·x - wT·x_T|| / sqrt(d)

at the destination of every update. With a = <x,x>, b = <x,x_T>, c = <x_T,x_T>, p = <x_t,x>,
q = <x_t,x_T> and D = ac - b²::

    w0 = (pc - qb) / D        wT = (qa - pb) / D

x is the training image, or the final sample. The schedule is w0 = alpha, wT = sigma. The exact
unguided predictor does not follow it: it starts from pure noise and has, for a sampler without
noise of its own, w0 = alpha - alpha_T·sigma/sigma_T and wT = sigma/sigma_T. A sampler that injects
noise forgets x_T sooner by construction, so there the exact predictor's wT is what wT is compared
with.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mnemoscope.core.panels import Panel
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
    ruling,
    share,
    weights,
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
        "prompts is above alpha at 90 % of the destinations or more",
        "Reference target: from the third update on the median wT of memorized prompts is below "
        "sigma (for a sampler that injects noise, below the exact predictor's wT) at 90 % of the "
        "destinations or more",
        "Reference final sample: the median w0 and wT of the other prompts stay within 0.1 of the "
        "schedule, averaged over destinations",
        "Reference target: the median w0 and wT of the other prompts stay within 0.1 of the "
        "schedule, averaged over destinations",
    )
    guided: ClassVar = (0, 1)

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
            ]
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
            if name != "residual"
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
                self._above(record, traces.get(("target", "w0")), alpha),
                self._below(record, traces.get(("target", "wT")), leaving),
                self._close(record, 2, "final sample", traces, alpha, leaving),
                self._close(record, 3, "target", traces, alpha, leaving),
            ),
        )

    def _above(
        self, record: Record, trace: Trace | None, alpha: Float[np.ndarray, " call"]
    ) -> Check:
        if trace is None:
            return self.check(0, "not measured", None, NO_TARGET)
        late = max(FIRST_JUDGED, round(0.8 * len(alpha)))
        ours = trace.typical(record.memorized)[FIRST_JUDGED - 1 : late]
        above = share(ours > alpha[FIRST_JUDGED - 1 : late], ours)
        gap = trace.typical(record.memorized) - alpha
        most = float(gap.max())
        return self.check(
            0, f"above at {above:.0%}; largest excess {most:.2f}", ruling(above >= 0.9, above)
        )

    def _below(
        self, record: Record, trace: Trace | None, leaving: Float[np.ndarray, " call"]
    ) -> Check:
        if trace is None:
            return self.check(1, "not measured", None, NO_TARGET)
        ours = trace.typical(record.memorized)
        below = share((ours < leaving)[FIRST_JUDGED - 1 :], ours[FIRST_JUDGED - 1 :])
        most = float((leaving - ours).max())
        return self.check(
            1, f"below at {below:.0%}; largest shortfall {most:.3f}", ruling(below >= 0.9, below)
        )

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
