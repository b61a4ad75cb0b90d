"""Cross-attention to each token under the prompt, along the path."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import NO_ATTENTION, Sitting


@dataclass(frozen=True)
class TokenAttention(Piece[Float[Tensor, "prompt seed call layer token"]]):
    """Cross-attention to each token under the prompt, averaged over queries and heads.

    Attributes:
        length: Calls of the path it is read at; None for the whole path.
    """

    length: int | None = 1

    @property
    def calls(self) -> int | None:
        """Return its length."""
        return self.length

    @property
    def attention(self) -> bool:
        """Return True."""
        return True

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed call layer token"] | Absent:
        """Cut the calls out of what was seen."""
        if sitting.looked is None:
            return Absent(NO_ATTENTION)
        return sitting.looked.tokens[:, : self.length].unflatten(0, (-1, sitting.seeds))
