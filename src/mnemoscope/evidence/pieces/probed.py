r"""The record of calls beside the path: on the noised training image, or on pure noise.

Laws::

    forward   x = alpha·target + sigma·eps        noise   x = eps, whatever the level says
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mnemoscope.core.gram import Gram
from mnemoscope.core.record import Point
from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import Absent, Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.batching import batched
from mnemoscope.sampling.probes import forward_noised, pure_noise

Key = tuple[int, int]
"""Prompt and seed of a sample."""


@dataclass(frozen=True)
class Probes:
    """The record of probes.

    Attributes:
        law: Where the states come from.
        calls: Index on the path of each probed call.
        parts: Samples, each a prompt and a seed, with their record.
    """

    law: str
    calls: tuple[int, ...]
    parts: tuple[tuple[tuple[Key, ...], Gram], ...]


@dataclass(frozen=True)
class Probed(Piece[Probes]):
    """Both branches off the path, at some calls' levels, for the first seeds.

    Attributes:
        law: "forward" or "noise".
        seeds: Most seeds a prompt.
        stride: Every how many calls of the path.
        most: Most calls.
    """

    law: Literal["forward", "noise"] = "forward"
    seeds: int = 4
    stride: int = 5
    most: int = 10

    @property
    def pair(self) -> bool:
        """Return whether the training image is noised."""
        return self.law == "forward"

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return both branches at every probed call."""
        return Price(forward=2 * len(range(calls)[:: self.stride][: self.most]))

    def total(self, calls: int, seeds: int) -> Price:
        """Return the price of as many seeds as are probed."""
        return self.extra(calls) * min(self.seeds, seeds)

    def points(self, bank: Bank) -> list[Point]:
        """Return where the network is probed."""
        return [bank.points[call] for call in range(bank.calls)[:: self.stride][: self.most]]

    def gather(self, sitting: Sitting) -> Probes | Absent:
        """Evaluate both branches; samples that are not finite, or fail, are left out."""
        bank = sitting.bank
        points = self.points(bank)
        able = [key for key in sitting.keys if key[1] < self.seeds]
        if self.law == "forward":
            able = [key for key in able if key[0] in set(sitting.with_image)]

        def probe(here: Sequence[Key]) -> tuple[tuple[Key, ...], Gram] | None:
            prompts = [p for p, _ in here]
            rows = torch.tensor([p * sitting.seeds + s for p, s in here])
            noise = sitting.noise[rows.to(sitting.noise.device)]
            cond, blank = sitting.cond.take(prompts), bank.blank(len(here))
            if self.law == "forward":
                target = sitting.target_latents(prompts)
                tape = forward_noised(bank.network, points, target, noise, cond, blank)
            else:
                tape = pure_noise(bank.network, points, noise, cond, blank)
            finite = torch.isfinite(tape.v_c + tape.v_u).flatten(1).all(dim=1).cpu()
            if not bool(finite.any()):
                return None
            kept = tuple(key for key, fine in zip(here, finite.tolist(), strict=True) if fine)
            target = sitting.targets[[p for p, _ in kept]]
            other = sitting.others[[p for p, _ in kept]]
            gram = Gram.of(
                tape.take(finite), final=bank.final, target=target, mean=bank.mean, other=other
            )
            return kept, gram

        found = [part for _, part in batched(able, bank.batch, probe)]
        parts = tuple(part for part in found if isinstance(part, tuple))
        return Probes(self.law, tuple(point.call for point in points), parts)
