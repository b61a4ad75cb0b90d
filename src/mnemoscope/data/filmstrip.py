r"""A filmstrip shows how one sample came about: the decoded clean estimates of a few calls.

Layout, one WebP picture a sample::

    row      a branch: unconditional, conditional, guided     (those that differ)
    column   a call of the path, spread evenly from the first to the last

It exists to be looked at, so it is small: frames shrink and quality falls until it fits `BYTES`.
What fits as it is stays exact, since lossy WebP halves the resolution of colour, which is all there
is to see in a frame of a few pixels.

Contents: `evenly`, `encode`.
"""

import io

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mnemoscope.data.images import fit

BYTES = 32 * 1024
"""Most bytes of a strip: ten samples of a prompt fit a page that opens at once."""

SIDES = (64, 48, 32, 16)
"""Sides of a frame to try, in pixels; the largest is what a phone shows four of in a row."""

QUALITIES = (75, 50, 25)
"""WebP qualities to try at each side."""

LONGEST = 255
"""Most calls of a strip: 64 pixels each, and WebP ends at 16,383."""


def evenly(count: int, calls: int) -> list[int]:
    """Choose calls evenly from the first to the last.

    Args:
        count: Calls wanted.
        calls: Calls there are.

    Returns:
        At most `count` different calls, ascending; none where none are wanted.

    Source: ours.
    """
    count = min(count, calls, LONGEST)
    if count < 2:
        return [calls - 1] * count
    return [round(i * (calls - 1) / (count - 1)) for i in range(count)]


def encode(frames: Float[Tensor, "branch call 3 h w"]) -> tuple[bytes, int]:
    """Lay frames out as one picture.

    Args:
        frames: RGB from 0 to 1; what lies outside is clamped.

    Returns:
        WebP of at most `BYTES` bytes where the smallest side allows, and the side of a frame in
        pixels.

    Source: ours.
    """
    rows, columns = frames.shape[:2]
    largest = min(frames.shape[-2:])
    data, side = b"", 0
    for side in dict.fromkeys(min(side, largest) for side in SIDES):
        small = fit(frames.flatten(0, 1), (side, side)).unflatten(0, (rows, columns))
        grid = small.permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
        pixels = (grid.clamp(0, 1) * 255).round().to(torch.uint8)
        picture = Image.fromarray(pixels.numpy())
        # Above this size it seldom fits, and trying costs time for every sample.
        exact = [{"lossless": True}] if pixels.nbytes <= BYTES else []
        for how in (*exact, *({"quality": quality} for quality in QUALITIES)):
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", method=4, **how)
            data = buffer.getvalue()
            if len(data) <= BYTES:
                return data, side
    return data, side
