"""Decoded images: the guided clean estimate of the first call, or the finished sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import Sitting, told


@dataclass(frozen=True)
class Pictures(Piece[Float[Tensor, "prompt seed 3 height width"]]):
    """Decoded images; those of samples that are not finite are NaN.

    A finished sample whose picture fails, or is not finite, is marked; so this piece comes first
    where what others make of it counts.

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
        images, failed = sitting.keep(("pictures", self.at), lambda: sitting.decode(latents))
        if self.at == "final":
            _mark(sitting, images, failed)
        if images is None:
            reasons = [outcome.reason for outcome in sitting.outcomes if outcome.reason]
            return Absent(reasons[0] if reasons else "no sample stayed finite")
        return images.unflatten(0, (-1, sitting.seeds))


def _mark(sitting: Sitting, images: Tensor | None, failed: Mapping[int, Exception]) -> None:
    """Mark the finished samples that have no picture."""
    for row in sitting.ok.nonzero()[:, 0].tolist():
        if row in failed:
            sitting.mark(row, "error", f"decoding: {told(failed[row])}")
        elif images is None or not bool(torch.isfinite(images[row]).all()):
            reason = "a number that is not finite in the decoded picture"
            sitting.mark(row, "nonfinite", reason)
