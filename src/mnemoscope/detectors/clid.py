r"""CLiD asks how much worse the training image is denoised when its caption is cut.

Formula, with c* the first, middle and last third of the caption and no caption at all (k = 4), mean
over levels spread over the path and over seeds::

    m = (1/k) sum over c* of ( ||eps_c*(x_t) - eps||² - ||eps_c(x_t) - eps||² )

The paper's threshold attack adds the loss itself, both scaled by quartiles of a list of prompts and
weighed by a model trained for that; a score here does not depend on its company, so the two stand
apart, `clid` and `denoising_loss`. Of its three ways of cutting a caption this is the first.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.reduced_captions import ReducedCaptions


@dataclass(frozen=True)
class Clid(Detector):
    """Membership by conditional likelihood discrepancy."""

    source: ClassVar[str] = "Zhai et al. 2024 (NeurIPS), arXiv 2405.14800, eq. 14"

    @property
    def name(self) -> str:
        """Return "clid"."""
        return "clid"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over cut captions of ||eps_c* - eps||² - ||eps_c - eps||² on the noised image"

    @property
    def needs(self) -> Needs:
        """Return the losses."""
        return Needs((ReducedCaptions(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean discrepancy."""
        losses = evidence[ReducedCaptions()]
        return seed_mean((losses[..., 1:] - losses[..., :1]).mean(dim=(2, 3)))


DETECTORS = (Clid(),)
