r"""The judge says which emoji a picture shows; it has seen scenes, and never a sample.

A small convolutional network gives every emoji a score at every place; a picture's score for an
emoji is the largest::

    score_k(picture) = max over places of network(picture)_k         k one of 32 emoji
    loss             = binary cross-entropy of score_k against "the scene shows k"

Scenes are bent, blurred, faded, over-saturated and sent through the codec while it learns, as the
drawings of a denoiser under guidance are, so that a drawing counts by what it looks like and not by
whether its pixels fall on those of the artwork. How far to trust it is measured on other scenes:
how often it finds what is shown, and how often it finds what another caption names.

Contents: `shows`, `score`, `features`, `recognised`, `mistaken`, `train_judge`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mnemoscope.lab import JUDGE_FILE
from mnemoscope.lab.scenes import Scenes, drawings
from mnemoscope.lab.train import Stage, load_codec

AMONG = 5
"""A picture is recognised when every emoji named is among its this many best of 32."""

BEND, BEND_GRID = 0.12, 5
"""Largest displacement, in half sides of the frame, and side of the grid it is drawn on."""


@cache
def emoji() -> tuple[str, ...]:
    """Return the names of all emoji; each has a drawing by every artist."""
    return tuple(sorted({name.split()[1] for name in drawings()}))


def shows(captions: list[str]) -> Bool[Tensor, "caption emoji"]:
    """Say which of all emoji each caption names."""
    named = [set(caption.split()) for caption in captions]
    return torch.tensor([[one in words for one in emoji()] for words in named])


def judge_network() -> nn.Sequential:
    """Return an untrained judge: pictures from -1 to 1 to a score an emoji and place."""

    def block(inputs: int, outputs: int, side: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, side, stride, side // 2),
            nn.GroupNorm(8, outputs),
            nn.SiLU(),
        ]

    return nn.Sequential(
        *block(3, 32, 5, 2),
        *block(32, 64, 3, 2),
        *block(64, 64, 3, 1),
        *block(64, 96, 3, 2),
        *block(96, 96, 3, 1),
        nn.Conv2d(96, len(emoji()), 1),
    )


def disturbed(
    images: Float[Tensor, "image 3 64 64"], codec: Any, generator: torch.Generator
) -> Float[Tensor, "image 3 64 64"]:
    """Bend, blur, fade or over-saturate pictures, and send half of them through the codec.

    Args:
        images: RGB from 0 to 1.
        codec: The lab's codec.
        generator: Source of randomness, on the CPU.

    Returns:
        RGB from 0 to 1.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    coarse = uniform(-BEND, BEND, 2, BEND_GRID, BEND_GRID)
    field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    still = F.affine_grid(
        torch.eye(2, 3).expand(n, 2, 3), [n, 3, height, width], align_corners=False
    )
    grid = still + field.permute(0, 2, 3, 1)
    x = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    small = F.interpolate(x, scale_factor=0.5, mode="area")
    soft = F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
    x = torch.where(uniform(0.0, 1.0, 1, 1, 1) < 0.4, soft, x)
    coded = torch.rand(n, generator=generator) < 0.5
    if bool(coded.any()):
        with torch.no_grad():
            latents = codec.encode(x[coded] * 2 - 1).latent_dist.mode()
            x[coded] = codec.decode(latents).sample.float() / 2 + 0.5
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.6, 1.8, 1, 1, 1)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * uniform(0.7, 1.5, 1, 1, 1)
    return x.clamp(0, 1)


def train_judge(out: Path, steps: int = 2500, batch: int = 64) -> None:
    """Train the judge on scenes and write it to `out/judge.safetensors`.

    Args:
        out: Folder that holds the codec, `model/vae`.
        steps: Length of the training.
        batch: Scenes a step.
    """
    torch.manual_seed(5)
    network, codec = judge_network(), load_codec(out)
    stage = Stage(out / "judge-state", {"judge": network}, lr=3e-3, steps=steps)

    def loss(step: int) -> Tensor:
        images, captions = Scenes(60_000_000 + step).batch(batch)
        generator = torch.Generator().manual_seed(61_000_000 + step)
        scores = network(disturbed(images, codec, generator) * 2 - 1).amax((2, 3))
        return F.binary_cross_entropy_with_logits(scores, shows(captions).float())

    stage.run(loss)
    stage.averaged()
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, out / JUDGE_FILE.name)


@cache
def _judge() -> nn.Sequential:
    network = judge_network()
    network.load_state_dict({name: t.float() for name, t in load_file(JUDGE_FILE).items()})
    return network.eval()


@torch.no_grad()
def score(images: Float[Tensor, "image 3 64 64"]) -> Float[Tensor, "image emoji"]:
    """Score every emoji in every picture, log-odds that it is shown.

    Args:
        images: RGB from 0 to 1.
    """
    return torch.cat([_judge()(part * 2 - 1).amax((2, 3)) for part in images.split(256)])


@torch.no_grad()
def features(images: Float[Tensor, "image 3 64 64"]) -> Float[Tensor, "image feature"]:
    """Return what the judge sees in pictures before it names anything, averaged over places.

    Args:
        images: RGB from 0 to 1.
    """
    inner = _judge()[:-1]
    return torch.cat([inner(part * 2 - 1).mean((2, 3)) for part in images.split(256)])


def _best(images: Float[Tensor, "image 3 64 64"]) -> Bool[Tensor, "image emoji"]:
    scores = score(images)
    top = scores.topk(AMONG, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, top, True)


def recognised(
    images: Float[Tensor, "image 3 64 64"], captions: list[str]
) -> Bool[Tensor, " image"]:
    """Say in which pictures every emoji the caption names is among the five best of all emoji."""
    return (_best(images) | ~shows(captions)).all(dim=1)


def mistaken(images: Float[Tensor, "image 3 64 64"], captions: list[str]) -> float:
    """Return the share of pictures that are recognised as what another caption names.

    Each picture is held against every caption that shares no emoji with its own.
    """
    named = shows(captions)
    found = (_best(images)[:, None] | ~named[None]).all(dim=2)
    foreign = ~(named[:, None] & named[None]).any(dim=2)
    return float(found[foreign].float().mean())
