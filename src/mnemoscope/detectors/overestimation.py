r"""Over-estimation is how far the guided estimate overshoots the consensus along the first calls.

Formulas, with c the consensus of the first call, m the mean unconditional estimate there, x0_g the
guided clean estimate at call t, means over seeds and the first 10 calls::

    overestimation    k_t = <x0_g - m, c - m> / ||c - m||²
    persistence       cos(x0_g - m, c - m)

The founding paper takes k against the training image; c stands in for it here. At the first call k
is the guidance scale for every prompt, since c is what is guided towards. What tells is whether
later estimates keep to c: one picture does, a blur is left for some picture of its kind.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.path import PathRecord

EARLY = 10
"""Calls that count as early; a fifth of the usual 50."""


@dataclass(frozen=True)
class Overestimation(Detector):
    """Agreement of the early guided estimates with the consensus.

    Attributes:
        cosine: Whether its length is divided out.
    """

    cosine: bool = False
    source: ClassVar[str] = "ours, after Kim, Kim & Lee 2025, over-estimation"

    @property
    def name(self) -> str:
        """Return "overestimation" or "persistence"."""
        return "persistence" if self.cosine else "overestimation"

    @property
    def formula(self) -> str:
        """Return the formula."""
        what = "cosine" if self.cosine else "coefficient"
        return f"mean {what} of the guided estimate on the consensus, first {EARLY} calls"

    @property
    def needs(self) -> Needs:
        """Return the early path of at least two seeds."""
        return Needs((PathRecord(EARLY),), seeds=2)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean over seeds and calls."""
        steps = evidence[PathRecord(EARLY)]
        there = {"x0_g": 1.0, "consensus_u": -1.0}
        toward = {"consensus": 1.0, "consensus_u": -1.0}
        if self.cosine:
            value = steps.gram.cosine(there, toward)
        else:
            value = steps.gram.inner(there, toward) / steps.gram.square(toward)
        return seed_mean(steps.per_seed(value).mean(dim=2))


DETECTORS = (Overestimation(), Overestimation(cosine=True))
