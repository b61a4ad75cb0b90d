r"""Norms of the noise estimate at the training image itself, near the end of the path.

Formulas, at alpha·target::

    cfg_norm      ||eps_c - eps_u||
    score_norm    ||eps_u + g·(eps_c - eps_u)||,  g = 7.5

The released code takes them on the sampler's latent; the scaled image is where the paper takes the
local dimension of a given image.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.core.predict import combine
from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.scaled_target import ScaledTarget

GUIDANCE = 7.5
"""Guidance scale of the guided norm; the released code's."""


@dataclass(frozen=True)
class ImageNorm(Detector):
    """A norm at the training image.

    Attributes:
        guided: Whether it is that of the guided estimate, and not of the gap.
    """

    guided: bool = False
    source: ClassVar[str] = "Ross et al. 2025 (ICLR), arXiv 2411.00113"

    @property
    def name(self) -> str:
        """Return "cfg_norm", or "score_norm"."""
        return "score_norm" if self.guided else "cfg_norm"

    @property
    def formula(self) -> str:
        """Return the formula."""
        what = f"eps_u + {GUIDANCE:g}·(eps_c - eps_u)" if self.guided else "eps_c - eps_u"
        return f"||{what}|| at alpha·target"

    @property
    def needs(self) -> Needs:
        """Return both estimates at the image."""
        return Needs((ScaledTarget(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the norm."""
        uncond, cond = evidence[ScaledTarget()].unbind(dim=1)
        what = combine(uncond, cond, GUIDANCE) if self.guided else cond - uncond
        return what.flatten(1).norm(dim=1)


DETECTORS = (ImageNorm(), ImageNorm(guided=True))
