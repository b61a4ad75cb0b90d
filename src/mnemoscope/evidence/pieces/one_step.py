r"""One step from the noisest level of training to a clean image.

Formulas, at the last timestep of training, whatever the sampler's first is, with z unit noise::

    x = sigma·z          eps_g = eps_u + g·(eps_c - eps_u)          x0_g = (x - sigma·eps_g) / alpha

In the variance-exploding scale that is one Euler step from the largest noise, z·sigma / alpha, to
none.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.core.predict import Prediction, combine
from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import Absent, Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import predict

LAST = -1
"""The last timestep of training."""


@dataclass(frozen=True)
class Stepped:
    """What one step leads to.

    Attributes:
        level: Level of the last timestep of training, unit form.
        eps_g: Guided noise estimates.
        images: Decoded guided clean estimates, RGB from 0 to 1; None where they were not asked for.
    """

    level: Level
    eps_g: Float[Tensor, "prompt seed *latent"]
    images: Float[Tensor, "prompt seed 3 height width"] | None


@dataclass(frozen=True)
class OneStep(Piece[Stepped]):
    """One step from the noisiest level of training.

    Attributes:
        decoded: Whether the clean estimates are decoded.
    """

    decoded: bool = False

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    @property
    def timesteps(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return one evaluation; the unconditional branch is the bank's."""
        return Price(forward=1)

    def apart(self, calls: int) -> Price:
        """Return the unconditional branch."""
        return Price(forward=1)

    def warm(self, bank: Bank) -> None:
        """Fill the bank with the unconditional branch."""
        if bank.shared and bank.model.has_uncond and bank.network.kind != "flow":
            self._blank(bank)

    def gather(self, sitting: Sitting) -> Stepped | Absent:
        """Evaluate the conditional branch, guide, and decode if asked."""
        bank = sitting.bank
        point = bank.trained(LAST)
        x = point.level.sigma * sitting.noise
        if bank.shared:
            many = (len(sitting.prompts), *[1] * len(sitting.model.latent_shape))
            raw = self._blank(bank).repeat(many)
        else:
            raw = bank.unconditional(x, point)
        blank = Prediction.from_raw(bank.network.kind, raw, x, point.level)

        def work(condition: Condition, samples: Tensor, _seeds: Tensor) -> Tensor:
            with torch.no_grad():
                found = predict(bank.network, x[samples], point, condition)
            guided = (
                combine(blank.x0[samples], found.x0, bank.guidance),
                combine(blank.eps[samples], found.eps, bank.guidance),
            )
            return torch.stack(guided, dim=1)

        x0, eps = sitting.each(work).unbind(dim=2)
        if not self.decoded:
            return Stepped(point.level, eps, None)
        images, _ = sitting.decode(x0.flatten(0, 1))
        if images is None:
            return Absent("no estimate is finite")
        return Stepped(point.level, eps, images.unflatten(0, (-1, sitting.seeds)))

    def _blank(self, bank: Bank) -> Latents:
        point = bank.trained(LAST)
        return bank.keep(
            "one step",
            lambda: bank.unconditional(point.level.sigma * bank.shared_noise(), point),
        )
