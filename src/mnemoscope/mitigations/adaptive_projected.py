r"""Adaptive projected guidance: the part of the gap along the prediction is damped.

Formula, with c, u the raw outputs with and without the prompt, <> over all coordinates::

    m      = momentum·m + (c - u)                              m = 0 before the first call
    m'     = m·min(1, radius / ||m||)                          where radius > 0
    along  = <m', c>·c / ||c||²
    guided = u + g·(m' - along + (1 - strength)·along)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class AdaptiveProjected(Mitigation):
    """Damp the part of the gap that lies along the prediction.

    Attributes:
        strength: Share of that part which is taken away, 1 - η.
        radius: Largest norm of the gap, in units of the raw output; 0 for none.
        momentum: Weight of the gap of the call before.
    """

    name: ClassVar[str] = "adaptive_projected"
    source: ClassVar[str] = "APG, Sadat et al. 2024, arXiv 2410.02416, algorithm 1"
    strengths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0)
    memory: ClassVar[int] = 1000
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0), "momentum": (-1.0, 1.0)}

    strength: float = 1.0
    radius: float = 15.0
    momentum: float = -0.5

    def guide(self, step: Step) -> Latents:
        """Guide with the projected gap."""
        gap = torch.zeros_like(step.x)
        for one in (*step.history, step):
            gap = self.momentum * gap + (one.raw["cond"] - one.raw["uncond"])
        if self.radius:
            norm = gap.flatten(1).norm(dim=1)
            gap = gap * step.each((self.radius / norm).clamp_max(1))
        cond = step.raw["cond"].double()
        unit = cond / step.each(cond.flatten(1).norm(dim=1))
        along = unit * step.each((gap.double() * unit).flatten(1).sum(dim=1))
        kept = gap.double() - self.strength * along
        return step.raw["uncond"] + step.guidance * kept.to(gap)
