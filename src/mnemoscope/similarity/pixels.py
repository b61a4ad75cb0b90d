r"""Pixel similarities are one minus a root-mean-square error of RGB from 0 to 1.

Formulas, for an image a and a reference b::

    l2         1 - sqrt(mean (a - b)²)
    tiled_l2   1 - max over 4 x 4 tiles of sqrt(mean over the tile of (a - b)²)
    masked_l2  1 - sqrt(sum m·(a - b)² / (3·sum m))        m: the reference's mask

Both are compared on one grid: that of the images, or 256 pixels on the longer side where they are
larger. References are cropped to its aspect ratio and resized. The product form |a|² - 2ab + |b|²
is evaluated in float64 about mid-grey, where it loses at most 1e-7 of an RMSE; it is some fifty
times faster than differences.

Contents: `PixelSimilarity` and the three of them in `SIMILARITIES`.

Source: Carlini et al. 2023 (tiles, so that a shared background is not taken for a copy); Webster
2023 (256 pixels; mask), whose summed error of 2.5e3 is l2 = 0.887.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mnemoscope.data.images import fit
from mnemoscope.errors import InputError
from mnemoscope.similarity.base import Reference

SIDE = 256
"""Longest side of the grid, in pixels. Source: Webster 2023."""
TILES = 4
"""Tiles a side. Source: Carlini et al. 2023: 128 of 512 pixels."""
CHUNK = 64
"""References compared at a time; 64 on a grid of 256 x 256 take 0.1 GB."""
KEPT = 2**29
"""Bytes of references an index keeps ready; those beyond are read anew for every comparison."""

Kind = Literal["l2", "tiled_l2", "masked_l2"]


@dataclass(frozen=True)
class PixelSimilarity:
    """One of the three.

    Attributes:
        name: Which.
    """

    name: Kind

    def index(self, references: Iterable[Reference]) -> "PixelIndex":
        """Make references ready; they are resized once for each grid that is asked for.

        Args:
            references: The references; of a sequence only what is resized is kept, and pixels are
                taken from it again for another grid.
        """
        held = references if isinstance(references, Sequence) else tuple(references)
        return PixelIndex(self.name, held)


@dataclass(frozen=True)
class Block:
    """Some references on a grid.

    Attributes:
        pixels: RGB; in 8 bits where that loses nothing, a quarter of the memory.
        masks: Masks, NaN for a reference without one; None where they are not compared.
    """

    pixels: Shaped[Tensor, "reference 3 h w"]
    masks: Float[Tensor, "reference h w"] | None

    @classmethod
    def of(cls, references: Iterable[Reference], grid: tuple[int, int], *, masked: bool) -> "Block":
        """Bring references to a grid."""
        fitted: list[Tensor] = []
        masks: list[Tensor] = []
        for reference in references:
            fitted.append(fit(reference.pixels, grid))
            if masked:
                blank = torch.full(grid, torch.nan)
                masks.append(blank if reference.mask is None else fit(reference.mask, grid))
        pixels = torch.stack(fitted)
        eight_bit = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
        exact = torch.equal(eight_bit.float() / 255, pixels)
        return cls(eight_bit if exact else pixels, torch.stack(masks) if masked else None)

    @property
    def bytes(self) -> int:
        """Return the memory it takes."""
        return self.pixels.nbytes + (0 if self.masks is None else self.masks.nbytes)

    @property
    def values(self) -> Float[Tensor, "reference 3 h w"]:
        """Return RGB from 0 to 1."""
        return self.pixels.float() / 255 if self.pixels.dtype == torch.uint8 else self.pixels


Squares = Callable[[Block], Float[Tensor, "image reference"]]
"""Gives the mean squared differences of images from some references, float64."""


@dataclass
class PixelIndex:
    """References ready to be compared.

    Attributes:
        name: Which similarity.
        references: The references.
    """

    name: Kind
    references: Sequence[Reference]
    _kept: dict[tuple[int, int], list[Block]] = field(
        default_factory=dict[tuple[int, int], list[Block]], repr=False
    )

    def compare(self, images: Float[Tensor, "image 3 h w"]) -> Float[Tensor, "image reference"]:
        """Return the similarity of every image to every reference.

        Args:
            images: RGB from 0 to 1.

        Returns:
            Similarities, at most 1, float64; NaN for an image with a non-finite pixel, and by
            masked_l2 for a reference without a mask.
        """
        grid = grid_of(images.shape[-2], images.shape[-1])
        a = fit(images.detach().cpu().float(), grid)
        squares = _masked(a) if self.name == "masked_l2" else _tiled(a, self.name)
        columns = [squares(block) for block in self._blocks(grid)]
        mean_square = torch.cat([a.new_empty(len(a), 0, dtype=torch.float64), *columns], dim=1)
        return 1 - mean_square.clamp(min=0).sqrt()

    def _blocks(self, grid: tuple[int, int]) -> Iterator[Block]:
        kept = self._kept.setdefault(grid, [])
        yield from kept
        room = KEPT - sum(block.bytes for blocks in self._kept.values() for block in blocks)
        for start in range(len(kept) * CHUNK, len(self.references), CHUNK):
            end = min(start + CHUNK, len(self.references))
            some = (self.references[at] for at in range(start, end))
            block = Block.of(some, grid, masked=self.name == "masked_l2")
            if start == len(kept) * CHUNK and block.bytes <= room:
                kept.append(block)
                room -= block.bytes
            yield block


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Return the size on which images of this size are compared; both sides divide into tiles.

    >>> grid_of(64, 64), grid_of(512, 768)
    ((64, 64), (168, 256))

    Raises:
        InputError: If a side has fewer pixels than there are tiles.
    """
    if min(height, width) < TILES:
        raise InputError(f"images of {height} x {width} pixels are too small to compare")
    scale = min(1.0, SIDE / max(height, width))

    def whole(side: int) -> int:
        return max(TILES, round(side * scale) // TILES * TILES)

    return whole(height), whole(width)


def _tiled(a: Float[Tensor, "image 3 h w"], name: Kind) -> Squares:
    """Return what compares images with references over their worst tile."""
    tiles = TILES if name == "tiled_l2" else 1
    u = _tiles(a, tiles)
    uu = _squared(u)[:, :, None]

    def squares(block: Block) -> Float[Tensor, "image reference"]:
        v = _tiles(block.values, tiles)
        mean = (uu + _squared(v)[:, None, :] - 2 * u @ v.mT) / u.shape[-1]
        return mean.amax(dim=0)

    return squares


def _tiles(images: Float[Tensor, "image 3 h w"], tiles: int) -> Float[Tensor, "tile image value"]:
    n, channels, height, width = images.shape
    cut = images.reshape(n, channels, tiles, height // tiles, tiles, width // tiles)
    return cut.permute(2, 4, 0, 1, 3, 5).flatten(3).flatten(0, 1).double() - 0.5


def _squared(u: Float[Tensor, "tile image value"]) -> Float[Tensor, "tile image"]:
    return torch.linalg.vecdot(u, u)


def _masked(a: Float[Tensor, "image 3 h w"]) -> Squares:
    """Return what compares images with references over their masks; NaN without one."""
    u = a.double().flatten(2) - 0.5
    uu = u.square().sum(1)

    def squares(block: Block) -> Float[Tensor, "image reference"]:
        assert block.masks is not None
        found = torch.full((len(a), len(block.masks)), torch.nan, dtype=torch.float64)
        # Most lists have few templates, and what has no mask is compared with nothing.
        held = ~block.masks.isnan().flatten(1).all(dim=1)
        m = block.masks[held].double().flatten(1)
        v = block.values[held].double().flatten(2) - 0.5
        total = uu @ m.mT + (m * v.square().sum(1)).sum(-1)
        cross = u.flatten(1) @ (m[:, None] * v).flatten(1).mT
        found[:, held] = (total - 2 * cross) / (3 * m.sum(-1))
        return found

    return squares


def _factory(name: Kind) -> Callable[[Path | None], PixelSimilarity]:
    def make(weights: Path | None) -> PixelSimilarity:
        if weights is not None:
            raise InputError(f"{name} has no network and takes no weights")
        return PixelSimilarity(name)

    return make


SIMILARITIES = {name: _factory(name) for name in get_args(Kind)}
"""What `get_similarity` finds here."""
