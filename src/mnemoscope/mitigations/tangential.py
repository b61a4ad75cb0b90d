r"""Tangential damping: the unconditional prediction keeps what it shares with the conditional one.

Formula, with c, u the raw outputs of a sample and v the leading right singular vector of (c, u)::

    u'     = u - strength·(u - <u, v>·v)
    guided = u' + g·(c - u')
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class Tangential(Mitigation):
    """Take from the unconditional prediction what it does not share with the conditional one.

    Attributes:
        strength: Share of it that is taken; 1 is the published method.
    """

    name: ClassVar[str] = "tangential"
    source: ClassVar[str] = "TCFG, Kwon et al. 2025, arXiv 2503.18137"
    strengths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0)}

    strength: float = 1.0

    def guide(self, step: Step) -> Latents:
        """Guide from the damped unconditional prediction."""
        cond, uncond = step.raw["cond"], step.raw["uncond"]
        pair = torch.stack([cond, uncond], dim=1).flatten(2).double()
        # Of the 2 x 2 Gram matrix: its leading eigenvector gives the leading singular vector.
        _, vectors = torch.linalg.eigh(pair @ pair.mT)
        lead = (vectors[:, :, -1:] * pair).sum(dim=1)
        lead = lead / lead.norm(dim=1, keepdim=True)
        shared = lead * (pair[:, 1] * lead).sum(dim=1, keepdim=True)
        apart = (pair[:, 1] - shared).to(uncond).reshape(uncond.shape)
        damped = uncond - self.strength * apart
        return damped + step.guidance * (cond - damped)
