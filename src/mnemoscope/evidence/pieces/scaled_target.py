"""Both noise estimates at the scaled training image, near the end of the path."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import predict


@dataclass(frozen=True)
class ScaledTarget(Piece[Float[Tensor, "prompt branch *latent"]]):
    """Noise estimates at alpha·target; branches are (uncond, cond).

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
        """Return both branches."""
        return Price(forward=2)

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of one seed: no noise is drawn."""
        return self.extra(calls)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt branch *latent"]:
        """Evaluate both branches at the scaled image."""
        bank = sitting.bank
        point = bank.point(bank.late(self.before_last))

        @torch.no_grad()
        def work(cond: Condition, clean: Latents) -> Tensor:
            x = point.level.alpha * clean
            branches = (bank.blank(len(x)), cond)
            return torch.stack([predict(bank.network, x, point, b).eps for b in branches], dim=1)

        return sitting.each_image(work)
