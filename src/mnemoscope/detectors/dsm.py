r"""The DSM score is how much the conditional prediction turns in one early step of the sampler.

Formula, over the step from call k to call k + 1 of the guided path::

    m_k = (1/n) sum_s ||eps_c(x_{k+1}) - eps_c(x_k)||²
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.change_norms import ChangeNorms


@dataclass(frozen=True)
class Dsm(Detector):
    """The turn of one step.

    Attributes:
        step: The step k, from 0.
    """

    step: int = 0
    source: ClassVar[str] = 'anonymous 2026, code "icml-2026", DSM'

    @property
    def name(self) -> str:
        """Return "dsm" with its step."""
        return f"dsm:{self.step}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"mean over seeds of ||eps_c({self.step + 1}) - eps_c({self.step})||²"

    @property
    def needs(self) -> Needs:
        """Return the calls up to the end of the step."""
        return Needs((ChangeNorms(self.step + 2),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean square."""
        turned = evidence[ChangeNorms(self.step + 2)].cond
        return seed_mean(turned[:, :, -1].square())


DETECTORS = (Dsm(0), Dsm(1))
