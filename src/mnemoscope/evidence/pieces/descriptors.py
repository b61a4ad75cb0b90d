"""SSCD's descriptors of the finished samples."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.errors import ModelError
from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.similarity.sscd import load_sscd


@dataclass(frozen=True)
class Descriptors(Piece[Float[Tensor, "prompt seed feature"]]):
    """Unit descriptors; those of samples that are not finite are NaN.

    Attributes:
        preset: How pictures are prepared, and which network.
    """

    preset: str = "official_320"

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @property
    def own_network(self) -> bool:
        """Return True."""
        return True

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed feature"] | Absent:
        """Decode and describe; without SSCD's network, say how to name it."""
        try:
            network = load_sscd(self.preset, None)
        except ModelError as error:
            return Absent(str(error))
        images, _ = sitting.keep("pictures", lambda: sitting.decode(sitting.final))
        if images is None:
            return Absent("no sample stayed finite")
        return network.embed(list(images)).unflatten(0, (-1, sitting.seeds))
