"""Decoded finished samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import Sitting, told


@dataclass(frozen=True)
class Pictures(Piece[Float[Tensor, "prompt seed 3 height width"]]):
    """Decoded finished samples; those of samples that are not finite are NaN.

    A finished sample whose picture fails, or is not finite, is marked; so this piece comes first
    where what others make of it counts.
    """

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed 3 height width"] | Absent:
        """Decode."""
        images, failed = sitting.keep("pictures", lambda: sitting.decode(sitting.final))
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
