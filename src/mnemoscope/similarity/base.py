r"""A similarity compares images, RGB from 0 to 1, with references, and owns all preparation.

Formula::

    S[i, r] = similarity of image i and reference r;   larger = closer;   NaN = not defined

The name of a similarity holds its preset, because the same network after another resize or another
normalisation is another measure.

Contents: `Reference`, `Index`, `Similarity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """A training image to compare with.

    Attributes:
        reference_id: Its name.
        pixels: RGB from 0 to 1, of any size.
        mask: 1 where a template repeats, 0 where it changes; None for an image of its own.
    """

    reference_id: str
    pixels: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"] | None = None


@runtime_checkable
class Index(Protocol):
    """References made ready once, to be compared with many batches of images."""

    def compare(self, images: Float[Tensor, "image 3 h w"]) -> Float[Tensor, "image reference"]:
        """Return the similarity of every image to every reference, float64."""
        ...


@runtime_checkable
class Similarity(Protocol):
    """A way to compare images with references."""

    @property
    def name(self) -> str:
        """Return name and preset, as they stand beside every number."""
        ...

    def index(self, references: Sequence[Reference]) -> Index:
        """Make references ready."""
        ...
