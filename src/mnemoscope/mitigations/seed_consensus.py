r"""Seed consensus: what the pull has in common over a prompt's seeds is turned round.

Formulas, at a call, with p the gap of the clean estimates x0_c - x0_u and q its mean over the seeds
of a prompt::

    excess = max(0, 1 - threshold / rms q)          how far the seeds agree beyond the ordinary
    p'     = p - (1 + strength)·excess·q            where i / N < until
    guided = u + g·p',   in clean estimates

Ordinary seeds part, and their mean pull stays small; memorized ones pull towards one picture. Needs
two seeds or more of a prompt at once.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.mitigations.base import Bounds, Mitigation, clean_gap, size
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class SeedConsensus(Mitigation):
    """Turn round what the seeds of a prompt agree on beyond the ordinary.

    Attributes:
        strength: How far what exceeds is turned: 0 takes it out, 1 turns it into its opposite.
        threshold: Largest rms of the mean pull of ordinary prompts, in units of the latents.
        until: Share of the calls at which it ends.
    """

    name: ClassVar[str] = "seed_consensus"
    source: ClassVar[str] = "ours"
    strengths: ClassVar[tuple[float, ...]] = (2.0, 5.0, 9.0, 24.0)
    together: ClassVar[bool] = True
    bounds: ClassVar[Bounds] = {"until": (0.0, 1.0)}

    strength: float = 9.0
    threshold: float = 0.0
    until: float = 0.5

    def guide(self, step: Step) -> Latents:
        """Guide with the consensus turned round.

        Raises:
            InputError: If a prompt has a single seed, or it is not known which samples are whose.
        """
        whose = step.groups
        if whose is None or int(torch.bincount(whose.unique(return_inverse=True)[1]).min()) < 2:
            raise InputError(f"{self} compares seeds; give two or more of each prompt")
        plain = step.guided()
        if step.share >= self.until:
            return plain
        gap = clean_gap(step)
        mean = shared(gap, whose)
        excess = (1 - self.threshold / size(mean).clamp_min(1e-12)).clamp_min(0)
        lost = (1 + self.strength) * step.each(excess).to(gap) * mean
        kept = step.prediction("uncond").x0 + step.guidance * (gap - lost)
        alpha, sigma = (part.to(step.x) for part in step.point.level)
        used = step.raw_of(Prediction(kept, (step.x - alpha * kept) / sigma))
        return torch.where(step.each(excess > 0), used, plain)


def shared(values: Latents, whose: torch.Tensor) -> Latents:
    """Return for each sample the mean over those of its prompt that are finite."""
    fine = torch.isfinite(values).flatten(1).all(dim=1)
    mean = torch.full_like(values, torch.nan)
    for prompt in whose.unique():
        mine = whose == prompt
        mean[mine] = values[mine & fine].mean(dim=0)
    return mean
