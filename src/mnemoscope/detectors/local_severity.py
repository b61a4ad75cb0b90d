r"""Local severity is how close samples come to the training image where the end token is bright.

Formula, with m the cross-attention to the end token at the last call, at the latent's size, and
e(p) the mean over channels of (x_0 - target)² at a place::

    m = - (1/n) sum_s sqrt( sum over p of m(p)·e(p) / sum over p of m(p) )

After the mask of bright ending, whose own local similarity is not published as a formula. It
compares the samples themselves with the image: a measure of severity, and no prediction of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.sample_error import SampleError


@dataclass(frozen=True)
class LocalSeverity(Detector):
    """Closeness of samples to the training image where it is looked for."""

    source: ClassVar[str] = "ours, after the mask of Chen et al. 2025 (ICLR), arXiv 2410.21665"

    @property
    def name(self) -> str:
        """Return "local_severity"."""
        return "local_severity"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "- RMSE of finished latents to the image's, weighed by attention to the end token"

    @property
    def needs(self) -> Needs:
        """Return the attention, and the distance by place."""
        return Needs((EndAttention(), SampleError()), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the negative weighed distance."""
        error = evidence[SampleError()]
        mask = evidence[EndAttention()].double().cpu()
        sized = F.interpolate(mask, error.shape[-2:], mode="bilinear", align_corners=False)
        mean = (sized * error).sum(dim=(2, 3)) / sized.sum(dim=(2, 3))
        return -seed_mean(mean.sqrt())


DETECTORS = (LocalSeverity(),)
