r"""The derivative of the gap in the state along itself at the first call.

Formula::

    (J_c - J_u)·gap
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.probes import gap_difference, gap_jvp


@dataclass(frozen=True)
class GapDerivative(Piece[Float[Tensor, "prompt seed *latent"]]):
    """The derivative of the gap in the state along itself at the first call, (J_c - J_u)·gap.

    Attributes:
        method: "jvp" (forward mode) or "difference" (two evaluations a short way apart).
    """

    method: Literal["jvp", "difference"] = "jvp"

    @property
    def calls(self) -> int | None:
        """Return 1: the direction is the gap at the first call."""
        return 1

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches with their tangents, or both at the displaced state."""
        return Price(forward=2, tangent=2 if self.method == "jvp" else 0)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed *latent"]:
        """Differentiate at the first call."""
        bank, tape = sitting.bank, sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        point, start = bank.point(0), sitting.start
        alpha = float(tape.level.alpha[0])
        gap = (alpha * (tape.v_c[:, 0] - tape.v_u[:, 0])).unflatten(1, start.shape[1:]).to(start)

        def work(condition: Condition, samples: Tensor, _seeds: Tensor) -> Tensor:
            along, x, blank = gap[samples], start[samples], bank.blank(len(samples))
            if self.method == "jvp":
                return gap_jvp(bank.network, x, point, condition, blank, along)[1]
            return gap_difference(bank.network, x, point, condition, blank, along, along)

        return sitting.each(work).reshape(sitting.shape)
