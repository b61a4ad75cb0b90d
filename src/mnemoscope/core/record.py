r"""A record is what was seen while sampling: one `Call` a network call, one `Trajectory` a batch.

States are recorded in the unit form (alpha² + sigma² = 1; see `core.noise`), so a
variance-exploding sampler and a variance-preserving one leave the same record. Estimates are
recorded before any clipping.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.noise import Level
from mnemoscope.core.predict import Prediction


@dataclass(frozen=True)
class Point:
    """Where on the path a call stands.

    Attributes:
        call: Index of the call, from 0.
        timestep: What the network is fed as time.
        level: Level of the state, in the unit form, 0-d.
    """

    call: int
    timestep: Tensor
    level: Level


@dataclass(frozen=True)
class Call:
    """What anyone may look at at one network call; nobody may write.

    Attributes:
        point: Where on the path.
        x: State the network was shown, in the unit form.
        guidance: Guidance scale in force.
        cond: Prediction under the prompt.
        uncond: Prediction under the empty prompt; None for a model without one.
        guided: What the sampler was given.
    """

    point: Point
    x: Float[Tensor, "sample *latent"]
    guidance: float
    cond: Prediction
    uncond: Prediction | None
    guided: Prediction


@dataclass(frozen=True)
class Trajectory:
    """The tape of one batch, kept in memory only until it is reduced.

    Attributes:
        level: Levels of the calls, unit form.
        x: States at the calls.
        eps_u: Unconditional noise estimates; NaN for a model without an unconditional branch.
        eps_c: Conditional noise estimates.
        eps_g: Noise estimates the sampler was given.
        x_T: Initial noise: the state at the first call, or what a probe drew.
        x_0: Final sample; NaN for a probe, which has none.
    """

    level: Level
    x: Float[Tensor, "sample call d"]
    eps_u: Float[Tensor, "sample call d"]
    eps_c: Float[Tensor, "sample call d"]
    eps_g: Float[Tensor, "sample call d"]
    x_T: Float[Tensor, "sample d"]
    x_0: Float[Tensor, "sample d"]

    @property
    def x0_g(self) -> Float[Tensor, "sample call d"]:
        """Return the guided clean estimates, (x - sigma·eps_g) / alpha."""
        alpha, sigma = (part.to(self.x)[:, None] for part in self.level)
        return (self.x - sigma * self.eps_g) / alpha


def _flat(latents: Tensor) -> Tensor:
    return latents.detach().flatten(1).float().cpu()


@dataclass
class Recorder:
    """Collect the calls of one batch; pass it to `sample` as an observer.

    Memory is 4 floats a latent coordinate and call: 0.6 MB for a 16x16x4 latent and 50 steps in
    float32, 13 MB for Stable Diffusion's.
    """

    calls: list[tuple[Level, Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, call: Call) -> None:
        """Take one call."""
        cond = _flat(call.cond.eps)
        uncond = torch.full_like(cond, torch.nan) if call.uncond is None else _flat(call.uncond.eps)
        self.calls.append((call.point.level, _flat(call.x), uncond, cond, _flat(call.guided.eps)))

    def trajectory(
        self,
        x_0: Float[Tensor, "sample *latent"],
        x_T: Float[Tensor, "sample *latent"] | None = None,
    ) -> Trajectory:
        """Return the tape, given the final sample, and forget the calls.

        Args:
            x_0: Final sample.
            x_T: Initial noise; the state at the first call where not given.
        """
        levels, x, eps_u, eps_c, eps_g = zip(*self.calls, strict=True)
        self.calls = []
        return Trajectory(
            level=Level(*(torch.stack(parts) for parts in zip(*levels, strict=True))),
            x=torch.stack(x, dim=1),
            eps_u=torch.stack(eps_u, dim=1),
            eps_c=torch.stack(eps_c, dim=1),
            eps_g=torch.stack(eps_g, dim=1),
            x_T=x[0] if x_T is None else _flat(x_T),
            x_0=_flat(x_0),
        )
