r"""The noised-target gap is the gap norm on the noised training image, and so about that image.

Formula, at x_t = alpha·target + sigma·eps, mean over seeds and the levels of the first ten calls::

    m = || eps_c(x_t) - eps_u(x_t) ||
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.noised_target import NoisedTarget


@dataclass(frozen=True)
class NoisedGap(Detector):
    """The gap norm at the image in question.

    Attributes:
        calls: How many first calls' levels it is averaged over.
    """

    calls: int = 10
    source: ClassVar[str] = (
        "Wen et al. 2024 on the noised image, as in López Amado, Fumero & Locatello 2026, table 1"
    )

    @property
    def name(self) -> str:
        """Return "noised_gap"."""
        return "noised_gap"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"mean of ||eps_c - eps_u|| on the noised image, first {self.calls} calls' levels"

    @property
    def needs(self) -> Needs:
        """Return the record of the noised image."""
        return Needs((NoisedTarget(self.calls, first=True),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean norm."""
        noised = evidence[NoisedTarget(self.calls, first=True)]
        return seed_mean(noised.per_seed(noised.gram.square("gap").sqrt()).mean(dim=2))


DETECTORS = (NoisedGap(),)
