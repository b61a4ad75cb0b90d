r"""SAIL: the noise is moved to where the pull of the prompt is flat.

Formulas, with s(x) = -(eps_c(x) - eps_u(x)) / sigma at the first call, for each sample of its own::

    sharpness(x) = ||s(x + reach·s(x)/||s(x)||) - s(x)||²
    x ← Adam step on sharpness(x) + hold·||x||²
        until rms of that difference <= flatness / strength, at most `rounds` times

then once more from fresh noise, at most `draws` times in all. A sample that never arrives starts
from where its sharpness was least. `optimized` says which arrived. This is the paper's form. The
authors' code minimizes ||s|| at the moved place, takes the direction at the first noise throughout,
and restarts from the same seed; its threshold, 8.2, is one of that sum and says nothing here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mnemoscope.mitigations.base import Bounds, Descended, Mitigation, descend, generators, size
from mnemoscope.sampling.hooks import Latents, Start
from mnemoscope.sampling.loop import initial_noise


@dataclass(frozen=True)
class SharpnessNoise(Mitigation):
    """Move each noise to where the pull of the prompt is flat.

    Attributes:
        strength: What the flatness is divided by.
        flatness: Root mean square of the score's change that is aimed at.
        reach: Length of the excursion along the score.
        hold: Weight α that holds the noise to its size.
        rate: Learning rate.
        rounds: Most updates from one noise.
        draws: Most noises tried.
    """

    name: ClassVar[str] = "sharpness_noise"
    source: ClassVar[str] = "Jeon et al. 2025, SAIL, arXiv 2412.04140, section 5"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0, 2.0, 4.0)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"rounds": (0.0, 1000.0), "draws": (1.0, 100.0)}

    strength: float = 1.0
    flatness: float = 0.001
    reach: float = 1.0
    hold: float = 0.05
    rate: float = 0.05
    rounds: int = 10
    draws: int = 2

    @property
    def calls_before(self) -> int:
        """Return four calls a round with their gradients, and a look at the end, each draw."""
        return self.draws * (12 * self.rounds + 4) if self.strength else 0

    def noise(self, start: Start) -> Latents:
        """Move the noise."""
        return self.optimized(start).value if self.strength else start.noise

    def optimized(self, start: Start) -> Descended:
        """Return the moved noise, the sharpness it was brought to, and whether that sufficed."""
        target = self.flatness / self.strength
        value = start.noise.clone()
        reached = torch.full((len(value),), torch.inf, device=value.device)
        left = torch.arange(len(value), device=value.device)
        for draw in range(self.draws):
            begin = self._begin(start, draw)[left]
            found = descend(
                begin,
                lambda x, rows, some=left: self._sharpness(start, x, some[rows]),
                target=target,
                rounds=self.rounds,
                make=lambda leaf: torch.optim.Adam([leaf], lr=self.rate),
                best=True,
            )
            better = found.reached < reached[left]
            value[left[better]] = found.value[better]
            reached[left[better]] = found.reached[better]
            left = left[~found.converged]
            if not len(left):
                break
        return Descended(value, reached, reached <= target)

    def _begin(self, start: Start, draw: int) -> Latents:
        if draw == 0:
            return start.noise
        fresh = generators(start, f"{self.name}:{draw}")
        noise = initial_noise(fresh, tuple(start.noise.shape[1:]), device=start.noise.device)
        return noise.to(start.noise)

    def _sharpness(self, start: Start, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        sigma = float(start.points[0].level.sigma)
        score = -start.gap(x, rows=rows) / sigma
        length = score.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
        moved = -start.gap(x + self.reach * score / length, rows=rows) / sigma
        change = (moved - score).flatten(1)
        held = self.hold * x.flatten(1).square().sum(dim=1)
        return change.square().sum(dim=1) + held, size(change)
