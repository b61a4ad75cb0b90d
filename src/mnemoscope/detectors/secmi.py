r"""SecMI asks how far a deterministic step up and down again misses the training image's own way.

Formula, with x the image led up deterministically to timestep T - h, and phi one such step::

    m = - || phi( phi(x; T - h, T); T, T - h ) - x ||²

T = 100 and h = 10 are the released code's; this is its statistic, not the classifier trained on it.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.round_trip import RoundTrip


@dataclass(frozen=True)
class SecMI(Detector):
    """Membership by step-wise error.

    Attributes:
        end: Timestep T of training.
        stride: Timesteps h a step.
    """

    end: int = 100
    stride: int = 10
    source: ClassVar[str] = "Duan et al. 2023 (ICML), arXiv 2302.01316, SecMI_stat"

    @property
    def name(self) -> str:
        """Return "secmi"."""
        return "secmi"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"- squared miss of a step up to timestep {self.end} and down again"

    @property
    def needs(self) -> Needs:
        """Return the miss."""
        return Needs((RoundTrip(self.end, self.stride),), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative square."""
        return -evidence[RoundTrip(self.end, self.stride)].flatten(1).square().sum(dim=1)


DETECTORS = (SecMI(),)
