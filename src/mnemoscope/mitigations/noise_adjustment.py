r"""Batch-wise noise adjustment: the noise is moved to where the prompt pulls less, by no gradient.

Formulas, with D(x) = eps_c(x) - eps_u(x) at the first call, d coordinates, `rounds` times for each
sample of its own, and then i the index of a call of N::

    x ← x - strength·( D(x + radius·sqrt(d)·D(x)/||D(x)||) - D(x) )
    guided = u     where i / N < wait          guided = u + g·(c - u)     from then on

The published radius, 50 at 16,384 coordinates, is 0.39 a coordinate; the published wait, times
above 900 of 1000, is a tenth of the path.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from mnemoscope.mitigations.base import Bounds, Mitigation, size
from mnemoscope.sampling.hooks import Latents, Start, Step


@dataclass(frozen=True)
class NoiseAdjustment(Mitigation):
    """Move the noise to where the prompt pulls less, and guide a little later.

    Attributes:
        strength: Length γ of a move.
        radius: Root mean square of the excursion by which the pull's change is found.
        rounds: How many moves.
        wait: Share of the calls before guidance.
    """

    name: ClassVar[str] = "noise_adjustment"
    source: ClassVar[str] = "Han et al. 2025, batch-wise, arXiv 2510.08625"
    strengths: ClassVar[tuple[float, ...]] = (0.35, 0.7, 1.4, 2.8)
    bounds: ClassVar[Bounds] = {"wait": (0.0, 1.0), "rounds": (0.0, 100.0)}

    strength: float = 0.7
    radius: float = 50 / sqrt(16_384)
    rounds: int = 2
    wait: float = 0.1

    @property
    def calls_before(self) -> int:
        """Return four calls a round."""
        return 4 * self.rounds

    def noise(self, start: Start) -> Latents:
        """Move the noise."""
        x = start.noise
        for _ in range(self.rounds):
            gap = start.gap(x)
            length = size(gap).clamp_min(1e-12).reshape(-1, *[1] * (x.ndim - 1)).to(x)
            x = x - self.strength * (start.gap(x + self.radius * gap / length) - gap)
        return x

    def guide(self, step: Step) -> Latents:
        """Guide after the wait."""
        return step.raw["uncond"] if step.share < self.wait else step.guided()
