"""Decoded images: the guided clean estimate of the first call, or the finished sample."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class Pictures(Piece[Float[Tensor, "prompt seed 3 height width"]]):
    """Decoded images; those of samples that are not finite are NaN.

    Attributes:
        at: "first" for the guided clean estimate of the first call, "final" for the sample.
    """

    at: Literal["first", "final"] = "final"

    @property
    def calls(self) -> int | None:
        """Return 1 for the first estimate, the whole path for samples."""
        return 1 if self.at == "first" else None

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed 3 height width"] | Absent:
        """Decode."""
        tape = sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        latents = sitting.final
        if self.at == "first":
            alpha, sigma = (part[0].to(tape.x) for part in tape.level)
            clean = alpha * tape.x[:, 0] - sigma * tape.v_g[:, 0]
            latents = clean.unflatten(1, sitting.model.latent_shape)
        images: Tensor | None = sitting.keep(("pictures", self.at), lambda: sitting.decode(latents))
        if images is None:
            return Absent("no sample stayed finite")
        return images.unflatten(0, (-1, sitting.seeds))
