r"""The curvature difference is how much sharper the density is around a sample than it would be.

Formulas, at the last call of the guided path, means over space and seeds, with the difference
D = eps_c - eps_u, or eps_c - eps_c of an earlier checkpoint::

    curvature_difference          relu( sum over channels of diag(d D / dx) )
    curvature_difference:proxy    sum over channels of D² / sigma²
    ...:earlier                   the same against the earlier checkpoint

The first is sigma times diag(-H_c) - diag(-H) by Hutchinson's estimator, the second the squared
difference of scores, which equals it in expectation as the noise vanishes and costs nothing beside
the path. Their scales differ by powers of sigma and are never mixed.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.curvature import Curvature
from mnemoscope.evidence.pieces.earlier_gap import EarlierGap
from mnemoscope.evidence.pieces.maps import Maps


@dataclass(frozen=True)
class CurvatureDifference(Detector):
    """Spatial mean of the curvature difference.

    Attributes:
        probes: Hutchinson probes a seed; 0 for the proxy without derivatives. The mean over space
            and seeds makes one enough; maps take more.
        earlier: Whether an earlier checkpoint is compared with, and not the unconditional branch.
    """

    probes: int = 1
    earlier: bool = False
    source: ClassVar[str] = "Kim & Lee 2026 (ICML), arXiv 2605.26756"

    @property
    def name(self) -> str:
        """Return its name with the forms."""
        forms = ("" if self.probes else ":proxy") + (":earlier" if self.earlier else "")
        return f"curvature_difference{forms}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        what = "(eps_c - that of an earlier checkpoint)" if self.earlier else "gap"
        if self.probes:
            return f"spatial mean of relu(sum over channels of diag(d {what} / dx)), last call"
        return f"spatial mean of sum over channels of {what}² / sigma², last call"

    @property
    def needs(self) -> Needs:
        """Return the curvature, or the last call alone."""
        if self.earlier:
            return Needs((EarlierGap(self.probes),), uncond=False)
        return Needs((Curvature(self.probes),) if self.probes else (Maps("last"),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the spatial mean."""
        if self.earlier:
            changed = evidence[EarlierGap(self.probes)]
            found = changed.values if self.probes else changed.values / changed.level.sigma
        elif self.probes:
            found = evidence[Curvature(self.probes)]
        else:
            last = evidence[Maps("last")]
            found = last.gap.double() / last.level.sigma
        if self.probes:
            map_ = found.double().sum(dim=2).clamp_min(0)
        else:
            map_ = found.double().square().sum(dim=2)
        return map_.flatten(1).mean(dim=1)


DETECTORS = (
    CurvatureDifference(),
    CurvatureDifference(0),
    CurvatureDifference(earlier=True),
    CurvatureDifference(0, earlier=True),
)
