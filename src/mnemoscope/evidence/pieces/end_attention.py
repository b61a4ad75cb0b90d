"""Cross-attention to the end token at the last call of the path."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import NO_ATTENTION, Sitting


@dataclass(frozen=True)
class EndAttention(Piece[Float[Tensor, "prompt seed height width"]]):
    """Cross-attention to the end token at the last call, averaged over heads and fine layers."""

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @property
    def attention(self) -> bool:
        """Return True."""
        return True

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed height width"] | Absent:
        """Return what was seen at the last call."""
        if sitting.looked is None:
            return Absent(NO_ATTENTION)
        if sitting.looked.ends is None:
            return Absent("the model has no cross-attention on its way down")
        return sitting.looked.ends.unflatten(0, (-1, sitting.seeds))
