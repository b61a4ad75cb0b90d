r"""Attention rescaling: the prompt attends more to its begin mark, and not at all to its padding.

Formula, for the prompts' rows of every cross-attention layer::

    logit of the begin mark  ← (1 + strength)·logit
    logit of padding         ← -∞                     padding: what follows the end mark

The published factor is C = 1 + strength. Multiplying a logit below 0 does the opposite of what is
meant, which is the authors' formula all the same. Rows are told apart by their branch; the authors'
code takes every second one, which is right for one image a call alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.mitigations.base import Mitigation
from mnemoscope.sampling.hooks import Attended


@dataclass(frozen=True)
class AttentionRescaling(Mitigation):
    """Attend more to the begin mark and not to padding.

    Attributes:
        strength: What the begin mark's logit grows by, C - 1.
        end: Whether the end mark is hidden as well.
    """

    name: ClassVar[str] = "attention_rescaling"
    source: ClassVar[str] = "Ren et al. 2024"
    strengths: ClassVar[tuple[float, ...]] = (0.1, 0.25, 0.5, 1.0)

    strength: float = 0.25
    end: bool = False

    def attention(
        self, logits: Float[Tensor, "row head query token"], at: Attended
    ) -> Float[Tensor, "row head query token"]:
        """Rescale the prompts' rows."""
        cond = torch.tensor([name == "cond" for name in at.branches], device=logits.device)
        place = torch.arange(logits.shape[-1], device=logits.device)
        last = at.end.to(logits.device)[:, None] - (1 if self.end else 0)
        hidden = (cond[:, None] & (place > last))[:, None, None]
        begin = (cond[:, None] & (place == 0))[:, None, None]
        scaled = torch.where(begin, (1 + self.strength) * logits, logits)
        return scaled.masked_fill(hidden, -torch.inf)
