r"""Anisotropy adds the direction of the gap, at a pretended low noise, to its length at high noise.

Formulas, on the same initial noise, "hi" being the first call and "lo" the third from last::

    a = (1/n) sum_s ||eps_c - eps_u||_hi / sigma_hi
    b = (1/n) sum_s mean over pixels of cos over channels(eps_u, eps_c - eps_u)_lo
    m = w_a·a + w_b·b

The released code divides by sigma for one model and not for another, takes the cosine of raw
outputs and keeps scores in bfloat16; its weights were set on the prompts they were judged on.
Both parts stand alone here, and `mnemoscope bench` fits weights on one half of the prompts.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.low_noise import LowNoise
from mnemoscope.evidence.pieces.path import PathRecord


@dataclass(frozen=True)
class Anisotropy(Detector):
    """A weighted sum of norm and cosine.

    Attributes:
        norm: Weight of the norm.
        cosine: Weight of the cosine.
    """

    norm: float = 1.0
    cosine: float = 1.0
    source: ClassVar[str] = "Asthana & Belagiannis 2026 (ICLR), arXiv 2601.20642"

    @property
    def name(self) -> str:
        """Return "anisotropy", or which part it is."""
        part = ":cosine" if not self.norm else ":norm" if not self.cosine else ""
        return f"anisotropy{part}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        parts = [
            f"{self.norm:g}·||gap|| / sigma at the first call" if self.norm else "",
            f"{self.cosine:g}·cos(eps_u, gap) of pure noise at low noise" if self.cosine else "",
        ]
        return " + ".join(part for part in parts if part)

    @property
    def needs(self) -> Needs:
        """Return what the weighted parts take."""
        return Needs(
            tuple(
                piece
                for piece, weight in ((PathRecord(1), self.norm), (LowNoise(), self.cosine))
                if weight
            )
        )

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the weighted sum."""
        total = torch.zeros(evidence.prompts, dtype=torch.float64)
        if self.norm:
            gram = evidence[PathRecord(1)].gram
            size = gram.square("gap").sqrt() / gram.level.sigma
            total += self.norm * seed_mean(evidence[PathRecord(1)].per_seed(size)[:, :, 0])
        if self.cosine:
            low = evidence[LowNoise()]
            cosine = torch.cosine_similarity(low.eps_u.double(), low.gap.double(), dim=2)
            total += self.cosine * seed_mean(cosine.flatten(2).mean(dim=2))
        return total


DETECTORS = (Anisotropy(), Anisotropy(1.0, 0.0), Anisotropy(0.0, 1.0))
