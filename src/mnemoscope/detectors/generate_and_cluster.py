r"""Generate and cluster asks whether a prompt's samples are the same picture.

Formulas, with l(a, b) the tiled distance of two samples, the largest root-mean-square error among
4 x 4 tiles::

    generate_and_cluster          - mean over pairs of l
    generate_and_cluster:min      - min over pairs of l
    generate_and_cluster:clique   size of the largest set of samples with all l <= 0.15, over n
    seed_agreement                mean over pairs of the correlation of pixels
    seed_agreement:sscd           mean over pairs of the cosine of SSCD's descriptors

Tiles keep uniform backgrounds from matching. The preprint that uses seed agreement takes SSCD,
whose network is not shipped; the correlation of pixels needs no further weights.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt, pairs_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.descriptors import Descriptors
from mnemoscope.evidence.pieces.pictures import Pictures

TILES = 4
"""Tiles a side; 128 of 512 pixels."""

NEAR = 0.15
"""Tiled distance of near-duplicates, RMSE of RGB in [0, 1]; the published value."""


def tiled(
    pictures: Float[Tensor, "seed 3 height width"],
) -> Float[Tensor, "seed seed"]:
    """Return the tiled distance of every pair.

    Source: Carlini et al. 2023 (USENIX Security), section 4.2.
    """
    height, width = (side // TILES * TILES for side in pictures.shape[-2:])
    cut = pictures[..., :height, :width].double()
    tiles = cut.unflatten(-1, (TILES, -1)).unflatten(-3, (TILES, -1))
    parts = tiles.permute(2, 4, 0, 1, 3, 5).flatten(3).flatten(0, 1).flatten(2)
    return torch.cdist(parts, parts).amax(dim=0) / parts.shape[-1] ** 0.5


def largest_clique(near: Bool[Tensor, "seed seed"]) -> int:
    """Return the size of the largest set of mutually near samples, exactly.

    Source: Bron & Kerbosch 1973, with a bound.
    """
    count = len(near)
    friends = [{j for j in range(count) if j != i and bool(near[i, j])} for i in range(count)]
    best = 1 if count else 0

    def grow(size: int, candidates: set[int]) -> None:
        nonlocal best
        best = max(best, size)
        while candidates and size + len(candidates) > best:
            one = candidates.pop()
            grow(size + 1, candidates & friends[one])

    grow(0, set(range(count)))
    return best


@dataclass(frozen=True)
class GenerateAndCluster(Detector):
    """Closeness of a prompt's samples.

    Attributes:
        how: "mean" or "min" over pairs, or "clique".
    """

    how: Literal["mean", "min", "clique"] = "mean"
    source: ClassVar[str] = "Carlini et al. 2023 (USENIX Security), section 4"

    @property
    def name(self) -> str:
        """Return its name with the aggregation."""
        return "generate_and_cluster" + ("" if self.how == "mean" else f":{self.how}")

    @property
    def formula(self) -> str:
        """Return the formula."""
        if self.how == "clique":
            return f"largest set of samples within a tiled distance of {NEAR:g}, over seeds"
        return f"- {self.how} over pairs of seeds of the tiled L2 distance of samples"

    @property
    def needs(self) -> Needs:
        """Return the samples of at least two seeds."""
        return Needs((Pictures(),), seeds=2, uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the closeness."""
        each = [self._one(pictures) for pictures in evidence[Pictures()]]
        return torch.tensor(each, dtype=torch.float64)

    def _one(self, pictures: Float[Tensor, "seed 3 height width"]) -> float:
        finite = pictures[torch.isfinite(pictures).flatten(1).all(dim=1)]
        if len(finite) < 2:
            return float("nan")
        distance = tiled(finite)
        if self.how == "clique":
            return largest_clique(distance <= NEAR) / len(finite)
        upper = torch.triu_indices(len(finite), len(finite), 1)
        each = distance[upper[0], upper[1]]
        return -float(each.mean() if self.how == "mean" else each.min())


@dataclass(frozen=True)
class SeedAgreement(Detector):
    """Closeness of a prompt's samples to one another.

    Attributes:
        sscd: Whether SSCD compares, and not the correlation of pixels.
    """

    sscd: bool = False
    source: ClassVar[str] = 'Verma et al. 2026 (preprint), arXiv 2610.11670, "seed agreement"'

    @property
    def name(self) -> str:
        """Return its name with the measure."""
        return "seed_agreement" + (":sscd" if self.sscd else "")

    @property
    def formula(self) -> str:
        """Return the formula."""
        what = "cosine of SSCD's descriptors" if self.sscd else "correlation of pixels"
        return f"mean over pairs of seeds of the {what} of samples"

    @property
    def needs(self) -> Needs:
        """Return the samples, or their descriptors, of at least two seeds."""
        return Needs((Descriptors() if self.sscd else Pictures(),), seeds=2, uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean over pairs."""
        if self.sscd:
            return pairs_mean(evidence[Descriptors()].double())
        flat = evidence[Pictures()].flatten(2).double()
        centred = flat - flat.mean(dim=2, keepdim=True)
        return pairs_mean(centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-12))


DETECTORS = (
    GenerateAndCluster(),
    GenerateAndCluster("min"),
    GenerateAndCluster("clique"),
    SeedAgreement(),
    SeedAgreement(sscd=True),
)
