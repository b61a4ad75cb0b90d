r"""FLIPD is the model's local intrinsic dimension at an image; memorized images have a small one.

Formulas, at alpha·target near the end of the path, the trace by one random probe a seed::

    LID_b        = d - sigma·tr(d eps_b / dx) + ||eps_b||²
    flipd        - LID_c                flipd:caption    LID_u - LID_c

The released code differentiates the guided estimate with its unconditional part held fixed, which
loses a term, and takes it on the sampler's latent and not on the scaled image.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.target_divergence import TargetDivergence


@dataclass(frozen=True)
class Flipd(Detector):
    """The negative local dimension.

    Attributes:
        caption: Whether the unconditional dimension is the yardstick.
    """

    caption: bool = False
    source: ClassVar[str] = "Kamkari et al. 2024; Ross et al. 2025 (ICLR), arXiv 2411.00113"

    @property
    def name(self) -> str:
        """Return its name with the form."""
        return "flipd" + (":caption" if self.caption else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        dimension = "(d - sigma·tr(d eps / dx) + ||eps||²) at alpha·target"
        return f"drop under the caption of {dimension}" if self.caption else f"- {dimension}"

    @property
    def needs(self) -> Needs:
        """Return divergence and square at the image."""
        return Needs((TargetDivergence(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative dimension, or its drop under the caption."""
        found = evidence[TargetDivergence()]
        uncond, cond = found.d - found.level.sigma * found.trace + found.square
        return seed_mean(uncond - cond if self.caption else -cond)


DETECTORS = (Flipd(), Flipd(caption=True))
