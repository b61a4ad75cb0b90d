"""The diagonal of the gap's Jacobian in the state at the last call."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.probes import gap_curvature


@dataclass(frozen=True)
class Curvature(Piece[Float[Tensor, "prompt seed *latent"]]):
    """The diagonal of the gap's Jacobian in the state at the last call, by Hutchinson's estimator.

    Attributes:
        probes: Random signs vectors.
    """

    probes: int = 4

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches forward once and back once a probe."""
        return Price(forward=2, backward=2 * self.probes)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed *latent"]:
        """Differentiate at the last call."""
        bank, tape = sitting.bank, sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        point = bank.point(bank.calls - 1)
        states = tape.x[:, -1].unflatten(1, sitting.model.latent_shape).to(sitting.noise)
        signs = bank.signs("curvature", self.probes)

        def work(condition: Condition, samples: Tensor, seeds: Tensor) -> Tensor:
            x, blank = states[samples], bank.blank(len(samples))
            return gap_curvature(bank.network, x, point, condition, blank, signs[:, seeds])

        return sitting.each(work).reshape(sitting.shape)
