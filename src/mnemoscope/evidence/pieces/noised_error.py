"""How far the prompt's noise estimate for the noised training image is from its noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.probes import predict


@dataclass(frozen=True)
class NoisedError(Piece[Float[Tensor, "prompt seed level"]]):
    """The mean square error of the prompt's noise estimate; the empty prompt is not asked.

    Attributes:
        levels: Number of levels, spread over the path.
    """

    levels: int = 5

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return one branch at every level."""
        return Price(forward=min(self.levels, calls))

    @torch.no_grad()
    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed level"]:
        """Noise the images with the samples' own noise; prompts without one have NaN."""
        bank = sitting.bank
        points = bank.along(self.levels)
        held = torch.tensor(sitting.with_image)
        whole = torch.full((len(sitting.keys), len(points)), torch.nan, dtype=torch.float64)
        for whose, which in sitting.batches(len(held)):
            prompts = held[whose.cpu()]
            rows = prompts * sitting.seeds + which.cpu()
            target, noise = sitting.target_latents(prompts), sitting.noise[rows.to(whose.device)]
            cond = sitting.cond.take(prompts)
            for at, point in enumerate(points):
                x = point.level.alpha.to(noise) * target + point.level.sigma.to(noise) * noise
                apart = predict(bank.network, x, point, cond).eps - noise
                whole[rows, at] = apart.double().square().flatten(1).mean(dim=1).cpu()
        return whole.unflatten(0, (len(sitting.prompts), sitting.seeds))
