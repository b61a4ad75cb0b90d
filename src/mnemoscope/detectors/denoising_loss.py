r"""Denoising loss is how badly the network removes noise from the training image under its prompt.

Formulas, at x = alpha·target + sigma·eps, mean over seeds and levels spread over the path::

    denoising_loss          - ||eps_c - eps||² / d
    denoising_loss:caption  ( ||eps_u - eps||² - ||eps_c - eps||² ) / d
    denoising_loss:5        - ||eps_c - eps||² / d, at 5 levels in place of 10

The second asks what the caption adds, so an image that is easy for any caption does not count. The
third takes a quarter of the calls of the first, for it does not ask the empty prompt.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.noised_error import NoisedError
from mnemoscope.evidence.pieces.noised_target import NoisedTarget


@dataclass(frozen=True)
class DenoisingLoss(Detector):
    """Training loss at the image in question.

    Attributes:
        caption: Whether the unconditional loss is the yardstick.
    """

    caption: bool = False
    source: ClassVar[str] = "Ho et al. 2020, eq. 14, as a membership score"

    @property
    def name(self) -> str:
        """Return its name with the form."""
        return "denoising_loss" + (":caption" if self.caption else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        if self.caption:
            return "mean of (||eps_u - eps||² - ||eps_c - eps||²) / d on the noised image"
        return "- mean of ||eps_c - eps||² / d on the noised image"

    @property
    def needs(self) -> Needs:
        """Return the record of the noised image."""
        return Needs((NoisedTarget(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative loss, or what the caption saves."""
        noised = evidence[NoisedTarget()]
        gram = noised.gram
        loss = gram.square({"eps_c": 1.0, "x_T": -1.0})
        base = gram.square({"eps_u": 1.0, "x_T": -1.0}) if self.caption else 0.0
        return seed_mean(noised.per_seed((base - loss) / gram.d).mean(dim=2))


@dataclass(frozen=True)
class FewLevels(Detector):
    """Training loss at the image in question, for few calls.

    Attributes:
        levels: Number of levels, spread over the path.
    """

    levels: int = 5
    source: ClassVar[str] = "ours, after Ho et al. 2020, eq. 14"

    @property
    def name(self) -> str:
        """Return its name with the number of levels."""
        return f"denoising_loss:{self.levels}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"- mean of ||eps_c - eps||² / d on the noised image, {self.levels} levels"

    @property
    def needs(self) -> Needs:
        """Return the error at the noised image."""
        return Needs((NoisedError(self.levels),), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative loss."""
        return -seed_mean(evidence[NoisedError(self.levels)].mean(dim=2))


DETECTORS = (DenoisingLoss(), DenoisingLoss(caption=True), FewLevels())
