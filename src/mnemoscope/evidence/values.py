"""Values that several pieces hold; they carry the leading dimensions [prompt, seed].

Contents: `LatentMaps`.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level


@dataclass(frozen=True)
class LatentMaps:
    """States and predictions at one call, in place.

    Attributes:
        level: Level of the call, unit form.
        x: States, unit form.
        eps_u: Unconditional noise estimates.
        eps_c: Conditional noise estimates.
        x0_u: Unconditional clean estimates.
        x0_c: Conditional clean estimates.
    """

    level: Level
    x: Float[Tensor, "prompt seed *latent"]
    eps_u: Float[Tensor, "prompt seed *latent"]
    eps_c: Float[Tensor, "prompt seed *latent"]
    x0_u: Float[Tensor, "prompt seed *latent"]
    x0_c: Float[Tensor, "prompt seed *latent"]

    @property
    def gap(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return eps_c - eps_u."""
        return self.eps_c - self.eps_u
