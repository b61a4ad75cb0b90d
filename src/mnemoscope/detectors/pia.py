r"""PIA asks whether the network finds again the noise that it gave the training image itself.

Formula, with eps_0 the estimate for the clean image x at timestep 0::

    m = - sum over coordinates of ( eps_0 - eps_c(alpha·x + sigma·eps_0, t) )⁴

    pia:normal    eps_0 is divided by the mean of |eps_0| and multiplied by sqrt(2 / pi) before

The released code sweeps t and reports the best on the test set; t = 200 here.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.proximal import Proximal


@dataclass(frozen=True)
class Pia(Detector):
    """Membership by proximal initialization.

    Attributes:
        normal: Whether the network's noise is given the size of unit noise.
        timestep: Timestep t of training.
    """

    normal: bool = False
    timestep: int = 200
    source: ClassVar[str] = "Kong et al. 2024 (ICLR), arXiv 2305.18355"

    @property
    def name(self) -> str:
        """Return its name with the form."""
        return "pia" + (":normal" if self.normal else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        noise = "eps_0 of unit size" if self.normal else "eps_0"
        return (
            f"- sum of (eps_0 - eps_c(alpha·x + sigma·eps_0))⁴, {noise}, timestep {self.timestep}"
        )

    @property
    def needs(self) -> Needs:
        """Return both estimates."""
        return Needs((Proximal(self.timestep, self.normal),), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative fourth power of the difference."""
        first, again = evidence[Proximal(self.timestep, self.normal)].unbind(dim=1)
        return -(first - again).flatten(1).pow(4).sum(dim=1)


DETECTORS = (Pia(), Pia(normal=True))
