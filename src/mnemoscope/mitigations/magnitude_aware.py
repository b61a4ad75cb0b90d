r"""Magnitude-aware guidance: each sample's scale falls where the prompt pulls hard.

Formula, with c, u the raw outputs with and without the prompt::

    guided = u + g_s·(c - u)        g_s = 1 + (g - 1)·exp(-strength·||c - u|| / ||u||)
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.mitigations.base import Mitigation, size
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class MagnitudeAware(Mitigation):
    """Damp guidance by how hard the prompt pulls.

    Attributes:
        strength: Rate α at which the scale falls with the relative size of the gap.
    """

    name: ClassVar[str] = "magnitude_aware"
    source: ClassVar[str] = "MAMBO-G, arXiv 2508.03442"
    strengths: ClassVar[tuple[float, ...]] = (2.0, 4.0, 8.0, 16.0, 32.0)
    neutral: ClassVar[float | None] = 0.0

    strength: float = 8.0

    def guide(self, step: Step) -> Latents:
        """Guide with a scale a sample."""
        cond, uncond = step.raw["cond"], step.raw["uncond"]
        pull = size(cond - uncond) / size(uncond)
        # From g down, and not from 1 up, so that strength 0 is g to the last bit.
        lost = (step.guidance - 1) * (1 - (-self.strength * pull).exp())
        return step.guided((step.guidance - lost).to(cond))
