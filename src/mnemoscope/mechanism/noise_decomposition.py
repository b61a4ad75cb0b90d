r"""The guided noise estimate is written as a mixture of the clean image and the state, law by law.

Formula::

    (w0, wt) = argmin ||eps_g - w0·x_0 - wt·x_t||²      theory: w0 = -alpha/sigma, wt = 1/sigma

with the final sample, or the training image, for x_0. Where a path begins at pure noise, alpha = 0,
its first noise estimate is the state itself and w0 = 0, which tells nothing. Beside it, at equal
level, the distance ||x_t - x|| / sqrt(d) of a generated state and of a noised training image from
that image.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mnemoscope.core.panels import Panel
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    NO_TARGET,
    PURE_NOISE,
    REFERENCES,
    Analysis,
    Check,
    Law,
    Measured,
    Record,
    Statistic,
    Trace,
    ruling,
    share,
    with_target,
)

COMPARED: tuple[Law, ...] = ("path", "forward")
"""The laws whose distance to the training image is compared at equal level."""


class NoiseDecomposition(Analysis):
    """How much of the image does the guided noise estimate subtract?"""

    name: ClassVar = "noise_decomposition"
    order: ClassVar = 9
    question: ClassVar = (
        "Does the noise estimate subtract more of the image than the level calls for?"
    )
    formula: ClassVar = (
        "(w0, wt) = argmin ‖ε_g − w0·x_0 − wt·x_t‖²; ‖x_t − x‖ forward and generated"
    )
    source: ClassVar = "Kim, Kim & Lee 2025, research code: the decomposition of the noise estimate"
    expected: ClassVar = (
        "Memorized: −w0 is far above α/σ early on, about g·α_T/σ_T at the first call; others are "
        "near the curve. Generated states of memorized prompts are nearer to x than noised copies "
        "of x."
    )
    claims: ClassVar = (
        "The median -w0 of memorized prompts at the first call is at least twice alpha_T/sigma_T, "
        "x the training image",
        "The same with x the final sample",
        "For other prompts, x the final sample, the median -w0 over the first ten calls is within "
        "a factor 2 of alpha/sigma",
        "In the first half of the probed calls, the first one excepted, generated states of "
        "memorized prompts are nearer to x than noised training images at 80 % of the calls or "
        "more (medians)",
        "At the last probed call generated states of other prompts are at least twice as far from "
        "x as noised training images",
    )
    guided: ClassVar = (0, 1, 3)

    def measure(self, record: Record) -> Measured:
        """Fit the guided noise estimate, and compare distances at equal level."""
        whole = record.take()
        alpha, sigma = (part.numpy() for part in whole.gram.level)
        panels: list[Panel] = []
        traces: list[Trace] = []
        image: dict[str, Trace] = {}
        for reference, vector in REFERENCES.items():
            try:
                samples = with_target(whole) if reference == "target" else whole
            except NeedsError:
                continue
            fit = samples.gram.fit("eps_g", [vector, "x"])
            w0 = record.trace("-w0", samples, -fit.weights[..., 0], reference=reference)
            wt = record.trace("wt", samples, fit.weights[..., 1], reference=reference)
            left = record.trace("residual", samples, fit.residual, reference=reference)
            image[reference] = w0
            traces += [w0, wt, left]
            panels += [
                self.panel(
                    record,
                    w0,
                    f"Image in the noise estimate, x the {reference}",
                    "−w0",
                    ("theory α/σ", alpha / sigma),
                    log_y=True,
                ),
                self.panel(
                    record,
                    wt,
                    f"State in the noise estimate, x the {reference}",
                    "wt",
                    ("theory 1/σ", 1 / sigma),
                    log_y=True,
                ),
            ]
        distances = self._distances(record)
        for trace in distances:
            noised = trace.law == "forward"
            title = "Noised training images" if noised else "Generated states"
            panels.append(self.panel(record, trace, title, "distance to x, RMS", log_y=True))
        statistics = tuple(
            Statistic.of(
                self.name,
                "-w0·sigma_T/alpha_T",
                bootstrap(median, trace.of(prompts)[:, 0] * sigma[0] / alpha[0]),
                population=f"{group} prompts",
                guidance=record.guidance,
                reference=reference,
                window="first call",
            )
            for reference, trace in image.items()
            if alpha[0] > 0
            for group, prompts in record.groups.items()
        )
        theory = alpha / sigma
        return Measured(
            panels[0].caption,
            tuple(panels),
            statistics,
            self.curves(record, *traces, *distances),
            (
                self._early(record, 0, image.get("target"), float(theory[0])),
                self._early(record, 1, image["final sample"], float(theory[0])),
                self._near(record, image["final sample"], theory),
                *self._apart(record, distances),
            ),
        )

    def _distances(self, record: Record) -> tuple[Trace, ...]:
        """Return the distance to x of generated states and of noised images, where both exist."""
        try:
            held = [with_target(record.take(law)) for law in COMPARED]
        except NeedsError:
            return ()
        return tuple(
            record.trace(
                "distance to x",
                samples,
                samples.gram.rms({"x": 1.0, "target": -1.0}),
                law=law,
                reference="target",
            )
            for law, samples in zip(COMPARED, held, strict=True)
        )

    def _early(self, record: Record, claim: int, trace: Trace | None, theory: float) -> Check:
        if trace is None:
            return self.check(claim, "not measured", None, NO_TARGET)
        if not theory:
            return self.check(claim, "not measured", None, PURE_NOISE)
        times = float(trace.typical(record.memorized)[0]) / theory
        measured = f"{times:.2f} times alpha_T/sigma_T, g = {trace.guidance:g}"
        return self.check(claim, measured, ruling(times >= 2, times))

    def _near(self, record: Record, trace: Trace, theory: Float[np.ndarray, " call"]) -> Check:
        told = theory > 0
        ratio = float(np.median((trace.typical(record.others)[told] / theory[told])[:10]))
        return self.check(2, f"{ratio:.2f} times alpha/sigma", ruling(0.5 <= ratio <= 2, ratio))

    def _apart(self, record: Record, distances: tuple[Trace, ...]) -> tuple[Check, Check]:
        if not distances:
            reason = "it needs noised training images, which the run does not hold"
            return (
                self.check(3, "not measured", None, reason),
                self.check(4, "not measured", None, reason),
            )
        generated, noised = distances
        at = np.searchsorted(generated.calls, noised.calls)
        early = slice(1, max(2, (len(at) + 1) // 2))
        ours = (
            generated.typical(record.memorized)[at][early],
            noised.typical(record.memorized)[early],
        )
        nearer = share(ours[0] < ours[1], *ours)
        last = [
            float(trace.typical(record.others)[call])
            for trace, call in ((generated, at[-1]), (noised, -1))
        ]
        return (
            self.check(
                3, f"nearer at {nearer:.0%} of {len(ours[0])} calls", ruling(nearer >= 0.8, nearer)
            ),
            self.check(
                4, f"{last[0]:.3f} against {last[1]:.3f}", ruling(last[0] >= 2 * last[1], *last)
            ),
        )
