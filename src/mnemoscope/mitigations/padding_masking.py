r"""Masking of padding and end marks: what holds the prompt's summary is hidden from the network.

Formula, for the prompts' rows of every cross-attention layer, with P positions of padding::

    logit of the end mark                              ← -∞     where `end`
    logit of the last round(strength·P) of padding     ← -∞

Acts on attention. The authors also pad by "!" in place of the end mark before the text is encoded,
which is a change of the tokenizer and not done here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Attended


@dataclass(frozen=True)
class PaddingMasking(Mitigation):
    """Hide padding and the end mark.

    Attributes:
        strength: Share of the padding that is hidden, from the end of the window.
        end: Whether the end mark is hidden.
    """

    name: ClassVar[str] = "padding_masking"
    source: ClassVar[str] = "Kim & No 2026, arXiv 2605.02908"
    strengths: ClassVar[tuple[float, ...]] = (0.0, 0.5, 0.9, 1.0)
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0)}

    strength: float = 0.5
    end: bool = True

    def attention(
        self, logits: Float[Tensor, "row head query token"], at: Attended
    ) -> Float[Tensor, "row head query token"]:
        """Hide positions of the prompts' rows."""
        cond = torch.tensor([name == "cond" for name in at.branches], device=logits.device)
        place = torch.arange(logits.shape[-1], device=logits.device)
        end = at.end.to(logits.device)
        padding = logits.shape[-1] - 1 - end
        kept = logits.shape[-1] - (self.strength * padding).round()
        hidden = place >= kept[:, None]
        if self.end:
            hidden = hidden | (place == end[:, None])
        return logits.masked_fill((cond[:, None] & hidden)[:, None, None], -torch.inf)
