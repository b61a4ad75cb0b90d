"""Statistics that several detectors share.

Contents: `seed_mean`, `norms`, `pairs_mean`, `seed_power`, `radial`, `words`.
"""

import re

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base.detector import PerPrompt


def seed_mean(values: Float[Tensor, "prompt seed"]) -> PerPrompt:
    """Average over seeds."""
    return values.mean(dim=1)


def norms(maps: Float[Tensor, "prompt seed *latent"]) -> Float[Tensor, "prompt seed"]:
    """Return the Euclidean norm of each sample's map, in float32 or better."""
    return maps.flatten(2).double().norm(dim=2)


def pairs_mean(
    values: Float[Tensor, "prompt seed feature"],
) -> PerPrompt:
    """Return the mean of <v_s, v_s'> over pairs of different seeds.

    It is free of the bias that the seeds' own noise adds to the square of their mean.

    Source: Hoeffding 1948 (U-statistics).
    """
    seeds = values.shape[1]
    total = values.sum(dim=1).square().sum(dim=1) - values.square().sum(dim=(1, 2))
    return total / (seeds * (seeds - 1))


def seed_power(clean: Float[Tensor, "prompt seed channel h w"]) -> Float[Tensor, "h w"]:
    """Return the power, a frequency, at which estimates vary from seed to seed around their mean.

    Averaged over prompts, channels and rings of like frequency: with few seeds a single
    frequency's power is far too uncertain to divide by.
    """
    apart = clean - clean.mean(dim=1, keepdim=True)
    power = torch.fft.fft2(apart).abs().square().sum(dim=1) / (clean.shape[1] - 1)
    return radial(power.mean(dim=(0, 1)))


def radial(power: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Replace a power spectrum by its mean over rings of like frequency."""
    height, width = power.shape
    down, across = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    ring = torch.hypot(down[:, None], across[None]).round().long().flatten().to(power.device)
    total = power.new_zeros(int(ring.max()) + 1)
    count = torch.bincount(ring).to(power)
    mean = total.index_add(0, ring, power.flatten()) / count
    return mean[ring].reshape(power.shape).clamp_min(1e-12)


def words(text: str) -> list[str]:
    """Split a prompt into its words, in lower case.

    >>> words("A noto swan, twice.")
    ['a', 'noto', 'swan', 'twice']
    """
    return re.findall(r"\w+", text.lower())
