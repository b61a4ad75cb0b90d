r"""What was cropped, mirrored or retouched is found among all pictures by an embedding.

Formulas, with f the descriptors, of length 1::

    cosine      <f, f'>
    copies      <f, f'> >= c

How near those of unrelated pictures come hangs on the set: photographs of all sorts keep apart,
drawings in one style do not. With N pictures, q the quantiles over pairs of SAMPLE of them, of each
its nearest left out, which may be a copy, and z those of a normal variable::

    c = max(EDITED, q50 + (q99 - q50)·z(1 - INVENTED/N) / z(0.99))

so if unrelated pairs were normal, one picture in a thousand had a copy by chance. Descriptors have
no few axes that tell most of them apart, so all are compared with all, in blocks.

Contents: `Described`.

Source: Pizzi et al. 2022 (EDITED, at which nine in ten of what SSCD finds is a copy); the rest:
ours.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from scipy.stats import norm
from torch import Tensor

EDITED = 0.75
"""Least cosine of two descriptors of a picture and an edited copy."""
INVENTED = 1e-3
"""Pictures, as a share, that may have a copy by chance."""
SAMPLE = 4096
"""Pictures at random that say how near unrelated ones are."""
BLOCK = 1024
"""Pictures whose nearest are looked for together."""
OTHERS = 16384
"""Pictures that these are compared with at a time; in float32, cosines take 64 MB."""

Descriptors = Float16[np.ndarray, "image feature"]


@dataclass(frozen=True, eq=False)
class Described:
    """The descriptors of distinct pictures.

    Attributes:
        embedding: Name of the measure they are by.
        values: A descriptor a picture, of length 1; NaN where there is none.
    """

    embedding: str
    values: Descriptors

    @cached_property
    def least(self) -> float:
        """Return the least cosine of what is taken for a copy."""
        (whole,) = np.isfinite(self.values[:, 0]).nonzero()
        rng = np.random.default_rng(0)
        some = self.values[rng.choice(whole, size=min(SAMPLE, len(whole)), replace=False)]
        if len(some) < 2:
            return EDITED
        cosines = some.astype(np.float32) @ some.astype(np.float32).T
        np.fill_diagonal(cosines, -np.inf)
        own, twin = np.arange(len(some)), cosines.argmax(axis=1)
        cosines[own, twin] = cosines[twin, own] = -np.inf
        pairs = cosines[np.isfinite(cosines)]
        if not len(pairs):
            return EDITED
        middle, high = np.quantile(pairs, [0.5, 0.99])
        reach = norm.isf(INVENTED / len(self.values)) / norm.isf(0.01)
        return max(EDITED, float(middle + (high - middle) * reach))

    def copied(self, row: int, other: int) -> bool:
        """Return whether one of two pictures is a copy of the other."""
        a, b = self.values[[row, other]].astype(np.float64)
        return bool(a @ b >= self.least)

    def copies(
        self, device: torch.device | str = "cpu"
    ) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " image"]]:
        """Find the pictures that are copies of others.

        Args:
            device: Where they are compared.

        Returns:
            How many others each is a copy of, and the nearest of them; -1 where there is none.
        """
        counts = np.zeros(len(self.values), dtype=np.int64)
        nearest = np.full(len(self.values), -1)
        for start in range(0, len(counts), BLOCK):
            rows = self._part(start, BLOCK, device)
            own = torch.arange(start, start + len(rows), device=device)
            best, at = torch.full_like(rows[:, 0], -torch.inf), torch.full_like(own, -1)
            found = torch.zeros_like(own)
            for places, cosine in self._cosines(rows):
                cosine[own[:, None] == places] = -torch.inf
                found += (cosine >= self.least).sum(dim=1)
                value, place = cosine.max(dim=1)
                at = torch.where(value > best, places[place], at)
                best = torch.maximum(value, best)
            counts[start : start + len(rows)] = found.cpu().numpy()
            nearest[start : start + len(rows)] = torch.where(found > 0, at, -1).cpu().numpy()
        return counts, nearest

    def near(
        self,
        described: Float[Tensor, "picture feature"],
        count: int,
        passed: Sequence[Collection[int]] | None = None,
    ) -> Int[np.ndarray, "picture near"]:
        """Find the pictures nearest to others.

        Args:
            described: Descriptors of the others; what has none is near to nothing.
            count: How many of each.
            passed: Pictures that are passed over, for each of the others.

        Returns:
            The nearest first; -1 where there are fewer.
        """
        rows = torch.nan_to_num(described).float()
        best = torch.full((len(rows), count), -torch.inf)
        index = torch.full((len(rows), count), -1)
        for places, cosine in self._cosines(rows):
            for row, some in enumerate(passed or ()):
                inside = [at - int(places[0]) for at in some]
                cosine[row, [at for at in inside if 0 <= at < len(places)]] = -torch.inf
            both = torch.cat([best, cosine], dim=1)
            all_of = torch.cat([index, places.expand_as(cosine)], dim=1)
            best, picked = both.topk(count, dim=1)
            index = all_of.gather(1, picked)
        # A descriptor that is missing is 0, and so is every cosine with it.
        return torch.where(best > 0, index, -1).numpy()

    def _part(self, start: int, count: int, device: torch.device | str) -> Tensor:
        some = np.nan_to_num(self.values[start : start + count])
        return torch.from_numpy(some).to(device).float()

    def _cosines(
        self, rows: Float[Tensor, "row feature"]
    ) -> Iterator[tuple[Int[Tensor, " other"], Float[Tensor, "row other"]]]:
        """Return the cosines of rows with all pictures, a block of these at a time."""
        for first in range(0, len(self.values), OTHERS):
            others = self._part(first, OTHERS, rows.device)
            yield torch.arange(first, first + len(others), device=rows.device), rows @ others.mT
