"""The record of the forward-noised training image at levels of the path."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.gram import NAMES, Gram
from mnemoscope.core.level import Level
from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.probes import forward_noised


@dataclass(frozen=True)
class Noised:
    """The record of the forward-noised training image.

    Attributes:
        gram: Products at the probed levels; "target" is the training image. Prompts without one
            have NaN.
        prompts: Number of prompts.
        seeds: Number of seeds.
    """

    gram: Gram
    prompts: int
    seeds: int

    def per_seed(self, values: Float[Tensor, "sample call"]) -> Float[Tensor, "prompt seed call"]:
        """Give a quantity of samples the dimensions of prompts and seeds."""
        return values.unflatten(0, (self.prompts, self.seeds))


@dataclass(frozen=True)
class NoisedTarget(Piece[Noised]):
    """The record of the forward-noised training image at levels of the path.

    Attributes:
        levels: Number of levels.
        first: Whether they are those of the first calls; spread over the path otherwise.
    """

    levels: int = 10
    first: bool = False

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches at every level."""
        return Price(forward=2 * min(self.levels, calls))

    def gather(self, sitting: Sitting) -> Noised:
        """Noise the images with the samples' own noise, and evaluate both branches."""
        bank = sitting.bank
        first = range(min(self.levels, bank.calls))
        points = [bank.point(at) for at in first] if self.first else bank.along(self.levels)
        names = len(NAMES)
        whole = torch.full(
            (len(sitting.keys), len(points), names, names), torch.nan, dtype=torch.float64
        )
        held = torch.tensor(sitting.with_image)
        for whose, which in sitting.batches(len(held)):
            prompts = held[whose.cpu()]
            rows = prompts * sitting.seeds + which.cpu()
            target = sitting.target_latents(prompts)
            tape = forward_noised(
                bank.network,
                points,
                target,
                sitting.noise[rows.to(sitting.noise.device)],
                sitting.cond.take(prompts),
                bank.blank(len(rows)),
            )
            gram = Gram.of(tape, final=bank.final, target=target.flatten(1), mean=None, other=None)
            whole[rows] = gram.products
        level = Level(
            *(torch.stack(v).double().cpu() for v in zip(*(p.level for p in points), strict=True))
        )
        gram = Gram(level, whole, sitting.model.d, bank.final)
        return Noised(gram, len(sitting.prompts), sitting.seeds)
