r"""A small denoiser learns N pictures from scratch, and is drawn from while it learns.

A picture x is a scene as 8 x 8 means of its pixels, RGB mapped to -1 to 1 and divided by the
spread of scenes. A UNet learns velocities, at a learning rate that is constant after its warm-up,
so that steps are alike::

    x_t  = alpha·x + sigma·eps
    loss = mean (alpha·eps - sigma·x - v_θ(x_t, t, label))²

It has no captions; a label, where there are any, is the number of the picture and says nothing else
of it. At steps that grow by sqrt 2 the running average of its weights draws from noise that is the
same at all steps and for all networks.

Contents: `Lesson`, what is learned; `learn`, `Drawn`; `pictures_of`, `marks`.

Source: Salimans & Ho 2022 (velocity); Song et al. 2021 (DDIM).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from mnemoscope.errors import InputError
from mnemoscope.lab.scenes import Scenes
from mnemoscope.lab.train import Stage, noise_scheduler, strata

SIDE = 8
"""Side of a picture, pixels."""

SPREAD = 0.42
"""Standard deviation of the pixels of scenes from -1 to 1; their mean is near 0."""

BATCH, RATE = 32, 3e-3
"""Pictures a step, and learning rate."""

SAMPLES, CALLS = 128, 20
"""Pictures drawn at a time, and network calls a picture."""

FIRST = 50
"""Step at which a network is first drawn from."""

HALVES = 2
"""Disjoint sets of pictures."""

_HELD_OUT, _CHUNK = 256, 256


@dataclass(frozen=True)
class Lesson:
    """What a network learns.

    Attributes:
        pictures: How many pictures N.
        half: Which of the disjoint sets of pictures.
        labelled: Whether each picture has a label of its own.
    """

    pictures: int
    half: int = 0
    labelled: bool = False

    @property
    def name(self) -> str:
        """Return a name for its folder."""
        return f"{self.pictures}-{self.half}" + ("-labelled" if self.labelled else "")


@dataclass(frozen=True)
class Drawn:
    """What a network had come to at a step.

    Attributes:
        step: Steps of training.
        samples: What it drew, RGB from 0 to 1.
        seen: Its loss on pictures that it learns.
        unseen: Its loss on pictures that no network learns, under the same noise.
    """

    step: int
    samples: Float[Tensor, "sample 3 8 8"]
    seen: Float[Tensor, " known"]
    unseen: Float[Tensor, " other"]


def pictures_of(half: int, n: int) -> Float[Tensor, "picture 3 8 8"]:
    """Return the first n pictures of a set, RGB from 0 to 1."""
    return torch.cat([_chunk(half, i) for i in range(-(-n // _CHUNK))])[:n]


@cache
def _chunk(half: int, i: int) -> Float[Tensor, "picture 3 8 8"]:
    # Sets are streams of scenes far apart; none is as long as the distance between them.
    scenes, _ = Scenes(70_000_000 + 100_000 * half + i).batch(_CHUNK)
    return F.adaptive_avg_pool2d(scenes, SIDE)


def standardised(rgb: Float[Tensor, "picture 3 8 8"]) -> Float[Tensor, "picture 3 8 8"]:
    """Return pictures as the network knows them."""
    return (rgb * 2 - 1) / SPREAD


def marks(steps: int) -> list[int]:
    """Return the steps at which a network is drawn from, up to the last.

    >>> marks(200)
    [50, 71, 100, 141, 200]

    Raises:
        InputError: If there is none.
    """
    if steps < FIRST:
        raise InputError(f"{steps} steps given; expected {FIRST} or more")
    grown = (round(FIRST * 2 ** (i / 2)) for i in count())
    return list(takewhile(lambda step: step <= steps, grown))


def network(labels: int = 0) -> Any:
    """Return an untrained denoiser.

    Args:
        labels: How many labels there are; 0 for a network without any.
    """
    return UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
        num_class_embeds=labels or None,
    )


def learn(
    lesson: Lesson,
    folder: Path,
    looks: Sequence[int],
    batch: int = BATCH,
    samples: int = SAMPLES,
) -> list[Drawn]:
    """Train a network, and draw from it at some steps; goes on where a killed run stopped.

    Args:
        lesson: What it learns.
        folder: Where its state and what it drew are kept.
        looks: Steps at which it is drawn from, ascending; it stops at the last.
        batch: Pictures a step.
        samples: How many pictures it draws at a time.

    Raises:
        InputError: If what was drawn at a step that it is past is missing.
    """
    torch.manual_seed(7)
    net = network(lesson.pictures if lesson.labelled else 0)
    known = standardised(pictures_of(lesson.half, lesson.pictures))
    other = standardised(pictures_of(HALVES, _HELD_OUT))
    stage = Stage(folder, {"net": net}, lr=RATE, steps=0, constant=True)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(80_000_000 + step)
        chosen = torch.randint(lesson.pictures, (batch,), generator=generator)
        return _losses(net, known[chosen], chosen if lesson.labelled else None, generator).mean()

    found: list[Drawn] = []
    for step in looks:
        file = folder / f"drawn-{step}.safetensors"
        if not file.exists():
            if stage.step > step:
                raise InputError(f"{str(file)!r} is missing; remove the folder to train anew")
            stage.steps = step
            stage.run(loss, every=step)
            _keep(file, net, stage, lesson, known, other, samples)
        found.append(Drawn(step, **load_file(file)))
    return found


def _losses(
    net: Any,
    x: Float[Tensor, "picture 3 8 8"],
    labels: Int[Tensor, " picture"] | None,
    generator: torch.Generator,
) -> Float[Tensor, " picture"]:
    abar = noise_scheduler().alphas_cumprod
    t = (strata(len(x), generator) * len(abar)).long()
    alpha, sigma = abar[t][:, None, None, None].sqrt(), (1 - abar[t])[:, None, None, None].sqrt()
    eps = torch.randn(x.shape, generator=generator)
    guess = net(alpha * x + sigma * eps, t, labels).sample
    return (guess - (alpha * eps - sigma * x)).square().flatten(1).mean(1)


@torch.no_grad()
def _keep(
    file: Path,
    net: Any,
    stage: Stage,
    lesson: Lesson,
    known: Float[Tensor, "known 3 8 8"],
    other: Float[Tensor, "other 3 8 8"],
    samples: int,
) -> None:
    """Draw with the averaged weights, and write what was drawn."""
    with stage.held():
        labels = torch.arange(samples) % lesson.pictures
        drawn = _draw(net, samples, labels if lesson.labelled else None)
        seen = torch.arange(len(other)) % lesson.pictures
        generators = [torch.Generator().manual_seed(81_000_000) for _ in range(2)]
        losses = [
            _losses(net, x, seen if lesson.labelled else None, generator)
            for x, generator in zip((known[seen], other), generators, strict=True)
        ]
    fresh = file.with_suffix(".new")
    save_file({"samples": drawn, "seen": losses[0], "unseen": losses[1]}, fresh)
    fresh.replace(file)


def _draw(
    net: Any, samples: int, labels: Int[Tensor, " sample"] | None
) -> Float[Tensor, "sample 3 8 8"]:
    scheduler: Any = DDIMScheduler.from_config(
        noise_scheduler().config, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(CALLS)
    x = torch.randn(samples, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(82_000_000))
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(samples), labels).sample, t, x).prev_sample
    return ((x * SPREAD + 1) / 2).clamp(0, 1).contiguous()
