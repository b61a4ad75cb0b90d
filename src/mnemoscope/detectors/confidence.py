r"""Confidence is how far one step to the clean image, from pure noise, is willing to go.

Formula, at the first call, with the guided noise estimate::

    m = (1/n) sum_s (sigma / alpha)²·||eps_g||² / d

It is the mean square of z_0 - z_1 when one Euler step leads from the largest noise to none in the
variance-exploding scale. The released code keeps only the last seed's (confidence:released_code).
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import RELEASED, Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.path import PathRecord


@dataclass(frozen=True)
class Confidence(Detector):
    """The white-box attack on the first step.

    Attributes:
        released: Whether the last seed alone counts, as in the released code.
    """

    released: bool = False
    source: ClassVar[str] = "Webster 2023, arXiv 2305.08694, white-box attack"

    @property
    def name(self) -> str:
        """Return "confidence", or the variant."""
        return "confidence" + (RELEASED if self.released else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        whose = "last seed's" if self.released else "mean over seeds of"
        return f"{whose} (sigma / alpha)²·||eps_g||² / d, first call"

    @property
    def needs(self) -> Needs:
        """Return the first call."""
        return Needs((PathRecord(1),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean square."""
        steps = evidence[PathRecord(1)]
        alpha, sigma = steps.gram.level
        square = (sigma / alpha) ** 2 * steps.gram.square("eps_g") / steps.gram.d
        each = steps.per_seed(square)[:, :, 0]
        return each[:, -1] if self.released else seed_mean(each)


DETECTORS = (Confidence(), Confidence(released=True))
