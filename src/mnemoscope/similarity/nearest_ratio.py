r"""The nearest-ratio similarity asks whether one training image stands out from all others.

Formula, with d_r the root-mean-square error of an image and reference r::

    nearest_ratio   1 - d_r / min over the other references of d_s

A copy of r is near r and far from everything else; a new image is about as far from its nearest
neighbour as from the next one. The authors call an image memorized where d_1/d_2 < 1/3, which is a
similarity above 2/3. It takes no threshold of its own per data set, but many references: with few,
the second nearest is far for any image.

Source: Yoon et al. 2023 (the criterion); Bonnaire et al. 2025, arXiv 2505.17638 (1/3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.images import fit
from mnemoscope.errors import InputError
from mnemoscope.similarity.base import Reference

NAME = "nearest_ratio"

SIDE = 256
"""Longest side, in pixels, on which images are compared."""

CHUNK = 64
"""References compared at a time."""


@dataclass(frozen=True)
class NearestRatio:
    """How far the nearest reference stands out.

    Attributes:
        name: Its name.
    """

    name: str = NAME

    def index(self, references: Iterable[Reference]) -> "RatioIndex":
        """Make references ready; they are resized as they are compared."""
        return RatioIndex(references if isinstance(references, Sequence) else tuple(references))


@dataclass(frozen=True)
class RatioIndex:
    """References to be compared with.

    Attributes:
        references: The references.
    """

    references: Sequence[Reference]

    def compare(self, images: Float[Tensor, "image 3 h w"]) -> Float[Tensor, "image reference"]:
        """Return one less the ratio of each distance to the smallest of the others.

        Args:
            images: RGB from 0 to 1.

        Returns:
            At most 1, float64; NaN for an image with a non-finite pixel, where there is no other
            reference, and where two references equal the image.
        """
        height, width = images.shape[-2:]
        scale = min(1.0, SIDE / max(height, width))
        grid = (round(height * scale), round(width * scale))
        a = fit(images.detach().cpu().float(), grid).flatten(1).double()
        columns = [
            torch.cdist(a, torch.stack([fit(r.pixels, grid) for r in some]).flatten(1).double())
            for start in range(0, len(self.references), CHUNK)
            for some in [self.references[start : start + CHUNK]]
        ]
        d = torch.cat([a.new_empty(len(a), 0), *columns], dim=1)
        if d.shape[1] < 2:
            return torch.full_like(d, torch.nan)
        first, second = d.topk(2, dim=1, largest=False).values.unsqueeze(-1).unbind(1)
        nearest = torch.zeros_like(d, dtype=torch.bool)
        nearest.scatter_(1, d.argmin(1, keepdim=True), True)
        return 1 - d / torch.where(nearest, second, first)


def _make(weights: Path | None) -> NearestRatio:
    if weights is not None:
        raise InputError(f"{NAME} has no network and takes no weights")
    return NearestRatio()


SIMILARITIES = {NAME: _make}
"""What `get_similarity` finds here."""
