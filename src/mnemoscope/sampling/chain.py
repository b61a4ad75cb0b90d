r"""A chain is several interventions in one, each acting on what those before it made.

Formulas, with `u` the unconditional raw output, g the guidance scale and A, B the guides::

    condition, noise, attention    B(A(...))
    guide                          B sees as conditional  c_A = u + (A(...) - u) / g,
                                   the one for which plain guidance says what A said

So a part that leaves the guide alone changes nothing there, and the order counts where two guide.
Branches are the parts' own: a part sees, beside "cond" and "uncond", none but those it asked for.

Contents: `Chain`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from mnemoscope.errors import InputError
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Attended, Intervention, Latents, Start, Step


@dataclass(frozen=True)
class Chain(Intervention):
    """Several interventions, one after the other.

    Attributes:
        parts: The interventions, in the order they act.
    """

    name: ClassVar[str] = "chain"
    source: ClassVar[str] = "ours"

    parts: tuple[Intervention, ...]

    def __post_init__(self) -> None:
        """Take over what the parts ask for.

        Raises:
            InputError: If there is only one.
        """
        if len(self.parts) < 2:
            raise InputError(f"a chain of {len(self.parts)} given; expected two or more")
        asked = tuple(
            _named(at, name) for at, part in enumerate(self.parts) for name in part.branches_asked
        )
        object.__setattr__(self, "branches_asked", asked)
        object.__setattr__(self, "memory", max(part.memory for part in self.parts))
        object.__setattr__(self, "together", any(part.together for part in self.parts))

    @property
    def calls_before(self) -> int:
        """Return what the parts cost before the path."""
        return sum(part.calls_before for part in self.parts)

    @property
    def attends(self) -> bool:
        """Return whether any part acts on attention."""
        return any(part.attends for part in self.parts)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of each part, by its place and name."""
        return {f"{at}:{part.name}": part.settings for at, part in enumerate(self.parts)}

    def __str__(self) -> str:
        """Return the parts with a plus between, as the command line takes them."""
        return "+".join(map(str, self.parts))

    def condition(self, start: Start) -> Condition:
        """Let each part change what the one before it made."""
        for part in self.parts:
            start = replace(start, cond=part.condition(start))
        return start.cond

    def branches(self, start: Start) -> Mapping[str, Condition]:
        """Return the parts' branches under names that tell them apart."""
        return {
            _named(at, name): condition
            for at, part in enumerate(self.parts)
            for name, condition in part.branches(start).items()
        }

    def noise(self, start: Start) -> Latents:
        """Let each part change what the one before it made."""
        for part in self.parts:
            start = replace(start, noise=part.noise(start))
        return start.noise

    def guide(self, step: Step) -> Latents:
        """Let each part guide with what the one before it said as the conditional output."""
        used = step.guided()
        for at, part in enumerate(self.parts):
            if type(part).guide is not Intervention.guide:
                used = part.guide(_seen(step, at, part))
                uncond = step.raw["uncond"]
                said = uncond + (used - uncond) / step.guidance
                step = replace(step, raw={**step.raw, "cond": said})
        return used

    def attention(
        self, logits: Float[Tensor, "row head query token"], at: Attended
    ) -> Float[Tensor, "row head query token"]:
        """Let each part change what the one before it made."""
        for place, part in enumerate(self.parts):
            if part.attends:
                names = tuple(_own(place, name) for name in at.branches)
                logits = part.attention(logits, replace(at, branches=names))
        return logits


def _named(at: int, branch: str) -> str:
    return f"{at}:{branch}"


def _own(at: int, branch: str) -> str:
    """Return the name a part knows a branch by; those of others keep their prefix."""
    return branch.removeprefix(f"{at}:")


def _seen(step: Step, at: int, part: Intervention) -> Step:
    """Return what a part sees of a call, earlier calls alike."""

    def own(one: Step) -> Step:
        return replace(one, raw={_own(at, name): raw for name, raw in one.raw.items()})

    kept = step.history[len(step.history) - part.memory :] if part.memory else ()
    start = None if step.start is None else own(step.start)
    return replace(own(step), history=tuple(map(own, kept)), start=start)
