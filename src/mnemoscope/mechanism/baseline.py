r"""The baseline is what the model estimates without a prompt, compared with a mean of all images.

Formula::

    distance_t  = ||x0_u - c|| / sqrt(d)        c = 0, or the mean of x0_u at the first call
    yardstick   = ||x - c|| / sqrt(d)           x the training image
    cosine_t    = cos(x0_u, x)
    spread      = sqrt(max(0, B - W))           B the variance of prompts' means of the distance,
                                                W the variance within prompts over their seeds

The mean of a prompt's seeds differs from another's by chance alone; W is what chance does.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    Analysis,
    Measured,
    Record,
    Statistic,
    Trace,
    middle,
    ruling,
    with_target,
)


class Baseline(Analysis):
    """Is the unconditional estimate a mean that knows nothing of the training image?"""

    name: ClassVar = "baseline"
    order: ClassVar = 4
    question: ClassVar = "Is the unconditional estimate close to a mean, whatever prompt and seed?"
    formula: ClassVar = "‖x̂0_u − c‖/√d beside ‖x − c‖/√d, c = 0 or the mean"
    source: ClassVar = "Kim, Kim & Lee 2025, claim B of section 3.3; lemma 2 of its revision"
    expected: ClassVar = (
        "At the first call the unconditional estimate is nearly the same for every prompt and "
        "seed, much nearer to the mean than training images are; later it becomes specific to the "
        "image."
    )
    claims: ClassVar = (
        "At the first call the median distance of the unconditional estimate to the mean is at "
        "most half that of the training images",
        "At the first call that distance spreads over prompts, beyond what their seeds make of it, "
        "by at most an eighth of its median",
        "At the last call it is at least twice that of the first",
    )

    def measure(self, record: Record) -> Measured:
        """Compute the distance of the unconditional estimate to zero and to the mean."""
        samples = record.take()
        gram = samples.gram
        far = record.trace("distance to 0", samples, gram.rms("x0_u"))
        away = record.trace("distance to the mean", samples, gram.rms({"x0_u": 1.0, "mean": -1.0}))
        traces: list[Trace] = [far, away]
        yard = yard_zero = float("nan")
        try:
            paired = with_target(samples)
        except NeedsError:
            pass
        else:
            held = paired.gram
            traces.append(
                record.trace(
                    "cosine with x", paired, held.cosine("x0_u", "target"), reference="target"
                )
            )
            from_mean = record.trace("", paired, held.rms({"target": 1.0, "mean": -1.0}))
            yard = middle(from_mean.values[:, 0])
            yard_zero = middle(record.trace("", paired, held.rms("target")).values[:, 0])
        probed = self._probe(record)
        ruler = np.full(len(away.calls), yard)
        panels = [
            self.panel(
                record,
                away,
                "Unconditional estimate and the mean",
                "distance, RMS",
                ("training images", ruler),
            ),
            self.panel(
                record,
                far,
                "Unconditional estimate and zero",
                "distance, RMS",
                ("training images", np.full(len(far.calls), yard_zero)),
            ),
        ]
        for trace in (*traces[2:], *probed):
            title = "Unconditional estimate" + (", from pure noise" if trace.law == "noise" else "")
            panels.append(self.panel(record, trace, title, trace.quantity))
        statistics = tuple(
            Statistic.of(
                self.name,
                trace.quantity,
                bootstrap(median, trace.of(frozenset(trace.prompts))[:, column]),
                population=f"all prompts, law {trace.law}",
                guidance=record.guidance,
                reference=trace.reference,
                window=when,
            )
            for trace in (*traces, *probed)
            for when, column in (("first call", 0), ("last call", -1))
        )
        near, end = middle(away.values[:, 0]), middle(away.values[:, -1])
        distance = gram.rms({"x0_u": 1.0, "mean": -1.0})[:, 0].numpy()
        # From pure noise an exact predictor returns the mean itself.
        spread = between(distance, samples.prompts) / near if near else float("nan")
        lacking = "" if np.isfinite(near) else "the run holds no reference mean"
        alike = lacking or ("" if near else "the estimate is the mean itself")
        if not alike and not np.isfinite(spread):
            alike = "it takes two seeds of a prompt to tell prompts from seeds"
        return Measured(
            panels[0].caption,
            tuple(panels),
            statistics,
            self.curves(record, *traces, *probed),
            (
                self.check(
                    0,
                    f"{near:.3f} against {yard:.3f}, ratio {near / yard:.2f}",
                    ruling(near <= 0.5 * yard, near, yard),
                    lacking,
                ),
                self.check(
                    1, f"spread {spread:.2f} of the median", ruling(spread <= 0.125, spread), alike
                ),
                self.check(
                    2, f"{end:.3f} against {near:.3f}", ruling(end >= 2 * near, end, near), lacking
                ),
            ),
        )

    def _probe(self, record: Record) -> tuple[Trace, ...]:
        try:
            samples = record.take("noise")
        except NeedsError:
            return ()
        away = samples.gram.rms({"x0_u": 1.0, "mean": -1.0})
        return (record.trace("distance to the mean", samples, away, law="noise"),)


def between(values: Float[np.ndarray, " sample"], prompts: Shaped[np.ndarray, " sample"]) -> float:
    """Return the standard deviation over prompts that their seeds do not account for.

    Returns:
        The deviation, in the unit of the values; NaN where no prompt has two samples, or there are
        fewer than two prompts.

    Source: one-way analysis of variance (Fisher 1925), by the mean number of samples a prompt.
    """
    fine = np.isfinite(values)
    held = [values[fine & (prompts == prompt)] for prompt in np.unique(prompts[fine])]
    several = [part for part in held if len(part) > 1]
    if len(held) < 2 or not several:
        return float("nan")
    within = np.mean([part.var(ddof=1) for part in several])
    chance = within * np.mean([1 / len(part) for part in held])
    return float(np.sqrt(max(0.0, np.var([part.mean() for part in held], ddof=1) - chance)))
