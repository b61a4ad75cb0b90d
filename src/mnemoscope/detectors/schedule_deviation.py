r"""Schedule deviation is how early the path holds more of the consensus than its schedule allows.

Formula, with x_t = w0·c + wT·x_T fitted by least squares at calls 1 to 9 of the guided path, c the
consensus of the first call, and (w0*, wT*) the exact unguided path::

    m = mean over seeds and calls of (w0 - w0*)·||c|| / sqrt(d)

The founding paper's D1 takes the training image for c and divides by w0*. Its unit here is the
size of the surplus: the coefficient alone is as large for a blur, of which the path holds little.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.path import PathRecord

EARLY = 10
"""Calls that count as early; a fifth of the usual 50."""


@dataclass(frozen=True)
class ScheduleDeviation(Detector):
    """The early surplus of the consensus."""

    source: ClassVar[str] = "ours, after Kim, Kim & Lee 2025, schedule deviation"

    @property
    def name(self) -> str:
        """Return "schedule_deviation"."""
        return "schedule_deviation"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"mean (w0 - exact w0)·||consensus|| / sqrt(d), first {EARLY} calls"

    @property
    def needs(self) -> Needs:
        """Return the early path of at least two seeds."""
        return Needs((PathRecord(EARLY),), seeds=2, uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean over seeds and calls."""
        steps = evidence[PathRecord(EARLY)]
        # At the first call the state is the noise itself, whatever the prompt.
        w0 = steps.gram.fit("x", ["consensus", "x_T"]).weights[:, 1:, 0]
        surplus = (w0 - steps.exact[0][1:]) * steps.gram.rms("consensus")[:, 1:]
        return seed_mean(steps.per_seed(surplus).mean(dim=2))


DETECTORS = (ScheduleDeviation(),)
