r"""Static transition point: no prompt at all before a fixed share of the path, then guidance.

Formula, with i the index of a call of N, and c, u the predictions with and without the prompt::

    guided = u     where i / N < strength          guided = u + g·(c - u)     from then on

Where guidance waits the authors' code samples unconditionally; `guidance_interval`, with the prompt
alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class StaticTransition(Mitigation):
    """Sample without the prompt up to a fixed point, and guide from there.

    Attributes:
        strength: Share of the calls before the transition.
    """

    name: ClassVar[str] = "static_transition"
    source: ClassVar[str] = "Jain et al. 2025, STP"
    strengths: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.4, 0.5, 0.6)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0)}

    strength: float = 0.5

    def guide(self, step: Step) -> Latents:
        """Guide after the transition."""
        return step.raw["uncond"] if step.share < self.strength else step.guided()
