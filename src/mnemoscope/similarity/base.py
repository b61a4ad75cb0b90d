r"""A similarity compares images, RGB from 0 to 1, with references, and owns all preparation.

Formula::

    S[i, r] = similarity of image i and reference r;   larger = closer;   NaN = not defined

The name of a similarity holds its preset, because the same network after another resize or another
normalisation is another measure.

Contents: `Similarity` and its `Index`; `Describing`, a similarity of descriptors; `Reference` is
the data's own.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.references import Reference

__all__ = ["Describing", "Index", "Reference", "Similarity"]


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


@runtime_checkable
class Describing(Similarity, Protocol):
    """One that compares descriptors, so that every image of a set is held against every other."""

    def embed(self, images: Iterable[Float[Tensor, "3 _ _"]]) -> Float[Tensor, "image feature"]:
        """Return descriptors of length 1, of images that are read as they are taken."""
        ...
