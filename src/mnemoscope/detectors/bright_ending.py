r"""Bright ending weighs the gap by where the last call still looks at the end token.

Formulas, with m the cross-attention to the end token at the last call, averaged over heads and the
finest layers on the way down, brought to the latent's size::

    bright_ending             mean over calls and seeds of ||gap_t ⊙ m|| / mean(m)
    bright_ending:attention   mean over seeds of mean(m)

The released code makes two runs where one does, and stores nothing at any number of steps but 50.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.gap_maps import GapMaps


@dataclass(frozen=True)
class BrightEnding(Detector):
    """The gap where the end token is bright.

    Attributes:
        attention_only: Whether the brightness itself is the score.
    """

    attention_only: bool = False
    source: ClassVar[str] = "Chen et al. 2025 (ICLR), arXiv 2410.21665"

    @property
    def name(self) -> str:
        """Return its name with the form."""
        return "bright_ending" + (":attention" if self.attention_only else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        if self.attention_only:
            return "mean attention to the end token, last call"
        return "mean over seeds and calls of ||gap ⊙ m|| / mean(m), m the end token's attention"

    @property
    def needs(self) -> Needs:
        """Return attention and gap of the whole path."""
        if self.attention_only:
            return Needs((EndAttention(),), uncond=False)
        return Needs((EndAttention(), GapMaps()))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the weighted norm."""
        mask = evidence[EndAttention()].double()
        if self.attention_only:
            return seed_mean(mask.mean(dim=(2, 3)))
        square = evidence[GapMaps()].double()
        sized = F.interpolate(mask, square.shape[-2:], mode="bilinear", align_corners=False)
        weighed = (square * sized[:, :, None].square()).sum(dim=(3, 4)).sqrt()
        return seed_mean(weighed.mean(dim=2) / sized.mean(dim=(2, 3)))


DETECTORS = (BrightEnding(), BrightEnding(attention_only=True))
