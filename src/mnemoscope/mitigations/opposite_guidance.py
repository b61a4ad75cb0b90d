r"""Opposite guidance: away from the prompt at first, then towards it.

Formula, with i the index of a call of N, and c, u the predictions with and without the prompt::

    guided = u - strength·(c - u)     before the transition          u + g·(c - u)     from then on

The transition is the first local minimum of the gap's norm where `dynamic`, at the latest where
i / N >= until; else it is at that share. The authors' code takes the minimum from a run of its own,
whose calls this saves.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation, turned
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class OppositeGuidance(Mitigation):
    """Guide away from the prompt at first.

    Attributes:
        strength: Scale away from the prompt.
        until: Share of the calls at which it ends at the latest.
        dynamic: Whether it ends where the gap has passed a minimum.
    """

    name: ClassVar[str] = "opposite_guidance"
    source: ClassVar[str] = "Jain et al. 2025, OG"
    strengths: ClassVar[tuple[float, ...]] = (0.0, 1.0, 2.0, 3.0, 5.0)
    memory: ClassVar[int] = 1000
    bounds: ClassVar[Bounds] = {"until": (0.0, 1.0)}

    strength: float = 2.0
    until: float = 0.2
    dynamic: bool = False

    def guide(self, step: Step) -> Latents:
        """Guide away, then towards."""
        if step.share >= self.until:
            return step.guided()
        if not self.dynamic:
            return step.guided(-self.strength)
        on = turned((*step.history, step))
        return step.guided(torch.where(on, step.guidance, -self.strength))
