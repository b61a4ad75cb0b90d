r"""Dynamic transition point: guidance waits until the gap has passed its first local minimum.

Formula, with D_i the norm of the gap of the noise estimates at call i of N, and c, u the
predictions with and without the prompt::

    transition   the first i with  D_{i-2} > D_{i-1} < D_i,   at the latest where i / N >= strength
    guided       u + before·(c - u)     until then          u + g·(c - u)     from then on

Each sample has a transition of its own. The fallback is ours: the published rule never guides a
sample whose gap has no local minimum.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation, turned
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class DynamicTransition(Mitigation):
    """Wait with guidance until the gap has passed a minimum.

    Attributes:
        strength: Share of the calls after which guidance begins whatever the gap does.
        before: Guidance scale until then; the authors' code has 1, the prompt alone.
    """

    name: ClassVar[str] = "dynamic_transition"
    source: ClassVar[str] = "Jain et al. 2025, DTP"
    strengths: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.4, 0.6)
    neutral: ClassVar[float | None] = 0.0
    memory: ClassVar[int] = 1000
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0)}

    strength: float = 0.4
    before: float = 1.0

    def guide(self, step: Step) -> Latents:
        """Guide after the transition."""
        if step.share >= self.strength:
            return step.guided()
        on = turned((*step.history, step))
        return step.guided(torch.where(on, step.guidance, self.before))
