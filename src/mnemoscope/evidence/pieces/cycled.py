r"""Divergence of both noise estimates at samples that were noised and denoised again and again.

Flow of a cycle, with gamma the share of the path that is gone back::

    x <- denoised( alpha·x + sigma·eps )     from the call at which that share is left, eps fresh

Formula, after the last cycle, at x' = alpha·x + sigma·eps of timestep 1 of training::

    trace_b = v·(d eps_b / dx) v             v random signs, one probe a seed
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import denoise, divergence
from mnemoscope.sampling.recipe import seed_of

NEAR = 1
"""Timestep of training at which the divergence is taken: the last step of denoising."""


@dataclass(frozen=True)
class CycledTrace:
    """Divergence of the noise estimates at cycled samples.

    Attributes:
        level: The level, unit form.
        trace: Estimated trace of d eps / dx; branches are (uncond, cond).
    """

    level: Level
    trace: Float[Tensor, "prompt seed branch"]


@dataclass(frozen=True)
class Cycled(Piece[CycledTrace]):
    """Divergence of both noise estimates at samples after some cycles.

    Attributes:
        cycles: Number of cycles; 0 for the samples as they are.
        amplitude: Share gamma of the path that each cycle goes back.
    """

    cycles: int = 0
    amplitude: float = 0.9

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    @property
    def timesteps(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches at every call of a cycle, and once with their tangents."""
        return Price(forward=2 + 2 * self.cycles * self.back(calls), tangent=2)

    def back(self, calls: int) -> int:
        """Return how many calls a cycle takes."""
        return max(1, round(self.amplitude * calls))

    def gather(self, sitting: Sitting) -> CycledTrace:
        """Cycle the samples, then differentiate both branches."""
        bank = sitting.bank
        points = [bank.point(call) for call in range(bank.calls)][-self.back(bank.calls) :]
        near, signs = bank.trained(NEAR), bank.signs("cycled", 1)[0]

        def noised(x: Latents, level: Level, cycle: int, seeds: Tensor) -> Latents:
            noise = self._noise(bank, cycle)[seeds]
            return level.alpha.to(x) * x + level.sigma.to(x) * noise

        def work(cond: Condition, samples: Tensor, seeds: Tensor) -> Tensor:
            x, blank = sitting.final[samples], bank.blank(len(samples))
            for cycle in range(self.cycles):
                x = noised(x, points[0].level, cycle, seeds)
                x = denoise(bank.network, x, points, bank.final, cond, blank, bank.guidance)
            x = noised(x, near.level, self.cycles, seeds)
            return torch.stack(
                [divergence(bank.network, x, near, b, signs[seeds])[0] for b in (blank, cond)],
                dim=1,
            )

        return CycledTrace(near.level, sitting.each(work).double())

    def _noise(self, bank: Bank, cycle: int) -> Latents:
        """Return the noise of a cycle for every seed, the same for every prompt."""
        seeds = [seed_of(bank.recipe.seed, "cycle", cycle, s) for s in range(bank.seeds)]
        return bank.keep(("cycle", cycle), lambda: bank.noise(seeds)[0])
