r"""SimA asks how much noise the network sees in the training image itself.

Formula, for the clean image x shown, neither noised nor scaled, as a state of timestep t::

    m = - sum over coordinates of eps_c(x, t)⁴

An image that was trained on is a mean of what lies near it, and the estimate points there. The
released code sweeps t from 0 to 190 and reports the best on the test set; t = 100 here.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.clean_target import CleanTarget


@dataclass(frozen=True)
class SimA(Detector):
    """Membership by one query.

    Attributes:
        timestep: Timestep t of training.
    """

    timestep: int = 100
    source: ClassVar[str] = "Rao, Qu & Moyer 2025, arXiv 2509.25003"

    @property
    def name(self) -> str:
        """Return "sima"."""
        return "sima"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"- sum of eps_c⁴ for the clean image shown at timestep {self.timestep}"

    @property
    def needs(self) -> Needs:
        """Return the estimate at the image."""
        return Needs((CleanTarget(self.timestep),), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative fourth power."""
        return -evidence[CleanTarget(self.timestep)].flatten(1).pow(4).sum(dim=1)


DETECTORS = (SimA(),)
