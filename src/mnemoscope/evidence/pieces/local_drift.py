r"""How far repeated denoising at a fixed level carries each place of the training image.

Formula, for the channels x_u at a place u of the latent, with M(y) the clean estimate of alpha·y at
a fixed level::

    distance    max over k <= K of ||M^k(x)_u - x_u|| / ||x_u||
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition, cat
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import drift


@dataclass(frozen=True)
class LocalDrifts:
    """How far repeated denoising at a fixed level carries the places of a clean image.

    Attributes:
        log_ratio: log(sigma / alpha) of each level, ascending.
        distance: Largest relative distance on the way; branches are (uncond, cond).
    """

    log_ratio: Float[Tensor, " level"]
    distance: Float[Tensor, "prompt level branch *place"]


@dataclass(frozen=True)
class LocalDrift(Piece[LocalDrifts]):
    """How far repeated denoising carries the places of the training image.

    Attributes:
        levels: Number of levels, evenly spread over the logarithm of the noise of training.
        iterations: Repetitions K at each.
    """

    levels: int = 24
    iterations: int = 16

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    @property
    def timesteps(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches at each iteration and level."""
        return Price(forward=2 * self.iterations * self.levels)

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of one seed: no noise is drawn."""
        return self.extra(calls)

    def gather(self, sitting: Sitting) -> LocalDrifts:
        """Denoise the images again and again."""
        bank = sitting.bank
        points = bank.trained_along(self.levels)

        def work(cond: Condition, clean: Latents) -> Tensor:
            both, branches = torch.cat([clean, clean]), cat([bank.blank(len(clean)), cond])
            found = [drift(bank.network, both, p, branches, self.iterations)[1] for p in points]
            return torch.stack([torch.stack(part.chunk(2), dim=1) for part in found], dim=1)

        ratio = torch.stack([(p.level.sigma / p.level.alpha).log() for p in points])
        return LocalDrifts(ratio.double().cpu(), sitting.each_image(work))
