r"""How far a step up and down again misses where the deterministic way up had led the image.

Formulas, with phi(x; t, t') = alpha'·x0_c(x, t) + sigma'·eps_c(x, t) the deterministic step from
timestep t to t', and the image shown clean at timestep 0::

    x_{k+1} = phi(x_k; k·h, (k + 1)·h)  from x_0, the image, up to x at timestep T - h
    miss    = phi( phi(x; T - h, T); T, T - h ) - x
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.record import Point
from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import predict


@dataclass(frozen=True)
class RoundTrip(Piece[Float[Tensor, "prompt *latent"]]):
    """What a step up and down again misses, under the prompt.

    Attributes:
        end: Timestep T of training.
        stride: Timesteps h a step.
    """

    end: int = 100
    stride: int = 10

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def timesteps(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return one evaluation a step up, and one down."""
        return Price(forward=len(range(0, self.end, self.stride)) + 1)

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of one seed: no noise is drawn."""
        return self.extra(calls)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt *latent"]:
        """Lead the images up, up once more, and down."""
        bank = sitting.bank
        points = [bank.trained(t) for t in range(0, self.end + 1, self.stride)]

        @torch.no_grad()
        def step(x: Latents, point: Point, to: Point, cond: Condition) -> Latents:
            found = predict(bank.network, x, point, cond)
            return to.level.alpha * found.x0 + to.level.sigma * found.eps

        def work(cond: Condition, clean: Latents) -> Tensor:
            x = clean
            for point, to in pairwise(points[:-1]):
                x = step(x, point, to, cond)
            last, end = points[-2:]
            return step(step(x, last, end, cond), end, last, cond) - x

        return sitting.each_image(work)
