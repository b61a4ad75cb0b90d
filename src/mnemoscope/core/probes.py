r"""A probe calls the network off the sampling path, on states of a stated law.

Formulas, at a level (alpha, sigma) in the unit form::

    forward    x = alpha·target + sigma·eps          the law of training
    noise      x = eps                               pure noise, whatever the level says
    gap(x)     eps_c(x) - eps_u(x)
    jvp        d/dh gap(x + h·direction) at h = 0

The three input laws (these two and the generated path) are never mixed.

Contents: `forward_noised`, `pure_noise`, `gap`, `gap_jvp`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mnemoscope.core.noise import Level
from mnemoscope.core.predict import Prediction
from mnemoscope.core.record import Call, Point, Recorder, Trajectory
from mnemoscope.core.sample import Denoiser, Latents

Condition = Float[Tensor, "sample *feature"]


def _branches(
    denoiser: Denoiser, x: Latents, point: Point, cond: Condition, uncond: Condition
) -> tuple[Prediction, Prediction]:
    raw_u, raw_c = denoiser(torch.cat([x, x]), point.timestep, torch.cat([uncond, cond])).chunk(2)
    return (
        Prediction.from_raw(denoiser.kind, raw_u, x, point.level),
        Prediction.from_raw(denoiser.kind, raw_c, x, point.level),
    )


@torch.no_grad()
def _tape(
    denoiser: Denoiser,
    points: Sequence[Point],
    states: Sequence[Latents],
    noise: Latents,
    cond: Condition,
    uncond: Condition,
) -> Trajectory:
    recorder = Recorder()
    for point, x in zip(points, states, strict=True):
        u, c = _branches(denoiser, x, point, cond, uncond)
        absent = Prediction(torch.full_like(x, torch.nan), torch.full_like(x, torch.nan))
        recorder(Call(point=point, x=x, guidance=float("nan"), cond=c, uncond=u, guided=absent))
    return recorder.trajectory(torch.full_like(noise, torch.nan), x_T=noise)


def forward_noised(
    denoiser: Denoiser,
    points: Sequence[Point],
    target: Latents,
    noise: Latents,
    cond: Condition,
    uncond: Condition,
) -> Trajectory:
    """Call the network on the noised target at given points, with one noise a sample.

    Args:
        denoiser: The bare network.
        points: Where; levels in the unit form (see `core.sample.points_of`).
        target: Latents of the training image, one row a sample.
        noise: Unit normal noise, one row a sample.
        cond: Encoded prompts.
        uncond: Encoded empty prompts.

    Returns:
        A tape whose x_T is the noise; x_0 and eps_g are NaN, for there is no path and no guidance.

    Source: the input law of denoising training, Ho et al. 2020, eq. 14.
    """
    states = [
        point.level.alpha.to(noise) * target + point.level.sigma.to(noise) * noise
        for point in points
    ]
    return _tape(denoiser, points, states, noise, cond, uncond)


def pure_noise(
    denoiser: Denoiser,
    points: Sequence[Point],
    noise: Latents,
    cond: Condition,
    uncond: Condition,
) -> Trajectory:
    """Call the network on the same pure noise at every given point.

    Args:
        denoiser: The bare network.
        points: Where; levels in the unit form (see `core.sample.points_of`).
        noise: Unit normal noise, one row a sample.
        cond: Encoded prompts.
        uncond: Encoded empty prompts.

    Returns:
        A tape whose x_T is the noise; x_0 and eps_g are NaN, for there is no path and no guidance.

    Source: ours; the first call of a path, at every level.
    """
    return _tape(denoiser, points, [noise] * len(points), noise, cond, uncond)


def gap(
    denoiser: Denoiser, x: Latents, point: Point, cond: Condition, uncond: Condition
) -> Latents:
    """Return eps_c - eps_u at a state in the unit form; differentiable in the state."""
    u, c = _branches(denoiser, x, point, cond, uncond)
    return c.eps - u.eps


def gap_jvp(
    denoiser: Denoiser,
    x: Latents,
    point: Point,
    cond: Condition,
    uncond: Condition,
    direction: Latents,
) -> tuple[Latents, Latents]:
    """Return the gap and its directional derivative in the state.

    Args:
        denoiser: The bare network.
        x: States, unit form.
        point: Where.
        cond: Encoded prompts.
        uncond: Encoded empty prompts.
        direction: Direction of the derivative, of the shape of `x`.

    Returns:
        The gap, and d/dh gap(x + h·direction) at h = 0.

    Source: forward-mode differentiation (Griewank & Walther 2008, ch. 3).
    """
    point = Point(point.call, point.timestep, Level(*(part.to(x) for part in point.level)))
    # Fused attention has no forward-mode derivative on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        both: Any = torch.func.jvp(
            lambda state: gap(denoiser, state, point, cond, uncond), (x,), (direction,)
        )
    value, derivative = both
    return value, derivative
