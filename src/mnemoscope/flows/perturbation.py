r"""A perturbation is a change of the condition, or of the initial noise, within a radius.

Formulas, with r the radius, c the embedding of a prompt's tokens and e its noise of d coordinates,
n a unit vector of as many coordinates, one a sample::

    condition    c' = c + r·||c||·n·q                      0 <= q <= 1
    noise        e' = sqrt(1 - r²)·e + r·sqrt(d)·n         as long as e, in any direction at r = 1

    random       n drawn evenly over directions, q = 1
    hide         c', e' descend on the first-call score s = rms(x0_c - x0_u)
    recall       c', e' ascend on  a = <x0_c - x0_u, m - x0_u> / ||m - x0_u||²
                 with m the conditional clean estimate without perturbation: a memorized picture

The search takes as many steps of equal length as there are rounds, 4·r in all, is brought back
into the radius after each, and ends where it was best. It begins at a random direction.

Source: Madry et al. 2018 (projected gradient descent); objectives: ours, the score after Wen et al.
2024.

Contents: `Perturbation`; `SPACES` and `SEARCHES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.mitigations.base import generators, size
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Intervention, Latents, Start

SPACES = ("condition", "noise")
SEARCHES = ("random", "hide", "recall")

REACH = 4.0
"""Length of all steps of a search, in radii: enough to turn a direction round."""

Objective = Callable[[Latents, Condition], Float[Tensor, " sample"]]
"""Takes noise and conditions; returns what is to become small."""


@dataclass(frozen=True)
class Perturbation(Intervention):
    """Change a prompt's condition or its noise, to bring back what a mitigation keeps away.

    Attributes:
        space: What is changed.
        search: How the change is found.
        radius: Largest change, relative to the embedding; of noise, at most 1.
        draw: Number of the try; another draws other directions.
        rounds: Steps of a search by gradient.
    """

    name: ClassVar[str] = "perturbation"
    source: ClassVar[str] = "ours"

    space: str = "condition"
    search: str = "random"
    radius: float = 0.1
    draw: int = 0
    rounds: int = 5

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            InputError: If a value is out of range.
        """
        for name, value, known in (
            ("space", self.space, SPACES),
            ("search", self.search, SEARCHES),
        ):
            if value not in known:
                raise InputError(did_you_mean(value, known, name))
        most = 1.0 if self.space == "noise" else 100.0
        if not 0 <= self.radius <= most or self.rounds < 1:
            raise InputError(
                f"{self.name}: radius {self.radius} and rounds {self.rounds} given; expected a "
                f"radius from 0 to {most:g} and at least 1 round"
            )

    @property
    def calls_before(self) -> int:
        """Return two branches a round and at the end, with gradients, and the picture named."""
        if self.search == "random" or not self.radius:
            return 0
        each = 6 if self.space == "noise" else 4
        return self.rounds * each + 2 + (1 if self.search == "recall" else 0)

    def condition(self, start: Start) -> Condition:
        """Change the embeddings."""
        if self.space != "condition" or not self.radius:
            return start.cond
        before = _embedding(start.cond)
        # What is not finite is no embedding: a belief that rules something out.
        fine = torch.isfinite(before)
        length = self.radius * torch.where(fine, before, 0.0).flatten(1).norm(dim=1)

        def moved(n: Tensor) -> Condition:
            return _embedded(start.cond, before + _each(length, n) * torch.where(fine, n, 0.0))

        return moved(self._direction(start, before, lambda n: (start.noise, moved(n)), inside=True))

    def noise(self, start: Start) -> Latents:
        """Change the noise."""
        if self.space != "noise" or not self.radius:
            return start.noise
        e = start.noise
        root = sqrt(e[0].numel())

        def moved(n: Tensor) -> Latents:
            return sqrt(1 - self.radius**2) * e + self.radius * root * n

        return moved(self._direction(start, e, lambda n: (moved(n), start.cond), inside=False))

    def _direction(
        self,
        start: Start,
        like: Tensor,
        moved: Callable[[Tensor], tuple[Latents, Condition]],
        *,
        inside: bool,
    ) -> Tensor:
        """Return the direction of each sample, at most of length 1 where it may lie inside."""
        drawn = torch.stack(
            [
                torch.randn(like.shape[1:], generator=g)
                for g in generators(start, f"{self.name}/{self.space}/{self.draw}")
            ]
        ).to(like)
        n = drawn / _norm(drawn)
        if self.search == "random":
            return n
        aim = self._objective(start)
        best, least = n, torch.full((len(n),), torch.inf, device=n.device)
        for turn in range(self.rounds + 1):
            last = turn == self.rounds
            leaf = n.detach().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                loss = aim(*moved(leaf))
                total = loss.sum()
            better = loss.detach() < least
            best = torch.where(_each(better, n), n, best)
            least = torch.where(better, loss.detach(), least)
            if last:
                break
            (slope,) = torch.autograd.grad(total, leaf)
            n = n - REACH / self.rounds * slope / _norm(slope)
            n = n / (_norm(n).clamp_min(1.0) if inside else _norm(n))
        return best.detach()

    def _objective(self, start: Start) -> Objective:
        rows = start.rows

        def pull(e: Latents, cond: Condition) -> tuple[Tensor, Tensor]:
            bare = start.predict(e, start.uncond, rows).x0
            return start.predict(e, cond, rows).x0 - bare, bare

        if self.search == "hide":
            return lambda e, cond: size(pull(e, cond)[0])
        with torch.no_grad():
            picture = start.predict(start.noise, start.cond, rows).x0

        def recalled(e: Latents, cond: Condition) -> Float[Tensor, " sample"]:
            gap, bare = pull(e, cond)
            away = picture - bare
            along = (gap * away).flatten(1).sum(dim=1)
            return -along / away.flatten(1).square().sum(dim=1)

        return recalled


def _embedding(cond: Condition) -> Tensor:
    """Return what is perturbed of a condition: its tokens, or the only part of one without any.

    Raises:
        InputError: If there are several parts and none is of tokens.
    """
    if cond.embedding is not None:
        return cond.embedding
    if len(cond.parts) > 1:
        raise InputError("this model is not conditioned on tokens; perturb its noise")
    return next(iter(cond.parts.values()))


def _embedded(cond: Condition, values: Tensor) -> Condition:
    if cond.embedding is not None:
        return cond.embedded(values)
    return replace(cond, parts=dict.fromkeys(cond.parts, values))


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.device)


def _norm(values: Tensor) -> Tensor:
    return _each(values.flatten(1).norm(dim=1).clamp_min(1e-12), values)
