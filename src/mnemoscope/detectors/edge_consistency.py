r"""Edge consistency is the share of pixels at which one-step images of most seeds have an edge.

Formula, with G_s the Sobel magnitude of the decoded first guided estimate, summed over channels::

    edge_s(p) = G_s(p) > 1.5           m = mean over p of [ sum_s edge_s(p) > n / 2 ]

Images in [0, 1] are shrunk to 256 pixels where they are larger, never enlarged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.pictures import Pictures

SIDE = 256
"""Side at which edges are looked for, pixels; the released code's."""

EDGE = 1.5
"""Sobel magnitude of an edge, intensity a pixel summed over channels; the released code's."""


@dataclass(frozen=True)
class EdgeConsistency(Detector):
    """The black-box attack on the first step."""

    source: ClassVar[str] = "Webster 2023, arXiv 2305.08694, black-box attack"

    @property
    def name(self) -> str:
        """Return "edge_consistency"."""
        return "edge_consistency"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "share of pixels that are edges in most seeds' one-step images"

    @property
    def needs(self) -> Needs:
        """Return the one-step images of at least three seeds."""
        return Needs((Pictures("first"),), seeds=3)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the share."""
        pictures = evidence[Pictures("first")]
        flat = pictures.flatten(0, 1)
        if min(flat.shape[-2:]) > SIDE:
            flat = F.interpolate(flat, (SIDE, SIDE), mode="bilinear", antialias=True)
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        kernel = torch.stack([across, across.T])[:, None].to(flat)
        rows = F.pad(flat.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
        slope = F.conv2d(rows, kernel).norm(dim=1).unflatten(0, (-1, 3)).sum(dim=1)
        edges = (slope > EDGE).unflatten(0, pictures.shape[:2])
        shared = edges.sum(dim=1) > pictures.shape[1] / 2
        finite = torch.isfinite(pictures).flatten(1).all(dim=1)
        return torch.where(finite, shared.double().mean(dim=(1, 2)), torch.nan)


DETECTORS = (EdgeConsistency(),)
