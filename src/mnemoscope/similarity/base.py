r"""A similarity compares images, RGB from 0 to 1, with references, and owns all preparation.

Formula::

    S[i, r] = similarity of image i and reference r;   larger = closer;   NaN = not defined

The name of a similarity holds its preset, because the same network after another resize or another
normalisation is another measure.

Contents: `Similarity` and its `Index`; `Reference` is the data's own.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.references import Reference

__all__ = ["Index", "Reference", "Similarity"]


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

    def index(self, references: Iterable[Reference]) -> Index:
        """Make references ready, a few at a time: they may be many, and read as they are taken."""
        ...
