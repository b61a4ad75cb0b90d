r"""How far the samples of a prompt agree across seeds, at every call.

Formulas, across the S seeds of a prompt, with K the Gram matrix of a vector over seeds and C the
same of the centred vectors::

    variance  tr C / ((S - 1)·d)             distance  mean over pairs of |v_s - v_s'| / sqrt(d)
    cosine    mean over pairs of cos         rank      (tr C)² / |C|²  =  (sum l)² / sum l²

The variance is also that of the seeds with odd numbers alone, for claims about prompts that the
others have told memorized from not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class Agreement:
    """How far the ok seeds of a prompt agree.

    Attributes:
        prompt: Place of the prompt in the sitting.
        seeds: Number of seeds.
        values: A quantity a call, by vector and kind ("x_variance", "x0_g_rank", ...).
    """

    prompt: int
    seeds: int
    values: Mapping[str, Float[Tensor, " call"]]


@dataclass(frozen=True)
class Convergence(Piece[tuple[Level, tuple[Agreement, ...]]]):
    """Agreement of states and guided clean estimates, for prompts with two ok seeds or more."""

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    def gather(self, sitting: Sitting) -> tuple[Level, tuple[Agreement, ...]]:
        """Reduce the tape across seeds."""
        tape, ok = sitting.tape, sitting.ok.tolist()
        assert tape is not None, "a piece of the path was asked for without a path"
        vectors = {"x": tape.x, "x0_g": tape.x0("g")}
        rows: list[Agreement] = []
        for p in range(len(sitting.prompts)):
            here = [at for at, key in enumerate(sitting.keys) if key[0] == p and ok[at]]
            if len(here) < 2:
                continue
            odd = [at for at in here if sitting.keys[at][1] % 2 == 1]
            values: dict[str, Tensor] = {}
            for name, vector in vectors.items():
                for kind, value in across_seeds(vector[here]).items():
                    values[f"{name}_{kind}"] = value.cpu()
                if len(odd) >= 2:
                    apart = across_seeds(vector[odd])["variance"]
                    values[f"{name}_variance_odd"] = apart.cpu()
            rows.append(Agreement(p, len(here), values))
        return tape.level, tuple(rows)


def across_seeds(
    vectors: Float[Tensor, "seed call d"],
) -> dict[str, Float[Tensor, " call"]]:
    """Say how far the vectors of several seeds agree at each call.

    Args:
        vectors: At least two seeds.

    Returns:
        `variance`, `distance`, `cosine` and `rank`, as the module defines them, float64.

    Source: ours; the rank is the participation ratio, invariant under rotation and scale.
    """
    seeds, _, d = vectors.shape
    v = vectors.transpose(0, 1).double()
    gram = v @ v.mT
    centred = v - v.mean(dim=1, keepdim=True)
    spread = centred @ centred.mT
    trace = spread.diagonal(dim1=1, dim2=2).sum(dim=1)
    i, j = torch.triu_indices(seeds, seeds, 1)
    size = gram.diagonal(dim1=1, dim2=2)
    own = spread.diagonal(dim1=1, dim2=2)
    # Distances from the centred products: the mean, which all seeds share, would eat the digits.
    square = (own[:, i] + own[:, j] - 2 * spread[:, i, j]).clamp_min(0)
    return {
        "variance": trace / ((seeds - 1) * d),
        "distance": (square / d).sqrt().mean(dim=1),
        "cosine": (gram[:, i, j] / (size[:, i] * size[:, j]).sqrt()).mean(dim=1),
        "rank": trace.square() / spread.square().sum(dim=(1, 2)),
    }
