r"""Gated opposite guidance: away from the prompt at first, but only where it says too much.

Formula, with i the index of a call of N, c and u the predictions with and without the prompt, and
score the rms of x0_c - x0_u at the first call::

    guided = u - strength·(c - u)     where score > threshold and i / N < until
    guided = u + g·(c - u)            elsewhere

A prompt below the threshold is sampled bit for bit as without. No call is added: the score is read
off the first one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation, suspicious
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class GatedOpposite(Mitigation):
    """Guide away from prompts that say too much, at first.

    Attributes:
        strength: Scale away from the prompt.
        threshold: Largest score of an ordinary prompt, in units of the latents; 0 acts on all.
        until: Share of the calls at which it ends.
    """

    name: ClassVar[str] = "gated_opposite"
    source: ClassVar[str] = "ours, after Jain et al. 2025 (OG) and Wen et al. 2024 (the score)"
    strengths: ClassVar[tuple[float, ...]] = (0.0, 1.0, 3.0, 5.0, 8.0)
    bounds: ClassVar[Bounds] = {"until": (0.0, 1.0)}

    strength: float = 3.0
    threshold: float = 0.0
    until: float = 0.3

    def guide(self, step: Step) -> Latents:
        """Guide away from what is suspicious, then towards."""
        if step.share >= self.until:
            return step.guided()
        away = step.each(suspicious(step, self.threshold))
        return torch.where(away, step.guided(-self.strength), step.guided())
