r"""The curvature difference is how much sharper the prompt makes the density around its own sample.

Formulas, at the last call of the guided path, means over space and seeds::

    curvature_difference         relu( sum over channels of diag(d gap / dx) )
    curvature_difference:proxy   sum over channels of gap² / sigma²

The first is sigma times diag(-H_c) - diag(-H_u) by Hutchinson's estimator, the second the squared
difference of scores, which equals it in expectation as the noise vanishes and costs nothing beside
the path. Their scales differ by powers of sigma and are never mixed.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.curvature import Curvature
from mnemoscope.evidence.pieces.maps import Maps


@dataclass(frozen=True)
class CurvatureDifference(Detector):
    """Spatial mean of the curvature difference.

    Attributes:
        probes: Hutchinson probes a seed; 0 for the proxy without derivatives. The mean over space
            and seeds makes one enough; maps take more.
    """

    probes: int = 1
    source: ClassVar[str] = "Kim & Lee 2026 (ICML), arXiv 2605.26756"

    @property
    def name(self) -> str:
        """Return "curvature_difference", or the proxy."""
        return "curvature_difference" + ("" if self.probes else ":proxy")

    @property
    def formula(self) -> str:
        """Return the formula."""
        if self.probes:
            return "spatial mean of relu(sum over channels of diag(d gap / dx)), last call"
        return "spatial mean of sum over channels of gap² / sigma², last call"

    @property
    def needs(self) -> Needs:
        """Return the curvature, or the last call alone."""
        return Needs((Curvature(self.probes),) if self.probes else (Maps("last"),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the spatial mean."""
        if self.probes:
            map_ = evidence[Curvature(self.probes)].double().sum(dim=2).clamp_min(0)
        else:
            last = evidence[Maps("last")]
            map_ = last.gap.double().square().sum(dim=2) / last.level.sigma**2
        return map_.flatten(1).mean(dim=1)


DETECTORS = (CurvatureDifference(), CurvatureDifference(0))
