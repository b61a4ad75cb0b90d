r"""The squared gap, place by place, along the path.

Formula::

    sum over channels of (eps_c - eps_u)²
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class GapMaps(Piece[Float[Tensor, "prompt seed call height width"]]):
    """The squared gap, summed over channels, at every call of the path."""

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed call height width"]:
        """Subtract and square."""
        tape = sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        alpha = tape.level.alpha.to(tape.x)[:, None]
        gap = (alpha * (tape.v_c - tape.v_u)).unflatten(2, sitting.model.latent_shape)
        return gap.square().sum(dim=2).cpu().unflatten(0, (-1, sitting.seeds))
