r"""How far the finished sample lies from the training image, place by place.

Formula::

    mean over channels of (x_0 - target)²
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class SampleError(Piece[Float[Tensor, "prompt seed *place"]]):
    """The squared distance of finished latents from the training image's, by place."""

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed *place"]:
        """Subtract and square."""
        final = sitting.final.double().cpu().unflatten(0, (-1, sitting.seeds))
        target = sitting.targets.double().reshape(-1, 1, *sitting.model.latent_shape)
        return (final - target.cpu()).square().mean(dim=2)
