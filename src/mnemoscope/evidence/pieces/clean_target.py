"""The noise estimate for the training image itself, shown as a state of some timestep."""

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
class CleanTarget(Piece[Float[Tensor, "prompt *latent"]]):
    """The conditional noise estimate for the clean image, neither noised nor scaled.

    Attributes:
        timestep: Timestep of training that is pretended.
    """

    timestep: int = 100

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def timesteps(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return one evaluation."""
        return Price(forward=1)

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of one seed: no noise is drawn."""
        return self.extra(calls)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt *latent"]:
        """Evaluate the prompt's branch at the image."""
        network, point = sitting.bank.network, sitting.bank.trained(self.timestep)

        @torch.no_grad()
        def work(cond: Condition, clean: Latents) -> Tensor:
            return predict(network, clean, point, cond).eps

        return sitting.each_image(work)
