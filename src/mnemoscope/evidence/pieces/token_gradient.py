r"""How strongly the first call's gap norm hangs on the embedding of each token.

Formula::

    ||d ||eps_c - eps_u|| / d e_j||        e_j the embedding of token j
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import Absent, Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.probes import gap_in_condition


@dataclass(frozen=True)
class TokenGradient(Piece[Float[Tensor, "prompt seed token"]]):
    """How strongly the first call's gap norm hangs on each token's embedding."""

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return the conditional branch forward and back; the other is the bank's."""
        return Price(forward=1, backward=1)

    def apart(self, calls: int) -> Price:
        """Return the unconditional branch."""
        return Price(forward=1)

    def warm(self, bank: Bank) -> None:
        """Fill the bank with the unconditional branch."""
        if bank.shared and bank.model.has_uncond:
            bank.unconditional_of_seeds(0)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed token"] | Absent:
        """Differentiate the conditional branch in the embeddings."""
        if sitting.cond.embedding is None:
            return Absent("the model is not conditioned on tokens")
        bank, start = sitting.bank, sitting.start
        point, blank = bank.point(0), sitting.uncond_eps(0)

        def work(condition: Condition, samples: Tensor, _seeds: Tensor) -> Tensor:
            return gap_in_condition(bank.network, start[samples], point, condition, blank[samples])

        return sitting.each(work).double().norm(dim=3)
