r"""The gradient of the difference of squared noise estimates in the state at the first call.

Formula::

    d/dx (||eps_c||² - ||eps_u||²) / 2
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import square_gradient


@dataclass(frozen=True)
class SquareGradient(Piece[Float[Tensor, "prompt seed *latent"]]):
    """The gradient of (||eps_c||² - ||eps_u||²) / 2 in the state at the first call."""

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return the conditional branch forward and back; the other is the bank's."""
        return Price(forward=1, backward=1)

    def apart(self, calls: int) -> Price:
        """Return the unconditional branch."""
        return Price(forward=1, backward=1)

    def warm(self, bank: Bank) -> None:
        """Fill the bank with the unconditional branch."""
        if bank.shared and bank.model.has_uncond:
            _of_seeds(bank)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed *latent"]:
        """Differentiate both branches at the first call."""
        bank, start = sitting.bank, sitting.start
        point = bank.point(0)
        blank = (
            _of_seeds(bank).repeat(len(sitting.prompts), *[1] * (start.ndim - 1))
            if bank.shared
            else _blank(bank, start)
        )

        def work(condition: Condition, samples: Tensor, _seeds: Tensor) -> Tensor:
            own = square_gradient(bank.network, start[samples], point, condition)
            return own - blank[samples]

        return sitting.each(work).reshape(sitting.shape)


def _of_seeds(bank: Bank) -> Latents:
    """Return the gradient under no prompt at the shared noise, once computed."""

    def make() -> Latents:
        seeds = [bank.recipe.sample_seed("", 0, index) for index in range(bank.seeds)]
        return _blank(bank, bank.start(bank.noise(seeds)[0]))

    return bank.keep("square gradient", make)


def _blank(bank: Bank, start: Latents) -> Latents:
    point = bank.point(0)
    return torch.cat(
        [
            square_gradient(bank.network, part, point, bank.blank(len(part)))
            for part in start.split(bank.batch)
        ]
    )
