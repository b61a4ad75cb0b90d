r"""Confidence is how far one step to the clean image, from pure noise, is willing to go.

Formula, at the first call, with the guided noise estimate::

    m = (1/n) sum_s (sigma / alpha)²·||eps_g||² / d

It is the mean square of z_0 - z_1 when one Euler step leads from the largest noise to none in the
variance-exploding scale. The released code keeps only the last seed's.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.path import PathRecord


@dataclass(frozen=True)
class Confidence(Detector):
    """The white-box attack on the first step."""

    source: ClassVar[str] = "Webster 2023, arXiv 2305.08694, white-box attack"

    @property
    def name(self) -> str:
        """Return "confidence"."""
        return "confidence"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over seeds of (sigma / alpha)²·||eps_g||² / d, first call"

    @property
    def needs(self) -> Needs:
        """Return the first call."""
        return Needs((PathRecord(1),))

    def each(self, evidence: Evidence) -> Float[Tensor, "prompt seed"]:
        """Return every seed's mean square."""
        steps = evidence[PathRecord(1)]
        alpha, sigma = steps.gram.level
        square = (sigma / alpha) ** 2 * steps.gram.square("eps_g") / steps.gram.d
        return steps.per_seed(square)[:, :, 0]

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean over seeds."""
        return seed_mean(self.each(evidence))


DETECTORS = (Confidence(),)
