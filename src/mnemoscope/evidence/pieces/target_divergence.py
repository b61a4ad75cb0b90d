"""Divergence and square of both noise estimates at the scaled training image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.probes import divergence


@dataclass(frozen=True)
class Divergence:
    """First-order behaviour of both noise estimates at a scaled training image.

    Attributes:
        level: The level, unit form.
        d: Number of latent coordinates.
        trace: Estimated trace of d eps / dx; branches are (uncond, cond).
        square: ||eps||².
    """

    level: Level
    d: int
    trace: Float[Tensor, "branch prompt seed"]
    square: Float[Tensor, "branch prompt seed"]


@dataclass(frozen=True)
class TargetDivergence(Piece[Divergence]):
    """Divergence and square of both noise estimates at alpha·target, one random probe a seed.

    Attributes:
        before_last: Which call's level, counted from the end; 1 is the last.
    """

    before_last: int = 10

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches with their tangents."""
        return Price(forward=2, tangent=2)

    def gather(self, sitting: Sitting) -> Divergence:
        """Differentiate both branches at the scaled image."""
        bank = sitting.bank
        call = bank.late(self.before_last)
        point = bank.point(call)
        signs = bank.signs("divergence", 1)[0]
        shape = (2, len(sitting.prompts), sitting.seeds)
        trace = torch.full(shape, torch.nan, dtype=torch.float64)
        square = trace.clone()
        held = torch.tensor(sitting.with_image)
        for whose, which in sitting.batches(len(held)):
            prompts = held[whose.cpu()]
            x = point.level.alpha * sitting.target_latents(prompts)
            conditions = (bank.blank(len(x)), sitting.cond.take(prompts))
            for branch, condition in enumerate(conditions):
                found = divergence(bank.network, x, point, condition, signs[which])
                for into, part in zip((trace, square), found, strict=True):
                    into[branch, prompts, which.cpu()] = part.cpu()
        return Divergence(bank.points[call].level, bank.model.d, trace, square)
