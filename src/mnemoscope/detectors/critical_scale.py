r"""The critical scale is the largest noise level at which denoising still returns to the image.

Formulas, with M the denoiser at a fixed level applied to the clean image, repeated K times::

    drift(level)  = max over k <= K of ||M^k(x) - x|| / ||x||
    s             = log(sigma / alpha) up to which drift <= r
    critical_scale  s_c                critical_scale:caption  s_c - s_u

The drift is taken at levels spread over the path and the crossing is found by straight lines
between them; the preprint bisects. Where even the first level drifts, the score is that level's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.drift import Drift

RADIUS = 0.25
"""Distance that counts as staying, relative to the image's norm; the preprint's."""


def crossing(
    log_ratio: Float[Tensor, " level"], distance: Float[Tensor, "prompt level"], radius: float
) -> PerPrompt:
    """Return where the distance first exceeds the radius, by straight lines between levels.

    Returns:
        A value a prompt; the first level where it does at once, the last where it never does.

    Source: ours.
    """
    found: list[Tensor] = []
    for row in distance:
        if not bool(torch.isfinite(row).all()):
            found.append(torch.tensor(torch.nan, dtype=torch.float64))
            continue
        beyond = (row > radius).nonzero()[:, 0]
        at = int(beyond[0]) if len(beyond) else len(row)
        if at in (0, len(row)):
            found.append(log_ratio[min(at, len(row) - 1)])
            continue
        share = (radius - row[at - 1]) / (row[at] - row[at - 1])
        found.append(log_ratio[at - 1] + share * (log_ratio[at] - log_ratio[at - 1]))
    return torch.stack(found)


@dataclass(frozen=True)
class CriticalScale(Detector):
    """The scale up to which the image is an attractor.

    Attributes:
        caption: Whether the unconditional scale is the yardstick.
    """

    caption: bool = False
    source: ClassVar[str] = "López Amado, Fumero & Locatello 2026 (preprint)"

    @property
    def name(self) -> str:
        """Return its name with the form."""
        return "critical_scale" + (":caption" if self.caption else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        what = "log(sigma / alpha) up to which repeated denoising keeps the image"
        return f"gain under the caption of {what}" if self.caption else what

    @property
    def needs(self) -> Needs:
        """Return the drifts."""
        return Needs((Drift(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the scale, or its gain under the caption."""
        drifts = evidence[Drift()]
        uncond, cond = (crossing(drifts.log_ratio, part, RADIUS) for part in drifts.distance)
        return cond - uncond if self.caption else cond


DETECTORS = (CriticalScale(), CriticalScale(caption=True))
