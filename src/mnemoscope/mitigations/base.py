"""What all mitigations share: a strength, bounds of their settings, sizes and draws a sample.

Contents: `Mitigation`, `Bounds`; `size`, `clean_gap`, `suspicious`,
`believed`, `turned`; `descend`; `generators`, `inserted`.
"""

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Intervention, Latents, Start, Step
from mnemoscope.sampling.loop import generators_of
from mnemoscope.sampling.recipe import seed_of

MOST = 1e6
"""Largest value of a setting without bounds of its own."""


Bounds = Mapping[str, tuple[float, float]]
"""Least and largest value of settings, by name."""


@dataclass(frozen=True)
class Mitigation(Intervention, ABC):
    """An intervention against memorization, of a strength.

    Attributes:
        strength: How strongly it acts; each method says what the number means, larger is stronger.
    """

    strengths: ClassVar[tuple[float, ...]]
    """Strengths at which it is compared, from weak to strong, the default among them."""
    neutral: ClassVar[float | None] = None
    """Strength at which it is plain guidance, bit for bit; None where there is no such point."""
    files: ClassVar[bool] = False
    """Whether it needs a file of the user's, and so cannot be compared without being named."""
    bounds: ClassVar[Bounds] = MappingProxyType({})
    """Least and largest value of its numbers; from 0 to `MOST` where not given."""

    strength: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            InputError: If one is out of its bounds.
        """
        for setting in fields(self):
            value = getattr(self, setting.name)
            low, high = self.bounds.get(setting.name, (0.0, MOST))
            # Comparisons that NaN fails as well.
            if setting.type in (int, float) and not low <= value <= high:
                raise InputError(
                    f"{self.name}: {setting.name} {value} given; expected from {low:g} to {high:g}"
                )

    def at(self, strength: float) -> "Mitigation":
        """Return the same method at another strength."""
        return replace(self, strength=strength)


def size(x: Latents) -> Float[Tensor, " sample"]:
    """Return the root mean square of each sample's coordinates, float32."""
    return x.flatten(1).float().square().mean(dim=1).sqrt()


def clean_gap(step: Step) -> Latents:
    """Return the gap of the clean estimates, cond - uncond."""
    return step.prediction("cond").x0 - step.prediction("uncond").x0


def suspicious(step: Step, threshold: float) -> Bool[Tensor, " sample"]:
    """Return which samples' prompts say more at the first call than a threshold.

    Formula::

        score = rms of x0_c - x0_u at the first call, in units of the latents

    Prompts that leave the picture open say little at pure noise, those that are memorized name it.

    Args:
        step: Any call of the path.
        threshold: Largest score that passes for ordinary.

    Source: Wen et al. 2024 (the gap's norm at the first step), told in clean estimates.
    """
    return size(clean_gap(step.first)) > threshold


def believed(step: Step, x0: Latents) -> Latents:
    """Return the raw output of a network that believes in a clean image whatever the state."""
    alpha, sigma = (part.to(step.x) for part in step.point.level)
    return step.raw_of(Prediction(x0, (step.x - alpha * x0) / sigma))


def turned(steps: Iterable[Step]) -> Bool[Tensor, " sample"]:
    """Return which samples' gap has passed a local minimum along the calls of a path.

    Source: Jain et al. 2025, section 4.2: the transition point.
    """
    norms = [size(step.prediction("cond").eps - step.prediction("uncond").eps) for step in steps]
    found = torch.zeros_like(norms[0], dtype=torch.bool)
    for before, least, after in zip(norms, norms[1:], norms[2:], strict=False):
        found |= (before > least) & (least < after)
    return found


@dataclass(frozen=True, eq=False)
class Descended:
    """Where a descent ended.

    Attributes:
        value: Where each sample ended.
        reached: What was watched there.
        converged: Whether that is at most the target.
    """

    value: Latents
    reached: Float[Tensor, " sample"]
    converged: Bool[Tensor, " sample"]


Loss = Callable[[Tensor, Int[Tensor, " row"]], tuple[Tensor, Tensor]]
"""Takes values and the samples they are of; returns what is minimized and what is watched, each."""


def descend(
    begin: Latents,
    loss: Loss,
    *,
    target: float,
    rounds: int,
    make: Callable[[Tensor], torch.optim.Optimizer],
    best: bool = False,
) -> Descended:
    """Descend from each sample's value until what is watched is at most a target.

    A sample that has arrived stays, and is not evaluated again; no sample's way depends on another.

    Args:
        begin: Where to begin, one row a sample.
        loss: What is minimized and what is watched; evaluated once a round, and once at the end.
        target: Largest value of what is watched at which a sample has arrived.
        rounds: Most updates.
        make: Makes the optimizer, which must act on each coordinate alone.
        best: Whether a sample that has not arrived ends where it came closest, and not where it
            came last.
    """
    leaf = begin.detach().clone().requires_grad_()
    optimizer = make(leaf)
    value = begin.detach().clone()
    reached = torch.full((len(begin),), torch.inf, device=begin.device)
    left = torch.arange(len(begin), device=begin.device)
    for turn in range(rounds + 1):
        with torch.set_grad_enabled(turn < rounds):
            minimized, watched = loss(leaf[left], left)
            here = watched.detach().float()
            going = ~(here <= target)
            total = minimized[going].sum()
        better = here < reached[left] if best else torch.ones_like(left, dtype=torch.bool)
        value[left[better]] = leaf.detach()[left[better]]
        reached[left[better]] = here[better]
        if turn == rounds or not bool(going.any()):
            break
        (leaf.grad,) = torch.autograd.grad(total, leaf)
        optimizer.step()
        left = left[going]
    return Descended(value, reached, reached <= target)


def generators(start: Start, name: str) -> list[torch.Generator]:
    """Return a generator a sample, apart from the one its noise is drawn from.

    Args:
        start: What is known before the first call.
        name: What is drawn; another name draws other numbers.

    Raises:
        InputError: If the samples have no generators.
    """
    if len(start.seeds) != len(start.prompts):
        raise InputError("an intervention draws numbers; pass `generators` to `sample`")
    return generators_of([seed_of(seed, name) for seed in start.seeds])


def inserted(start: Start, name: str, words: Sequence[Sequence[str]], count: int) -> Condition:
    """Return the conditions of prompts in which words are inserted at random places.

    Args:
        start: What is known before the first call.
        name: What is drawn.
        words: Words of each sample's choice.
        count: How many are inserted, one after the other.

    Source: Somepalli et al. 2023, the authors' code: uniform among all gaps, both ends included.
    """
    texts: list[str] = []
    for prompt, choice, generator in zip(
        start.prompts, words, generators(start, name), strict=True
    ):
        parts = prompt.split(" ")
        for _ in range(count):
            word = choice[_below(len(choice), generator)]
            parts.insert(_below(len(parts) + 1, generator), word)
        texts.append(" ".join(parts))
    return start.encode(texts)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
