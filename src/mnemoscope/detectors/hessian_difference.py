r"""The Hessian difference is the slope of the squared prediction, conditional less unconditional.

Formula, at the first call::

    m = (1/n) sum_s || J_cᵀ·eps_c - J_uᵀ·eps_u ||²

This is a vector-Jacobian product, not the Jacobian-vector product of sharpness: a network's
Jacobian is not symmetric. The unconditional half depends on no prompt and is taken from the bank.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, norms, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.square_gradient import SquareGradient


@dataclass(frozen=True)
class HessianDifference(Detector):
    """The decoupled Hessian difference at the first call."""

    source: ClassVar[str] = 'anonymous 2026, code "icml-2026", metric 2'

    @property
    def name(self) -> str:
        """Return "hessian_difference"."""
        return "hessian_difference"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over seeds of ||J_cᵀ·eps_c - J_uᵀ·eps_u||², first call"

    @property
    def needs(self) -> Needs:
        """Return the gradient."""
        return Needs((SquareGradient(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean square."""
        return seed_mean(norms(evidence[SquareGradient()]).square())


DETECTORS = (HessianDifference(),)
