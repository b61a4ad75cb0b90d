r"""CFG-Zero*: the unconditional prediction is scaled to fit, and the first updates are left out.

Formula, with c, u the raw outputs of a sample and i the index of a call of N::

    s      = <c, u> / ||u||²
    guided = s·u + g·(c - s·u)                        guided = 0     where i < wait

In between, s and the wait are taken in proportion: 1 + strength·(s - 1), round(strength·wait).
A guided output of 0 says "no change" in a flow, and "no noise" where the network predicts noise.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class ZeroStar(Mitigation):
    """Scale the unconditional prediction to fit, and leave the first updates out.

    Attributes:
        strength: Share of the change that is made; 1 is the published method.
        wait: Calls whose output is 0.
    """

    name: ClassVar[str] = "zero_star"
    source: ClassVar[str] = "CFG-Zero*, Fan et al. 2025, arXiv 2503.18886"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0)}

    strength: float = 1.0
    wait: int = 1

    def guide(self, step: Step) -> Latents:
        """Guide from the scaled unconditional prediction."""
        cond, uncond = step.raw["cond"], step.raw["uncond"]
        if step.point.call < round(self.strength * self.wait):
            return torch.zeros_like(cond)
        flat_c, flat_u = cond.flatten(1), uncond.flatten(1)
        fit = (flat_c * flat_u).sum(dim=1) / (flat_u.square().sum(dim=1) + 1e-8)
        scaled = uncond * step.each(1 + self.strength * (fit - 1))
        return scaled + step.guidance * (cond - scaled)
