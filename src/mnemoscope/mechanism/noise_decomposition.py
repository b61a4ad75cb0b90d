r"""The guided noise estimate is written as a mixture of the clean image and the state, law by law.

Formula::

    (w0, wt) = argmin ||eps_g - w0·x_0 - wt·x_t||²      theory: w0 = -alpha/sigma, wt = 1/sigma

with the final sample, or the training image, for x_0. Where a path begins at pure noise, alpha = 0,
its first noise estimate is the state itself and w0 = 0, which tells nothing. Beside it the level
that a state behaves like: of all levels (alpha', sigma') of the path the one at which the clean
estimate that eps_g amounts to, (x_t - sigma'·eps_g) / alpha', comes nearest to the final sample.
And at equal level, the distance ||x_t - x|| / sqrt(d) of a generated state and of a noised training
image from that image.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from mnemoscope.core.panels import CurvePanel, Panel, Series
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    GROUPS,
    PURE_NOISE,
    REFERENCES,
    Analysis,
    Check,
    Law,
    Measured,
    Record,
    Statistic,
    Trace,
    against_others,
    against_swapped,
    caption,
    middle,
    ruling,
    share,
    with_target,
)

NO_PROBES = "it needs noised training images, which the run does not hold"

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
        "x the training image, and above what it is with other images",
        "The same with x the final sample, and above that of the others by more than between "
        "random groups",
        "For other prompts, x the final sample, the median -w0 over the first ten calls is within "
        "a factor 2 of alpha/sigma",
        "In the first half of the probed calls, the first one excepted, generated states of "
        "memorized prompts are nearer to x than noised training images at 80 % of the calls or "
        "more (medians), and nearer than to other images",
        "At the last probed call generated states of other prompts are at least twice as far from "
        "x as noised training images",
    )
    guided: ClassVar = (0, 1, 3)
    evidence: ClassVar = (0, 1, 3)

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
        behaves = _behaves(record)
        traces.append(behaves)
        panels.append(
            self.panel(
                record,
                behaves,
                "Level that a state behaves like, less its own",
                behaves.quantity,
                ("as scheduled", np.zeros(len(alpha))),
            )
        )
        panels += self._path(record, image, traces)
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
                self._early(record.apart, 0, "target", float(theory[0])),
                self._early(record.apart, 1, "final sample", float(theory[0])),
                self._near(record, image["final sample"], theory),
                self._nearer(record.apart),
                self._farther(record, distances),
            ),
        )

    def _path(
        self, record: Record, image: Mapping[str, Trace], traces: Sequence[Trace]
    ) -> list[Panel]:
        """Draw -w0 against wt, call by call, beside the theory's path."""
        panels: list[Panel] = []
        alpha, sigma = (part.numpy() for part in record.take().gram.level)
        for reference, w0 in image.items():
            wt = next(t for t in traces if t.quantity == "wt" and t.reference == reference)
            drawn = [
                Series(group, group, wt.typical(whose), w0.typical(whose), None, None, w0.log_snr)
                for group in GROUPS
                for whose in [record.groups.get(group, frozenset())]
                if np.isfinite(w0.typical(whose)).any()
            ]
            if drawn:
                theory = Series(
                    "theory", "schedule", 1 / sigma, alpha / sigma, None, None, w0.log_snr
                )
                note = f"{caption(record, w0)} Medians, from the first call (left) to the last."
                title = f"Path of the noise estimate, x the {reference}"
                panels.append(CurvePanel(title, "wt", "−w0", note, (*drawn, theory), log_y=True))
        return panels

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

    def _early(self, record: Record, claim: int, reference: str, theory: float) -> Check:
        if not theory:
            return self.check(claim, "not measured", None, PURE_NOISE)
        of = partial(_subtracted, reference=reference)
        try:
            values = of(record)
        except NeedsError as missing:
            return self.check(claim, "not measured", None, str(missing))
        times = middle(v for p, v in values.items() if p in record.memorized) / theory
        measured = f"{times:.2f} times alpha_T/sigma_T, g = {record.guidance:g}"
        if reference == "target":
            contrast = against_swapped(record, of, record.memorized)
        else:
            contrast = against_others(record, of)
        return self.weigh(claim, measured, ruling(times >= 2, times), contrast)

    def _near(self, record: Record, trace: Trace, theory: Float[np.ndarray, " call"]) -> Check:
        told = theory > 0
        ratio = float(np.median((trace.typical(record.others)[told] / theory[told])[:10]))
        return self.check(2, f"{ratio:.2f} times alpha/sigma", ruling(0.5 <= ratio <= 2, ratio))

    def _nearer(self, record: Record) -> Check:
        distances = self._distances(record)
        if not distances:
            return self.check(3, "not measured", None, NO_PROBES)
        generated, noised = distances
        at = np.searchsorted(generated.calls, noised.calls)
        early = slice(1, max(2, (len(at) + 1) // 2))
        if len(at) < 2:
            return self.check(3, "not measured", None, "the targets were noised to one level only")
        ours = (
            generated.typical(record.memorized)[at][early],
            noised.typical(record.memorized)[early],
        )
        nearer = share(ours[0] < ours[1], *ours)
        contrast = against_swapped(record, partial(_away, calls=at[early]), record.memorized)
        return self.weigh(
            3,
            f"nearer at {nearer:.0%} of {len(ours[0])} calls",
            ruling(nearer >= 0.8, nearer),
            contrast,
            -1,
        )

    def _farther(self, record: Record, distances: tuple[Trace, ...]) -> Check:
        if not distances:
            return self.check(4, "not measured", None, NO_PROBES)
        generated, noised = distances
        at = np.searchsorted(generated.calls, noised.calls)
        last = [
            float(trace.typical(record.others)[call])
            for trace, call in ((generated, at[-1]), (noised, -1))
        ]
        return self.check(
            4, f"{last[0]:.3f} against {last[1]:.3f}", ruling(last[0] >= 2 * last[1], *last)
        )


def _subtracted(record: Record, reference: str) -> dict[str, float]:
    """Return -w0 of every prompt at the first call."""
    samples = record.take()
    samples = with_target(samples) if reference == "target" else samples
    fit = samples.gram.fit("eps_g", [REFERENCES[reference], "x"])
    return record.trace("-w0", samples, -fit.weights[..., 0]).at(0)


def _away(record: Record, calls: Int[np.ndarray, " call"]) -> dict[str, float]:
    """Return the mean distance of every prompt's states from the image, over some calls."""
    samples = with_target(record.take())
    trace = record.trace("", samples, samples.gram.rms({"x": 1.0, "target": -1.0}))
    return dict(zip(trace.prompts, trace.values[:, calls].mean(axis=1).tolist(), strict=True))


def _behaves(record: Record) -> Trace:
    """Return by how much the log SNR that each state behaves like exceeds its own.

    Source: Kim, Kim & Lee 2025, research code: the check of alpha; the summary ours.
    """
    samples = record.take()
    gram = samples.gram
    alpha, sigma = gram.level
    told = torch.nonzero(alpha > 0)[:, 0].tolist()
    errors = torch.stack(
        [
            gram.square({"x": 1 / alpha[at], "eps_g": -sigma[at] / alpha[at], "x_0": -1.0})
            for at in told
        ],
        dim=-1,
    )
    levels = gram.log_snr[told]
    nearest = levels[torch.nan_to_num(errors, nan=torch.inf).argmin(dim=-1)]
    own = torch.where(alpha > 0, gram.log_snr, torch.nan)
    values = torch.where(torch.isfinite(errors).all(dim=-1), nearest - own, torch.nan)
    return record.trace("log SNR ahead of the schedule", samples, values, reference="final sample")
