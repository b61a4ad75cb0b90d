r"""A record is what was seen while sampling: one `Call` a network call, one `Trajectory` a batch.

States are recorded in the unit form (alpha² + sigma² = 1; see `core.level`), so a
variance-exploding sampler, a variance-preserving one and a flow leave the same record. Predictions
are recorded before any clipping, as v, which keeps clean and noise estimate without a division::

    v  = alpha·eps - sigma·x0        x0  = alpha·x - sigma·v        eps = sigma·x + alpha·v

At pure noise (alpha = 0) eps is the state whatever the network says, and x0 = -v.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.core.predict import Prediction

Branch = Literal["u", "c", "g"]
"""Unconditional, conditional, guided: the last is what the sampler was given."""


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

    def to(self, like: Tensor) -> "Point":
        """Return the same point with its level in the precision and on the device of a tensor."""
        return Point(self.call, self.timestep, Level(*(part.to(like) for part in self.level)))


@dataclass(frozen=True)
class Call:
    """What anyone may look at at one network call; nobody may write.

    Attributes:
        point: Where on the path.
        x: State the network was shown, in the unit form.
        cond: Under the prompt.
        uncond: Under the empty prompt; None for a model without an unconditional branch.
        guided: What the sampler was given.
        others: Under the further conditions of an intervention, by branch.
    """

    point: Point
    x: Float[Tensor, "sample *latent"]
    cond: Prediction
    uncond: Prediction | None
    guided: Prediction
    others: Mapping[str, Prediction] = field(default_factory=dict[str, Prediction])


@dataclass(frozen=True)
class Trajectory:
    """The tape of one batch, kept in memory only until it is reduced; float32.

    Attributes:
        level: Levels of the calls, unit form.
        x: States at the calls.
        v_u: Unconditional predictions; NaN for a model without an unconditional branch.
        v_c: Conditional predictions.
        v_g: Predictions the sampler was given; NaN for a probe, which has no path.
        x_T: Initial noise: the state at the first call, or what a probe drew.
        x_0: Final sample; NaN for a probe and for a path that was not finished.
    """

    level: Level
    x: Float[Tensor, "sample call d"]
    v_u: Float[Tensor, "sample call d"]
    v_c: Float[Tensor, "sample call d"]
    v_g: Float[Tensor, "sample call d"]
    x_T: Float[Tensor, "sample d"]
    x_0: Float[Tensor, "sample d"]

    def v(self, branch: Branch) -> Float[Tensor, "sample call d"]:
        """Return the predictions of a branch."""
        return getattr(self, f"v_{branch}")

    def eps(self, branch: Branch) -> Float[Tensor, "sample call d"]:
        """Return the noise estimates of a branch, sigma·x + alpha·v."""
        alpha, sigma = self._weights()
        return sigma * self.x + alpha * self.v(branch)

    def x0(self, branch: Branch) -> Float[Tensor, "sample call d"]:
        """Return the clean estimates of a branch, alpha·x - sigma·v."""
        alpha, sigma = self._weights()
        return alpha * self.x - sigma * self.v(branch)

    def _weights(self) -> tuple[Tensor, Tensor]:
        alpha, sigma = (part.to(self.x)[:, None] for part in self.level)
        return alpha, sigma

    @property
    def calls(self) -> int:
        """Return the number of calls."""
        return self.x.shape[1]

    def take(self, samples: Bool[Tensor, " sample"] | Int[Tensor, " kept"]) -> "Trajectory":
        """Return the tape of some of the samples."""
        if samples.dtype == torch.bool and bool(samples.all()):
            return self
        here = samples.to(self.x.device)
        return replace(self, **{name: getattr(self, name)[here] for name in _PER_SAMPLE})


_PER_SAMPLE = tuple(f.name for f in fields(Trajectory) if f.name != "level")


def join(tapes: list[Trajectory]) -> Trajectory:
    """Return the tape of several batches of the same calls, one after the other."""
    if len(tapes) == 1:
        return tapes[0]
    return replace(
        tapes[0],
        **{name: torch.cat([getattr(tape, name) for tape in tapes]) for name in _PER_SAMPLE},
    )


def _flat(latents: Tensor) -> Tensor:
    return latents.detach().flatten(1).float()


@dataclass
class Recorder:
    """Collect the calls of one batch; pass it to `sample` as an observer.

    What it collects stays on the device. Memory is 4 floats a latent coordinate and call: 0.8 MB a
    sample for a 16x16x4 latent and 50 steps, 13 MB for Stable Diffusion's.
    """

    calls: list[tuple[Level, Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, call: Call) -> None:
        """Take one call."""
        alpha, sigma = (part.to(call.x) for part in call.point.level)

        def v(prediction: Prediction | None) -> Tensor:
            if prediction is None:
                return torch.full_like(cond, torch.nan)
            return _flat(alpha * prediction.eps - sigma * prediction.x0)

        cond = _flat(alpha * call.cond.eps - sigma * call.cond.x0)
        guided = cond if call.guided is call.cond else v(call.guided)
        self.calls.append((call.point.level, _flat(call.x), v(call.uncond), cond, guided))

    def trajectory(
        self,
        x_0: Float[Tensor, "sample *latent"] | None = None,
        x_T: Float[Tensor, "sample *latent"] | None = None,
    ) -> Trajectory:
        """Return the tape and forget the calls.

        Args:
            x_0: Final sample; NaN where there is none.
            x_T: Initial noise; the state at the first call where not given.
        """
        levels, x, v_u, v_c, v_g = zip(*self.calls, strict=True)
        self.calls = []
        return Trajectory(
            level=Level(*(torch.stack(parts) for parts in zip(*levels, strict=True))),
            x=torch.stack(x, dim=1),
            v_u=torch.stack(v_u, dim=1),
            v_c=torch.stack(v_c, dim=1),
            v_g=torch.stack(v_g, dim=1),
            x_T=x[0] if x_T is None else _flat(x_T),
            x_0=torch.full_like(x[0], torch.nan) if x_0 is None else _flat(x_0),
        )
