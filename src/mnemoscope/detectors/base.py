"""A detector turns declared evidence into one score a prompt; larger means more memorized.

Three numbers are never mixed: a *prompt score* needs no image, a *pair score* takes the training
image in question, *severity* compares generated images with references (`mnemoscope.severity`).

A detector names the pieces of evidence it needs; the union of all detectors' pieces is gathered
once, and nobody sees a piece that was not declared.

Contents: `Detector`, and the statistics that several detectors share: `seed_mean`, `norms`,
`pairs_mean`, `seed_power`, `radial`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence import Evidence, Needs, Price, price

CALLS, SEEDS, DEAR = 50, 4, 600
"""Network calls a prompt, at as many calls of the path and seeds, above which a score is dear; the
path itself takes 396."""

PerPrompt = Float[Tensor, " prompt"]


class Detector(ABC):
    """A score; an instance in the `DETECTORS` of any file of this package is found by itself.

    Subclasses are frozen dataclasses, whose fields are the variants of a method.
    """

    source: ClassVar[str]
    """Author, year and equation, or "ours"."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return its name, variant included, such as "gap_norm:all"."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """Return what it computes, in one line."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """Return the evidence it takes."""

    @property
    def kind(self) -> Literal["prompt", "pair"]:
        """Return "pair" if it takes the training image, "prompt" otherwise."""
        return "pair" if self.needs.pair else "prompt"

    @property
    def first_step(self) -> bool:
        """Return whether the first call of the path is all that it takes."""
        pieces = self.needs.pieces
        return all(piece.calls in (0, 1) and piece.extra(1) == Price() for piece in pieces)

    @property
    def dear(self) -> bool:
        """Return whether it costs so much more than a path that it is asked for by name alone."""
        return price(self.needs.pieces, calls=CALLS, seeds=SEEDS).calls > DEAR

    @abstractmethod
    def score(self, evidence: Evidence) -> PerPrompt:
        """Return a score a prompt; larger is more memorized, NaN is not scored.

        Raises:
            MissingEvidence: If it does not apply; the message says why.
        """


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


def seed_power(
    clean: Float[Tensor, "prompt seed channel h w"],
) -> Float[Tensor, "prompt h w"]:
    """Return the power, a frequency, at which estimates vary from seed to seed around their mean.

    Averaged over channels and rings of like frequency: with few seeds a single frequency's power is
    far too uncertain to divide by. Not over prompts: a score does not depend on its company.
    """
    apart = clean - clean.mean(dim=1, keepdim=True)
    power = torch.fft.fft2(apart).abs().square().sum(dim=1) / (clean.shape[1] - 1)
    return torch.stack([radial(one) for one in power.mean(dim=1)])


def radial(power: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Replace a power spectrum by its mean over rings of like frequency."""
    height, width = power.shape
    down, across = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    ring = torch.hypot(down[:, None], across[None]).round().long().flatten().to(power.device)
    total = power.new_zeros(int(ring.max()) + 1)
    count = torch.bincount(ring).to(power)
    mean = total.index_add(0, ring, power.flatten()) / count
    return mean[ring].reshape(power.shape).clamp_min(1e-12)
