r"""The nearest training images of a picture are found among all of a data set, however many.

Formulas, on the grid that pixel measures compare on, with B the means over 8 x 8 blocks of it::

    print         B(image), rounded to 8 bits: 192 bytes an image
    d8            sqrt(c·mean (B(a) - print(b))²),   c the share of the grid that blocks cover
    d             sqrt(mean (a - b)²) = 1 - l2
    d8 - 1/510 <= d

A mean over a block shrinks distances, and rounding moves no value by more than 1/510, so images
that are further by their prints than the best one is in full cannot be nearer. The search takes the
nearest by their prints, all of them compared in one product, and compares those in full; where the
next print lies beyond the best of them, nothing was missed, and the search says so.

Contents: `fingerprint`; `Whole`, the prints of a data set; `Near`, what is found.

Source: Faloutsos et al. 1994 (a search by a lower bound of the distance misses nothing).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8, UInt64
from torch import Tensor

from mnemoscope.data.images import Pixels, fit
from mnemoscope.severity.described import Described
from mnemoscope.similarity.pixels import grid_of

SIDE = 8
"""Blocks a side."""
BYTES = 3 * SIDE**2
"""Bytes of a print."""
SLACK = 1 / 510
"""Most by which rounding moves a value of a print."""
BLOCK = 2**16
"""Prints that are compared at a time; in float32 they take 50 MB."""
ALIKE = 0.02
"""Distance of two prints, RGB from 0 to 1, below which two images are all but the same picture:
one that was saved anew or resized, not one that was cropped or recoloured."""
NOTHING = 0
"""Name of an image that cannot be used."""


def blocks(
    images: Float[Tensor, "image 3 h w"], size: tuple[int, int]
) -> Float[Tensor, "image 192"]:
    """Return the means of images over blocks.

    Args:
        images: RGB from 0 to 1.
        size: Height and width of the model's images, which they are brought to.
    """
    height, width = grid_of(*size)
    fitted = fit(images.float(), (height, width))
    # What is left of a side that is no multiple belongs to no block; it only adds to d.
    kernel = max(1, height // SIDE), max(1, width // SIDE)
    means = F.avg_pool2d(fitted, kernel)[..., :SIDE, :SIDE]
    # An image of fewer pixels than blocks has as many blocks, and zeros beside them.
    short = SIDE - means.shape[-2], SIDE - means.shape[-1]
    return F.pad(means, (0, short[1], 0, short[0])).flatten(1)


def fingerprint(pixels: Pixels, size: tuple[int, int]) -> bytes:
    """Return the print of an image, 192 bytes."""
    means = blocks(pixels[None], size)[0]
    return (means * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Near:
    """What is near some pictures by their prints.

    Attributes:
        places: The nearest images of each picture, the nearest first; -1 where there are fewer.
        beyond: No other image is nearer than this in full, as 1 - l2 has distances.
    """

    places: Int[np.ndarray, "picture near"]
    beyond: Float[np.ndarray, " picture"]


class Whole:
    """The prints of a whole data set; equal images count once.

    Args:
        prints: The print of each image.
        names: Name of each image as a number; `NOTHING` where it cannot be used.
        size: Height and width of the model's images.
        described: The descriptor of each image, and by which embedding; None without one.
    """

    def __init__(
        self,
        prints: UInt8[np.ndarray, "image 192"],
        names: UInt64[np.ndarray, " image"],
        size: tuple[int, int],
        described: Described | None = None,
    ) -> None:
        self.size = size
        self.names = names
        distinct, firsts = np.unique(names, return_index=True)
        self.places: Int[np.ndarray, " distinct"] = np.sort(firsts[distinct != NOTHING])
        self.prints = prints[self.places]
        self.described = described and Described(described.embedding, described.values[self.places])

    def __len__(self) -> int:
        return len(self.places)

    def near(
        self,
        images: Float[Tensor, "picture 3 h w"],
        count: int,
        own: Sequence[frozenset[int]] | None = None,
    ) -> Near:
        """Find the nearest images by their prints.

        Args:
            images: RGB from 0 to 1.
            count: How many a picture.
            own: Names that are passed over, a set a picture; none where not given.
        """
        mine = blocks(images, self.size) - 0.5
        passed = own or [frozenset[int]()] * len(images)
        # One more than asked for says what lies beyond them, and those passed over need room.
        room = min(len(self), count + 1 + max(map(len, passed), default=0))
        square, at = self._nearest(mine, room)
        places = np.full((len(images), count), -1, dtype=np.intp)
        beyond = np.full(len(images), np.inf)
        height, width = grid_of(*self.size)
        covered = SIDE**2 * max(1, height // SIDE) * max(1, width // SIDE) / (height * width)
        share = min(1.0, covered) / BYTES
        for row, skipped in enumerate(passed):
            kept = [
                (value, self.places[index])
                for value, index in zip(square[row], at[row], strict=True)
                if int(self.names[self.places[index]]) not in skipped
            ]
            some = kept[:count]
            places[row, : len(some)] = [place for _, place in some]
            if len(kept) > count:
                beyond[row] = max(0.0, (kept[count][0] * share) ** 0.5 - SLACK)
        return Near(places, beyond)

    def like(
        self,
        described: Float[Tensor, "picture feature"],
        count: int,
        own: Sequence[frozenset[int]],
    ) -> Int[np.ndarray, "picture near"]:
        """Find the nearest images by their descriptors, of which there must be some.

        Args:
            described: Descriptors of the pictures.
            count: How many a picture.
            own: Names that are passed over, a set a picture.

        Returns:
            As `Near.places`.
        """
        assert self.described is not None
        names = self.names[self.places]
        passed = [
            np.isin(names, np.array([*some], dtype=np.uint64)).nonzero()[0].tolist() for some in own
        ]
        rows = self.described.near(described, count, passed)
        return np.where(rows >= 0, self.places[rows], -1)

    def alike(self, place: int, other: int) -> bool:
        """Return whether two images are all but the same, or one is an edited copy of the other.

        Args:
            place: The first item that shows the one.
            other: The first item that shows the other.
        """
        rows = np.searchsorted(self.places, [place, other])
        a, b = self.prints[rows].astype(np.float64) / 255
        near = bool(np.sqrt(np.mean((a - b) ** 2)) <= ALIKE)
        return near or (self.described is not None and self.described.copied(*rows.tolist()))

    def _nearest(
        self, mine: Float[Tensor, "picture 192"], room: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances and indices of the nearest prints, ascending."""
        best = torch.full((len(mine), room), torch.inf)
        index = torch.zeros((len(mine), room), dtype=torch.long)
        square = mine.square().sum(1, keepdim=True)
        for start in range(0, len(self), BLOCK):
            theirs = torch.from_numpy(self.prints[start : start + BLOCK]).float() / 255 - 0.5
            apart = (square - 2 * mine @ theirs.mT + theirs.square().sum(1)).clamp(min=0)
            places = torch.arange(start, start + len(theirs)).expand_as(apart)
            both, all_of = torch.cat([best, apart], 1), torch.cat([index, places], 1)
            best, picked = both.topk(room, dim=1, largest=False, sorted=True)
            index = all_of.gather(1, picked)
        return best.double().numpy(), index.numpy()
