"""A smooth network with known noise, so that a score is the same number on every machine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.models.oracle import MixtureDenoiser, Oracle
from mnemoscope.sampling.condition import Condition

SHAPE, D, SEEDS, STEPS, GUIDANCE = (3, 8, 8), 192, 3, 6, 7.5
BRANCHES = 4
"""Two prompts, everything else, and no prompt."""


def waves(*shape: int, pitch: float) -> Tensor:
    """Return values in [-1, 1] that look irregular and need no random numbers."""
    count = torch.Size(shape).numel()
    at = torch.arange(count, dtype=torch.float64)
    return torch.sin(pitch * at + 0.01 * at * at % 6.283).reshape(shape)


WEIGHTS = torch.stack([waves(D, D, pitch=1.1 + 0.37 * k) / 12 for k in range(BRANCHES)])
SHIFTS = torch.stack([waves(D, pitch=0.7 + 0.53 * k) for k in range(BRANCHES)])


def estimate(x: Tensor, timestep: float, branch: int | Tensor) -> Tensor:
    """Return the network's noise estimate for flat states, float64."""
    weights, shifts = WEIGHTS[branch], SHIFTS[branch]
    angle = (weights @ x.double()[..., None])[..., 0] + shifts + float(timestep) / 100
    return torch.sin(angle) / 4


class Smooth(MixtureDenoiser):
    """eps = sin(W·x + b + t / 100) / 4, the branch named by the largest belief."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(BRANCHES, *SHAPE), torch.zeros(BRANCHES))

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        branch = condition.parts["log_weights"].argmax(dim=1)
        return estimate(x.flatten(1), float(timestep), branch).reshape(x.shape).to(x)


def toy() -> Oracle:
    """Return the network as a model."""
    rows = torch.full((BRANCHES, BRANCHES), -torch.inf).fill_diagonal_(0)
    beliefs = {"a cat on a mat": rows[0], "the dog": rows[1], "": rows[3]}
    return Oracle("oracle:toy", Smooth(), beliefs, [2])


TEXTS = ("a cat on a mat", "the dog")
CUT = ((2, 2, 2, 3), (2, 3, 2, 3))
"""Branch of each text's first, middle and last third, and of nothing."""


def images() -> Tensor:
    """Return a training image for each prompt, RGB from 0 to 1."""
    return (waves(2, *SHAPE, pitch=0.9) + 1) / 2


def prompts() -> list[Prompt]:
    """Return the prompts with their training images."""
    return [
        Prompt(f"q{at}", text, images=(image.float(),))
        for at, (text, image) in enumerate(zip(TEXTS, images(), strict=True))
    ]


def noise(seeds: Sequence[int]) -> Tensor:
    """Return noise that follows from seeds."""
    return torch.stack([1.4 * waves(*SHAPE, pitch=0.5 + seed % 1009 / 100) for seed in seeds])


def signs(name: str, probes: int) -> Tensor:
    """Return signs for every seed that follow from a name."""
    pitch = 0.3 + sum(map(ord, name)) % 101 / 10
    return torch.where(waves(probes, SEEDS, *SHAPE, pitch=pitch) > 0, 1.0, -1.0)
