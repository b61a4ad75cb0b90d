r"""Edge consistency is the share of pixels at which one-step images of most seeds have an edge.

Formula, on the decoded guided clean estimate at the last timestep of training, in 8 bits, brought
to 256 x 256 by Lanczos and divided by 255, with D the difference [-1, 0, 1] along an axis and B the
blur [1, 2, 1] along the two others, the channels among them::

    G_s = sum over channels of hypot(D_y B_x B_c, D_x B_y B_c)        edge_s(p) = G_s(p) > 1.5
    m   = mean over p of [ sum_s edge_s(p) > n / 2 ]

The blur across channels is the released code's: it multiplies the edges of a grey picture by 4.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, MissingEvidence, Needs
from mnemoscope.evidence.pieces.one_step import OneStep

SIDE = 256
"""Side at which edges are looked for, pixels; the released code's."""

EDGE = 1.5
"""Sobel magnitude of an edge, summed over channels; the released code's."""

BLUR = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
SLOPE = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


def resized(image: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 side side"]:
    """Round an image in [0, 1] to 8 bits and bring it to the side of the released code."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    small = Image.fromarray(pixels.numpy()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).double() / 255


def slope(
    images: Float[Tensor, "image 3 height width"],
) -> Float[Tensor, "image height width"]:
    """Return the Sobel magnitude, blurred across channels as well, summed over channels.

    Source: the released code of Webster 2023, `scipy.ndimage.sobel` on height, width and channel.
    """
    padded = F.pad(images[:, None].double(), (1, 1, 1, 1, 1, 1), mode="replicate")
    kernels = [torch.einsum("c,y,x->cyx", BLUR, *along) for along in ((SLOPE, BLUR), (BLUR, SLOPE))]
    found = F.conv3d(padded, torch.stack(kernels)[:, None])
    return torch.hypot(found[:, 0], found[:, 1]).sum(dim=1)


@dataclass(frozen=True)
class EdgeConsistency(Detector):
    """The black-box attack on one step."""

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
        return Needs((OneStep(decoded=True),), seeds=3)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the share."""
        pictures = evidence[OneStep(decoded=True)].images
        if pictures is None:
            raise MissingEvidence("the one-step images were not decoded")
        scores: list[float] = []
        for seeds in pictures:
            if not bool(torch.isfinite(seeds).all()):
                scores.append(float("nan"))
                continue
            edges = slope(torch.stack([resized(image) for image in seeds])) > EDGE
            shared = edges.double().mean(dim=0) > 0.5
            scores.append(float(shared.double().mean()))
        return torch.tensor(scores, dtype=torch.float64)


DETECTORS = (EdgeConsistency(),)
