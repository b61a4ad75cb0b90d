r"""Capped guidance: guidance adds to a sample no more than it adds to ordinary prompts.

Formulas, with c, u the outputs with and without the prompt, s the rms of x0_c - x0_u at the call
and b what ordinary prompts do not exceed at its level::

    guided = u + g·min(1, b / (strength·s))·(c - u)

The band b is a number a level, linear in alpha between two; `mnemoscope bench mitigations` writes
one. Without a band it is the threshold, the same at every level.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from mnemoscope.errors import InputError
from mnemoscope.mitigations.base import Mitigation, clean_gap, size
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class CappedGuidance(Mitigation):
    """Cap what guidance may add at what it adds to ordinary prompts.

    Attributes:
        strength: What the band is divided by; at 0 nothing is capped.
        threshold: Largest score of an ordinary prompt, in units of the latents; takes the place of
            a band where there is none.
        band: File of the band, JSON with `band`: pairs of alpha and rms, alpha ascending.
    """

    name: ClassVar[str] = "capped_guidance"
    source: ClassVar[str] = "ours"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0, 2.0, 4.0)
    neutral: ClassVar[float | None] = 0.0

    strength: float = 1.0
    threshold: float = 0.0
    band: str = ""

    def __post_init__(self) -> None:
        """Refuse a file that holds no band.

        Raises:
            InputError: If it does not, or a number is out of its bounds.
        """
        super().__post_init__()
        if self.band:
            band_of(self.band)

    def guide(self, step: Step) -> Latents:
        """Guide as far as ordinary prompts are guided."""
        plain = step.guided()
        pull = self.strength * size(clean_gap(step))
        cap = self._cap(float(step.point.level.alpha))
        # What is below the band, and what is not finite, is left bit for bit as it is.
        capped = step.guided(step.guidance * (cap / pull.clamp_min(1e-30)))
        return torch.where(step.each(pull > cap), capped, plain)

    def _cap(self, alpha: float) -> float:
        if not self.band:
            return self.threshold
        levels, widths = zip(*band_of(self.band), strict=True)
        return float(np.interp(alpha, levels, widths))


@cache
def band_of(path: str) -> Sequence[tuple[float, float]]:
    """Read a band.

    Raises:
        InputError: If the file holds none.
    """
    try:
        told = json.loads(Path(path).read_text("utf-8"))["band"]
        band = [(float(alpha), float(width)) for alpha, width in told]
        levels = [alpha for alpha, _ in band]
        fine = all(0 <= alpha <= 1 and isfinite(width) and width >= 0 for alpha, width in band)
        if not band or not fine or levels != sorted(set(levels)):
            raise ValueError("alpha must ascend from 0 to 1, rms be finite and not below 0")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path!r} is no band ({error}); expected JSON such as "
            '{"band": [[0.07, 0.4], [0.99, 0.1]]}'
        ) from error
    return tuple(band)
