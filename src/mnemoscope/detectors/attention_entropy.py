r"""Attention entropy is how widely the prompt branch spreads its cross-attention over tokens.

Formulas, with a_i the attention to token i, averaged over queries, heads (and layers), and S the
end token and the padding after it::

    E_t   = - sum_i a_i·log a_i          E^S_t = - sum over i in S of a_i·log a_i
    attention_entropy         E of one layer at the first call
    attention_entropy:path    mean of E_t over the last N/5 calls + mean |E^S_t - E^S_first| there

The released code subtracts without the absolute value, and stacks layers only where all have as
many heads. It is confounded by prompt length: look at the length-matched AUC.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.text import Text
from mnemoscope.evidence.pieces.token_attention import TokenAttention

LAYER = 3
"""Layer of the first-call form, counted down, middle, up from 0; the last where there are fewer."""


def terms(attention: Float[Tensor, "*sample token"]) -> Float[Tensor, "*sample token"]:
    """Return -a·log a, 0 where a is 0."""
    return torch.special.entr(attention.double())


@dataclass(frozen=True)
class AttentionEntropy(Detector):
    """Entropy of the attention to tokens.

    Attributes:
        path: Whether the end of the whole path is looked at, and not the first call.
    """

    path: bool = False
    source: ClassVar[str] = "Ren et al. 2024 (ECCV), arXiv 2403.11052, E and D"

    @property
    def name(self) -> str:
        """Return its name with the form."""
        return "attention_entropy" + (":path" if self.path else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        if self.path:
            return "mean entropy + mean |change of end and padding terms|, last fifth of the path"
        return f"entropy of token attention, layer {LAYER}, first call"

    @property
    def needs(self) -> Needs:
        """Return the attention."""
        pieces = (TokenAttention(None), Text()) if self.path else (TokenAttention(1),)
        return Needs(pieces, uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the entropy."""
        if not self.path:
            seen = evidence[TokenAttention(1)][:, :, 0]
            return seed_mean(terms(seen[:, :, min(LAYER, seen.shape[2] - 1)]).sum(dim=2))
        entropy, moved = self.parts(evidence)
        return seed_mean(entropy + moved.abs().mean(dim=2))

    def parts(
        self, evidence: Evidence
    ) -> tuple[Float[Tensor, "prompt seed"], Float[Tensor, "prompt seed call"]]:
        """Return the mean entropy late in the path, and how far end and padding terms moved."""
        each = terms(evidence[TokenAttention(None)].mean(dim=3))
        tokens = each.shape[-1]
        end = (evidence[Text()].tokens + 1).clamp_max(tokens - 1)
        summary = torch.arange(tokens) >= end[:, None]
        inside = (each * summary[:, None, None]).sum(dim=3)
        last = max(1, each.shape[2] // 5)
        moved = inside[:, :, -last:] - inside[:, :, :1]
        return each[:, :, -last:].sum(dim=3).mean(dim=2), moved


DETECTORS = (AttentionEntropy(), AttentionEntropy(path=True))
