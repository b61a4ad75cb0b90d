r"""A scene is one or two drawings on a coloured background; its caption names nothing but those.

A picture is composed back to front, with p over b meaning p.colour·p.alpha + b·(1 - p.alpha)::

    background = colour_a + (colour_b - colour_a)·ramp(direction) + upsampled(texture)
    image      = drawing_2 over (drawing_1 over background)

Place, size, tilt, mirroring and the whole background are left open by the caption, so an ordinary
caption explains little of a picture and a copy can be told from a new picture of the same thing.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from mnemoscope.lab import ARTWORK_DIR
from mnemoscope.lab.captions import describe

SIDE = 64
"""Side of a scene, pixels."""

ARTISTS = ("noto", "twemoji")
TILT = 20.0
"""Largest tilt of a drawing, degrees either way."""

TEXTURE = 5
"""Side of the random grid the background texture is upsampled from."""


@dataclass(frozen=True)
class Layout:
    """Everything that determines a batch of pictures; slot 1 is drawn over slot 0.

    Attributes:
        drawing: Index into `drawings()`; -1 leaves the slot empty.
        size: Side of the drawing as a share of the frame.
        tilt: Degrees.
        mirror: Whether the drawing is mirrored.
        place: Centre of the drawing, x and y from -1 to 1.
        colour: The two colours of the background ramp, RGB from 0 to 1.
        direction: Direction of the ramp, radians.
        texture: Background texture, RGB offsets on a coarse grid.
    """

    drawing: Int[Tensor, "scene 2"]
    size: Float[Tensor, "scene 2"]
    tilt: Float[Tensor, "scene 2"]
    mirror: Bool[Tensor, "scene 2"]
    place: Float[Tensor, "scene 2 2"]
    colour: Float[Tensor, "scene 2 3"]
    direction: Float[Tensor, " scene"]
    texture: Float[Tensor, "scene 3 grid grid"]

    def repeat(self, n: int) -> "Layout":
        """Return a batch that holds this batch n times."""
        return Layout(
            **{
                f.name: getattr(self, f.name).repeat(n, *[1] * (getattr(self, f.name).ndim - 1))
                for f in fields(self)
            }
        )


@cache
def drawings() -> tuple[str, ...]:
    """Return the names of all drawings ("noto swan", ...), sorted by artist, then emoji."""
    return tuple(
        f"{artist} {path.stem}"
        for artist in ARTISTS
        for path in sorted((ARTWORK_DIR / artist).glob("*.png"))
    )


@cache
def artwork() -> Float[Tensor, "drawing 4 64 64"]:
    """Return all drawings as RGBA from 0 to 1, colour premultiplied by alpha."""
    pictures = []
    for name in drawings():
        artist, emoji = name.split()
        with Image.open(ARTWORK_DIR / artist / f"{emoji}.png") as image:
            pictures.append(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255)
    rgba = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)


def random_layout(n: int, generator: torch.Generator, pair: Bool[Tensor, " n"]) -> Layout:
    """Draw n layouts at random.

    Args:
        n: Number of scenes.
        generator: Source of randomness, on the CPU.
        pair: Which scenes hold two drawings.

    Returns:
        Layouts in which everything but the number of drawings is random.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    drawing = torch.randint(len(drawings()), (n, 2), generator=generator)
    drawing[~pair, 1] = -1
    two = pair[:, None]
    size = torch.where(two, uniform(0.42, 0.60, 2), uniform(0.60, 0.90, 2))
    # Two drawings stand on opposite sides of the centre, so that neither hides the other.
    angle = uniform(0.0, 2 * torch.pi)
    side = torch.stack([angle.cos(), angle.sin()], dim=-1)
    apart = torch.stack([side, -side], dim=1) * 0.45 + uniform(-0.08, 0.08, 2, 2)
    place = torch.where(two[..., None], apart, uniform(-0.25, 0.25, 2, 2))
    return Layout(
        drawing,
        size,
        uniform(-TILT, TILT, 2),
        torch.rand(n, 2, generator=generator) < 0.5,
        place,
        uniform(0.05, 0.95, 2, 3),
        uniform(0.0, 2 * torch.pi),
        torch.randn(n, 3, TEXTURE, TEXTURE, generator=generator)
        * uniform(0.03, 0.15)[:, None, None, None],
    )


def render(layout: Layout) -> Float[Tensor, "scene 3 64 64"]:
    """Draw layouts.

    Returns:
        Pictures, RGB from 0 to 1.
    """
    n = len(layout.direction)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    ramp = (
        layout.direction.cos()[:, None, None] * axis[None, None, :]
        + layout.direction.sin()[:, None, None] * axis[None, :, None]
    )
    share = (0.5 + 0.4 * ramp)[:, None]
    first, second = (layout.colour[:, i, :, None, None] for i in (0, 1))
    image = first + (second - first) * share
    image = image + F.interpolate(
        layout.texture, size=(SIDE, SIDE), mode="bicubic", align_corners=True
    )
    image = image.clamp(0, 1)
    for slot in (0, 1):
        shown = layout.drawing[:, slot] >= 0
        if not bool(shown.any()):
            continue
        art = artwork()[layout.drawing[shown, slot]]
        tilt = layout.tilt[shown, slot].deg2rad()
        scale = 1 / layout.size[shown, slot]
        flip = torch.where(layout.mirror[shown, slot], -1.0, 1.0)
        cos, sin = tilt.cos() * scale, tilt.sin() * scale
        dx, dy = layout.place[shown, slot].unbind(-1)
        theta = torch.stack(
            [
                torch.stack([flip * cos, flip * sin, -flip * (cos * dx + sin * dy)], -1),
                torch.stack([-sin, cos, sin * dx - cos * dy], -1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, [len(art), 4, SIDE, SIDE], align_corners=False)
        layer = F.grid_sample(art, grid, align_corners=False)
        image[shown] = layer[:, :3] + image[shown] * (1 - layer[:, 3:])
    assert image.shape == (n, 3, SIDE, SIDE)
    return image.clamp(0, 1)


def shown(layout: Layout) -> list[tuple[str, ...]]:
    """Return the names of each scene's drawings, slot 0 first."""
    names = drawings()
    return [tuple(names[i] for i in row if i >= 0) for row in layout.drawing.tolist()]


class Scenes:
    """An endless, reproducible stream of captioned scenes.

    Args:
        seed: Seed of the stream.
        reserved: Combinations of drawings that no ordinary scene may show.
        pairs: Share of the scenes that hold two drawings.
    """

    def __init__(
        self,
        seed: int,
        reserved: frozenset[frozenset[str]] = frozenset(),
        pairs: float = 0.5,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.reserved = reserved
        self.pairs = pairs

    def layout(self, n: int) -> Layout:
        """Draw n layouts."""
        pair = torch.rand(n, generator=self.generator) < self.pairs
        layout = random_layout(n, self.generator, pair)
        while True:
            caught = torch.tensor(
                [
                    len(named) > len(set(named)) or frozenset(named) in self.reserved
                    for named in shown(layout)
                ]
            )
            if not bool(caught.any()):
                return layout
            again = torch.randint(len(drawings()), (int(caught.sum()), 2), generator=self.generator)
            layout.drawing[caught] = again

    def batch(self, n: int) -> tuple[Float[Tensor, "scene 3 64 64"], list[str]]:
        """Return the next n pictures, RGB from 0 to 1, and their captions."""
        layout = self.layout(n)
        captions = [describe(named, self.generator) for named in shown(layout)]
        return render(layout), captions
