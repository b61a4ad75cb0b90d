r"""How far repeated denoising at a fixed level carries the training image.

Formulas, with M(y) the clean estimate of alpha·y at a fixed level, applied K times from the image::

    distance    max over k <= K of ||M^k(x) - x|| / ||x||
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.probes import drift


@dataclass(frozen=True)
class Drifts:
    """How far repeated denoising at a fixed level carries a clean image.

    Attributes:
        log_ratio: log(sigma / alpha) of each level, ascending.
        distance: max over repetitions of ||M^k(x) - x|| / ||x||; branches are (uncond, cond).
    """

    log_ratio: Float[Tensor, " level"]
    distance: Float[Tensor, "branch prompt level"]


@dataclass(frozen=True)
class Drift(Piece[Drifts]):
    """How far repeated denoising carries the training image, at levels spread over the path.

    Attributes:
        levels: Number of levels.
        iterations: Repetitions K at each.
    """

    levels: int = 8
    iterations: int = 16

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches at each iteration and level."""
        return Price(forward=2 * self.iterations * min(self.levels, calls))

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of one seed: no noise is drawn."""
        return self.extra(calls)

    def gather(self, sitting: Sitting) -> Drifts:
        """Denoise the images again and again."""
        bank = sitting.bank
        points = bank.along(self.levels)[::-1]
        shape = (2, len(sitting.prompts), len(points))
        distance = torch.full(shape, torch.nan, dtype=torch.float64)
        mine = sitting.with_image
        for start in range(0, len(mine), bank.batch):
            rows = mine[start : start + bank.batch]
            clean = sitting.target_latents(rows)
            conditions = (bank.blank(len(rows)), sitting.cond.take(rows))
            for at, point in enumerate(points):
                for branch, condition in enumerate(conditions):
                    found = drift(bank.network, clean, point, condition, self.iterations)[0]
                    distance[branch, rows, at] = found.double().cpu()
        ratio = [float((p.level.sigma / p.level.alpha).log()) for p in points]
        return Drifts(torch.tensor(ratio, dtype=torch.float64), distance)
