r"""Frequency-decoupled guidance: coarse structure is guided less than fine detail.

Formula, with L_0 the fine and L_1 the coarse level of a Laplacian pyramid of raw outputs c and u::

    guided = collapse( L_0 u + g·(L_0 c - L_0 u),   L_1 u + g_low·(L_1 c - L_1 u) )
    g_low  = 1 + (g - 1)·(1 - strength)

    down(x)  = blur(x) at half the side               up(x) = blur(x at twice the side)
    L_1 = down(x),   L_0 = x - up(L_1),   blur = the binomial (1 4 6 4 1)/16 on both axes, reflected

Sides change by bilinear interpolation, as in the authors' code.

At strength 1 coarse structure is the conditional prediction's; the authors give it half the scale.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mnemoscope.errors import ModelError
from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Latents, Step

Picture = Float[Tensor, "sample channel _ _"]

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class FrequencyDecoupled(Mitigation):
    """Guide coarse structure less than fine detail.

    Attributes:
        strength: Share of guidance that coarse structure does without.
    """

    name: ClassVar[str] = "frequency_decoupled"
    source: ClassVar[str] = "FDG, Sadat et al. 2025, arXiv 2506.19713, algorithm 2"
    strengths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0)}

    strength: float = 0.5

    def guide(self, step: Step) -> Latents:
        """Guide each level by its scale.

        Raises:
            ModelError: If the latents are no pictures.
        """
        gap = step.raw["cond"] - step.raw["uncond"]
        if gap.ndim != 4 or min(gap.shape[-2:]) < 4:
            raise ModelError(
                f"{self} takes latents of channels, height and width, 4 wide at least; "
                f"got {tuple(gap.shape[1:])}"
            )
        # Both levels are linear: all of guidance, less what the coarse level does without.
        less = (step.guidance - 1) * self.strength
        return step.guided() - less * up(down(gap), gap.shape[-2:])


def blur(x: Picture) -> Picture:
    """Return every channel smoothed by the binomial filter, its borders reflected."""
    row = torch.tensor(BINOMIAL, dtype=x.dtype, device=x.device)
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def down(x: Picture) -> Picture:
    """Return the smoothed picture at half its side."""
    half = (x.shape[-2] // 2, x.shape[-1] // 2)
    return F.interpolate(blur(x), size=half, mode="bilinear", align_corners=False)


def up(x: Picture, sides: torch.Size) -> Picture:
    """Return a picture smoothed at the sides given."""
    return blur(F.interpolate(x, size=tuple(sides), mode="bilinear", align_corners=False))
