r"""Noise similarity is how alike the predicted changes of different seeds look at the first call.

Formula, with n_s = eps_c(x_T) - x_T of seed s, each channel scaled to [0, 1]::

    m = max over pairs of seeds of MS-SSIM(n_s, n_s')

MS-SSIM is the product over three scales of (mean over channels and places of the structure)^.33,
luminance among it at the coarsest, which reaches over the border by reflection; its constants go
with the range of values at the scale. A latent too small for a window of 11 pixels at a scale has
the fewer scales. The released code takes the difference at the second time step, with the first's
state; the paper at the first.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.maps import Maps

WEIGHTS = (0.33, 0.33, 0.33)
"""Exponent of each scale, finest first; the released code's."""


def ms_ssim(
    a: Float[Tensor, "pair channel h w"], b: Float[Tensor, "pair channel h w"]
) -> Float[Tensor, " pair"]:
    """Compare images in [0, 1] by structure at several scales.

    Returns:
        Multi-scale structural similarity, 0 to 1.

    Source: Wang, Simoncelli & Bovik 2003, with the exponents of Hintersdorf et al. 2024; window of
    11 pixels and deviation 1.5, cut to the image.
    """
    side = min(a.shape[-2:])
    window = min(11, side - 1 + side % 2)
    scales = 1
    while scales < len(WEIGHTS) and side // 2**scales >= window:
        scales += 1
    axis = torch.arange(window, dtype=a.dtype) - (window - 1) / 2
    bell = torch.exp(-(axis**2) / (2 * 1.5**2))
    bell = bell / bell.sum()

    def along(image: Tensor) -> Tensor:
        # As sums over windows: convolutions in double precision are slow.
        return image.unfold(-1, window, 1) @ bell

    def blur(image: Tensor) -> Tensor:
        return along(along(image).mT).mT

    total = torch.ones(len(a), dtype=a.dtype)
    for scale in range(scales):
        span = max(float(image.max() - image.min()) for image in (a, b))
        if scale == scales - 1:
            # The released code lets the coarsest scale reach over the border, the others not.
            a, b = (F.pad(image, (window // 2,) * 4, mode="reflect") for image in (a, b))
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        both = blur(a * b) - mean_a * mean_b
        structure = (2 * both + (0.03 * span) ** 2) / (var_a + var_b + (0.03 * span) ** 2)
        if scale == scales - 1:
            light = (2 * mean_a * mean_b + (0.01 * span) ** 2) / (
                mean_a**2 + mean_b**2 + (0.01 * span) ** 2
            )
            structure = structure * light
        else:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total * structure.mean(dim=(1, 2, 3)).clamp_min(0) ** WEIGHTS[scale]
    return total


@dataclass(frozen=True)
class NoiseSimilarity(Detector):
    """The test by which memorization is told before neurons are looked for."""

    source: ClassVar[str] = "Hintersdorf et al. 2024 (NeurIPS), arXiv 2406.02366"

    @property
    def name(self) -> str:
        """Return "noise_similarity"."""
        return "noise_similarity"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "max over pairs of seeds of MS-SSIM of eps_c - x_T, first call"

    @property
    def needs(self) -> Needs:
        """Return the first call of at least two seeds."""
        return Needs((Maps("first"),), seeds=2, uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the largest similarity."""
        maps = evidence[Maps("first")]
        change = (maps.eps_c - maps.x).double()
        low, high = change.amin(dim=(3, 4), keepdim=True), change.amax(dim=(3, 4), keepdim=True)
        scaled = (change - low) / (high - low).clamp_min(1e-12)
        first, second = torch.triu_indices(evidence.seeds, evidence.seeds, 1)
        return torch.stack([ms_ssim(seeds[first], seeds[second]).amax() for seeds in scaled])


DETECTORS = (NoiseSimilarity(),)
