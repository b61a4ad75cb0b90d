r"""Cyclic divergence is how much sharper the prompt makes the density around its cycled samples.

Formula, for samples that were noised and denoised again some times, with s = -eps / sigma at
timestep 1 of training, the divergence by one random probe a seed::

    m = - (1/n) sum_s ( div s_c - div s_u )
      = (1/n) sum_s ( tr(d eps_c / dx) - tr(d eps_u / dx) ) / sigma

After the preprint, which takes the mean flux through a sphere, 7.5 % of the distance to the nearest
training image in radius; for a small one that is the divergence times radius / d, and no training
set is asked for here. It cycles 60 times at gamma = 0.9, which is dear; `CyclicDivergence(60)`
does so.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.cycled import Cycled


@dataclass(frozen=True)
class CyclicDivergence(Detector):
    """The gap of score divergences at cycled samples.

    Attributes:
        cycles: Number of cycles; 0 for the samples as they are.
    """

    cycles: int = 0
    source: ClassVar[str] = "after Verma et al. 2026 (preprint), arXiv 2610.11670"

    @property
    def name(self) -> str:
        """Return "cyclic_divergence" with the number of cycles."""
        return f"cyclic_divergence:{self.cycles}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"- (div s_c - div s_u) at samples after {self.cycles} cycles"

    @property
    def needs(self) -> Needs:
        """Return the divergences."""
        return Needs((Cycled(self.cycles),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean gap."""
        found = evidence[Cycled(self.cycles)]
        uncond, cond = found.trace.unbind(dim=2)
        return seed_mean(cond - uncond) / float(found.level.sigma)


DETECTORS = (CyclicDivergence(0), CyclicDivergence(4))
