r"""The critical scale is the largest noise level at which denoising still returns to the image.

Formulas, with M the denoiser at a fixed level applied to the clean image, repeated K = 16 times,
and M(x)_u the channels at a place u of the latent::

    drift(level)  = max over k <= K of ||M^k(x) - x|| / ||x||            drift_u likewise at u
    s             = log(sigma / alpha) up to which drift <= 0.25         s^u: up to which <= 0.1
    critical_scale  s_c        :caption  s_c - s_u        :local  mean over u of |s^u_c - s^u_u|

The preprint bisects for s; here the drift is taken at 8 levels spread over the path, and the
crossing is found by straight lines between them. Where even the first level drifts, s is that
level's. The local form is the preprint's own: 24 levels, evenly in log(sigma / alpha), and half way
from the last that stays to the first that does not.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.drift import Drift
from mnemoscope.evidence.pieces.local_drift import LocalDrift

RADIUS = 0.25
"""Distance that counts as staying, relative to the image's norm; the preprint's."""

LOCAL_RADIUS = 0.1
"""The same at one place of the latent; the preprint's."""


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


def midpoint(
    log_ratio: Float[Tensor, " level"], distance: Float[Tensor, "prompt level *rest"], radius: float
) -> Float[Tensor, "prompt *rest"]:
    """Return half way from the last level that stays within the radius to the first beyond it.

    Returns:
        A value a place; the first level where it leaves at once, the last where it never does.

    Source: López Amado, Fumero & Locatello 2026, appendix F.
    """
    beyond = (distance > radius).movedim(1, -1)
    last = len(log_ratio) - 1
    first = torch.where(beyond.any(dim=-1), beyond.double().argmax(dim=-1), last + 1)
    middle = (log_ratio[first.clamp_max(last)] + log_ratio[(first - 1).clamp_min(0)]) / 2
    whole = torch.isfinite(distance).all(dim=1)
    return torch.where(whole, middle, torch.nan)


@dataclass(frozen=True)
class CriticalScale(Detector):
    """The scale up to which the image is an attractor.

    Attributes:
        caption: Whether the unconditional scale is the yardstick.
    """

    caption: bool = False
    source: ClassVar[str] = "López Amado, Fumero & Locatello 2026 (preprint), arXiv 2609.39648"

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


@dataclass(frozen=True)
class LocalCriticalScale(Detector):
    """How much the caption moves the critical scale of the places of the image."""

    source: ClassVar[str] = CriticalScale.source

    @property
    def name(self) -> str:
        """Return "critical_scale:local"."""
        return "critical_scale:local"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over places of |change under the caption of the scale that keeps the place|"

    @property
    def needs(self) -> Needs:
        """Return the drifts by place."""
        return Needs((LocalDrift(),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean absolute change."""
        drifts = evidence[LocalDrift()]
        uncond, cond = midpoint(drifts.log_ratio, drifts.distance, LOCAL_RADIUS).unbind(dim=1)
        return (cond - uncond).abs().flatten(1).mean(dim=1)


DETECTORS = (CriticalScale(), CriticalScale(caption=True), LocalCriticalScale())
