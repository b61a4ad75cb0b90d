r"""Confidence is how far one step to the clean image, from pure noise, is willing to go.

Formula, at the last timestep of training (t = 999), on the state sigma·z of unit noise z, with the
guided noise estimate::

    m = (1/n) sum_s (sigma / alpha)²·||eps_g||² / d

It is the mean square of z_0 - z_1 when one Euler step leads from the largest noise to none in the
variance-exploding scale. The released code keeps only the last seed's.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt, norms, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.one_step import OneStep


@dataclass(frozen=True)
class Confidence(Detector):
    """The white-box attack on one step."""

    source: ClassVar[str] = "Webster 2023, arXiv 2305.08694, white-box attack"

    @property
    def name(self) -> str:
        """Return "confidence"."""
        return "confidence"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over seeds of (sigma / alpha)²·||eps_g||² / d, last timestep of training"

    @property
    def needs(self) -> Needs:
        """Return the one step."""
        return Needs((OneStep(),))

    def each(self, evidence: Evidence) -> Float[Tensor, "prompt seed"]:
        """Return every seed's mean square."""
        step = evidence[OneStep()]
        alpha, sigma = (part.double().cpu() for part in step.level)
        d = step.eps_g[0, 0].numel()
        return (sigma / alpha) ** 2 * norms(step.eps_g).square() / d

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean over seeds."""
        return seed_mean(self.each(evidence))


DETECTORS = (Confidence(),)
