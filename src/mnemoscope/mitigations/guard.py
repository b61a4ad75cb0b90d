r"""GUARD: guidance towards an attenuated prompt, and away from the prompt itself.

Formulas, with c, u the predictions with and without the prompt, a that of the prompt with
attenuated attention, i the index of a call of N::

    guided = u + g·(a - u) - r_i·(c - u)            r_i = strength·cos(π·i / 2N)

    attenuated, per head of a cross-attention layer on the way down or in the middle:
        M_k = max over queries of logit_k           z_k = (M_k - mean) / (std + 1e-6)
        logit_k ← factor·logit_k                    where z_k > spike, the begin mark apart

with mean and unbiased standard deviation over all tokens but the begin mark. So the authors' code;
their paper speaks of attention mass in place of logits (`mass`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.mitigations.base import Mitigation
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Attended, Latents, Start, Step

EARLY = ("down_blocks", "mid_block")
"""Where layers are attenuated."""


@dataclass(frozen=True)
class Guard(Mitigation):
    """Guide towards an attenuated prompt and away from the prompt.

    Attributes:
        strength: Weight r of the repulsion at the first call.
        factor: What the logits of spiking tokens are multiplied by.
        spike: Standard deviations above the mean from which a token spikes.
        mass: Whether spikes are those of attention mass, and not of logits.
    """

    name: ClassVar[str] = "guard"
    source: ClassVar[str] = "Zhao et al. 2026, CA-in-GUARD, arXiv 2603.00133"
    strengths: ClassVar[tuple[float, ...]] = (0.0, 1.0, 2.0, 4.0, 8.0)
    branches_asked: ClassVar[tuple[str, ...]] = ("attenuated",)

    strength: float = 2.0
    factor: float = 0.3
    spike: float = 0.1
    mass: bool = False

    def branches(self, start: Start) -> Mapping[str, Condition]:
        """Ask for the prompt once more, to be attenuated."""
        return {"attenuated": start.cond}

    def guide(self, step: Step) -> Latents:
        """Guide towards the attenuated prompt and away from the prompt."""
        cond, uncond = step.raw["cond"], step.raw["uncond"]
        repelled = self.strength * cos(pi * step.point.call / (2 * step.calls))
        toward = uncond + step.guidance * (step.raw["attenuated"] - uncond)
        return toward - repelled * (cond - uncond)

    def attention(
        self, logits: Float[Tensor, "row head query token"], at: Attended
    ) -> Float[Tensor, "row head query token"]:
        """Attenuate spiking tokens of the attenuated branch."""
        rows = [row for row, branch in enumerate(at.branches) if branch == "attenuated"]
        if not rows or not at.layer.startswith(EARLY):
            return logits
        part = logits[rows]
        peak = (part.softmax(dim=-1) if self.mass else part).amax(dim=2, keepdim=True)
        words = peak[..., 1:]
        z = (peak - words.mean(dim=-1, keepdim=True)) / (words.std(dim=-1, keepdim=True) + 1e-6)
        spiking = z > self.spike
        spiking[..., 0] = False
        changed = logits.clone()
        changed[rows] = torch.where(spiking, self.factor * part, part)
        return changed
