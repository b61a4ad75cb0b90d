r"""The network's own noise for the training image, and what becomes of it after it was added.

Formulas, with the image x shown clean at timestep 0 and alpha, sigma those of timestep t::

    eps_0 = eps_c(x, 0)          eps_t = eps_c(alpha·x + sigma·eps_0, t)

    normal: eps_0 is divided by the mean of |eps_0| and multiplied by sqrt(2 / pi) before
"""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import predict


@dataclass(frozen=True)
class Proximal(Piece[Float[Tensor, "prompt pair *latent"]]):
    """The estimates eps_0 and eps_t, in this order.

    Attributes:
        timestep: Timestep t of training.
        normal: Whether eps_0 is given the size of unit noise.
    """

    timestep: int = 200
    normal: bool = False

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def timesteps(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both evaluations."""
        return Price(forward=2)

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of one seed: no noise is drawn."""
        return self.extra(calls)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt pair *latent"]:
        """Evaluate the prompt's branch at the image, and at the image with that noise."""
        bank = sitting.bank
        clean_point, point = bank.trained(0), bank.trained(self.timestep)

        @torch.no_grad()
        def work(cond: Condition, clean: Latents) -> Tensor:
            first = predict(bank.network, clean, clean_point, cond).eps
            if self.normal:
                size = first.abs().flatten(1).mean(dim=1).reshape(-1, *[1] * (clean.ndim - 1))
                first = first / size * sqrt(2 / pi)
            x = point.level.alpha * clean + point.level.sigma * first
            return torch.stack([first, predict(bank.network, x, point, cond).eps], dim=1)

        return sitting.each_image(work)
