r"""Sharpness is how strongly the gap changes along itself: curvature where the prompt pulls.

Formula, at the first call, with s = -eps / sigma, H = ds/dx and D = c - u the difference of the two
branches::

    m = (1/n) sum_s ||H_D·s_D|| = (1/n) sum_s ||(J_c - J_u)·(eps_c - eps_u)|| / sigma²

The released code keeps scores in bfloat16, which makes ties, and reads a v-prediction as a clean
estimate; here all norms are float64 of noise estimates.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mnemoscope.detectors.base import Detector, PerPrompt, norms, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.gap_derivative import GapDerivative
from mnemoscope.evidence.pieces.path import PathRecord


@dataclass(frozen=True)
class Sharpness(Detector):
    """Sharpness at the first call.

    Attributes:
        method: "jvp", or "difference" for a network without forward-mode derivatives.
    """

    method: Literal["jvp", "difference"] = "jvp"
    source: ClassVar[str] = "Jeon, Kim & No 2025 (ICML), arXiv 2412.04140"

    @property
    def name(self) -> str:
        """Return "sharpness", with the method unless it is exact."""
        return "sharpness" if self.method == "jvp" else "sharpness:difference"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over seeds of ||(J_c - J_u)·gap|| / sigma², first call"

    @property
    def needs(self) -> Needs:
        """Return the derivative, and the level of the first call."""
        return Needs((PathRecord(1), GapDerivative(self.method)))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean norm."""
        sigma = evidence[PathRecord(1)].gram.level.sigma[0]
        return seed_mean(norms(evidence[GapDerivative(self.method)]) / sigma**2)


DETECTORS = (Sharpness(), Sharpness("difference"))
