r"""A probe calls the network off the sampling path, on states of a stated law.

Formulas, at a level (alpha, sigma) in the unit form::

    forward    x = alpha·target + sigma·eps          the law of training
    noise      x = eps                               pure noise, whatever the level says
    gap(x)     eps_c(x) - eps_u(x)
    jvp        d/dh gap(x + h·direction) at h = 0
    curvature  diagonal of d gap / dx,   mean over k of v_k ⊙ (d gap / dx)ᵀ v_k,   v_k random signs
    drift      max over k <= K of ||M^k(y) - y|| / ||y||,   M(y) = x0_hat(alpha·y) at a fixed level
    denoise    x <- alpha'·x0_g + sigma'·eps_g, from level to level

The three input laws (these two and the generated path) are never mixed.

Contents: `forward_noised`, `pure_noise`, `gap`, `gap_jvp`, `gap_difference`, `square_gradient`,
`gap_curvature`, `diagonal`, `gap_in_condition`, `divergence`, `drift`, `denoise`,
`predict`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mnemoscope.core.level import Level
from mnemoscope.core.predict import Prediction, combine, shown
from mnemoscope.core.record import Call, Point, Recorder, Trajectory
from mnemoscope.errors import ModelError
from mnemoscope.sampling.condition import Condition, cat
from mnemoscope.sampling.loop import Denoiser, Latents


def predict(denoiser: Denoiser, x: Latents, point: Point, condition: Condition) -> Prediction:
    """Return what the network says of states in the unit form.

    Args:
        denoiser: The bare network; it is shown the states in its own form.
        x: States, unit form.
        point: Where; its level in the unit form.
        condition: What it is conditioned on, one row a state.

    Source: ours; see `core.predict`.
    """
    raw = denoiser(shown(denoiser.kind, x, point.level), point.timestep, condition)
    return Prediction.from_raw(denoiser.kind, raw, x, point.level)


def _branches(
    denoiser: Denoiser, x: Latents, point: Point, cond: Condition, uncond: Condition
) -> tuple[Prediction, Prediction]:
    both = predict(denoiser, torch.cat([x, x]), point, cat([uncond, cond]))
    half = len(x)
    return (
        Prediction(both.x0[:half], both.eps[:half]),
        Prediction(both.x0[half:], both.eps[half:]),
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
        recorder(Call(point=point, x=x, cond=c, uncond=u, guided=absent))
    return recorder.trajectory(x_T=noise)


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
        A tape whose x_T is the noise; x_0 and v_g are NaN, for there is no path and no guidance.

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
        A tape whose x_T is the noise; x_0 and v_g are NaN, for there is no path and no guidance.

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
    point = point.to(x)
    # Fused attention has no forward-mode derivative on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        both: Any = torch.func.jvp(
            lambda state: gap(denoiser, state, point, cond, uncond), (x,), (direction,)
        )
    value, derivative = both
    return value, derivative


def gap_difference(
    denoiser: Denoiser,
    x: Latents,
    point: Point,
    cond: Condition,
    uncond: Condition,
    direction: Latents,
    value: Latents,
) -> Latents:
    """Estimate the gap's directional derivative from two evaluations.

    Args:
        denoiser: The bare network.
        x: States, unit form.
        point: Where.
        cond: Encoded prompts.
        uncond: Encoded empty prompts.
        direction: Direction of the derivative, of the shape of `x`.
        value: The gap at `x`.

    Returns:
        (gap(x + h·u) - value)·||direction|| / h for the unit vector u along the direction.

    Source: ours; forward difference with h = 0.01·sqrt(d), above the rounding of float32.
    """
    long = (-1, *[1] * (x.ndim - 1))
    length = direction.flatten(1).norm(dim=1).reshape(long)
    h = 0.01 * x[0].numel() ** 0.5
    with torch.no_grad():
        moved = gap(denoiser, x + h * direction / length.clamp_min(1e-30), point, cond, uncond)
    return (moved - value) * length / h


def square_gradient(denoiser: Denoiser, x: Latents, point: Point, condition: Condition) -> Latents:
    """Return the gradient of ||eps||² / 2 in the state under one condition, Jᵀ·eps.

    Source: reverse-mode differentiation.
    """
    with torch.enable_grad():
        state = x.detach().requires_grad_()
        eps = predict(denoiser, state, point, condition).eps
        return torch.autograd.grad(eps.square().sum() / 2, state)[0]


def gap_curvature(
    denoiser: Denoiser,
    x: Latents,
    point: Point,
    cond: Condition,
    uncond: Condition,
    signs: Float[Tensor, "probe sample *latent"],
) -> Latents:
    """Estimate the diagonal of the gap's Jacobian in the state.

    Args:
        denoiser: The bare network.
        x: States, unit form.
        point: Where.
        cond: Encoded prompts.
        uncond: Encoded empty prompts.
        signs: Random vectors of -1 and 1.

    Returns:
        The diagonal; sigma times the diagonal of the difference of the negative Hessians.

    Source: Hutchinson 1990; Bekas et al. 2007 for the diagonal.
    """
    return diagonal(lambda state: gap(denoiser, state, point, cond, uncond), x, signs)


def diagonal(
    of: Callable[[Latents], Latents], x: Latents, signs: Float[Tensor, "probe sample *latent"]
) -> Latents:
    """Estimate the diagonal of the Jacobian of a map of states.

    Args:
        of: The map.
        x: States.
        signs: Random vectors of -1 and 1.

    Source: Hutchinson 1990; Bekas et al. 2007 for the diagonal.
    """
    with torch.enable_grad():
        state = x.detach().requires_grad_()
        value = of(state)
        total = torch.zeros_like(x)
        for k, v in enumerate(signs):
            more = k + 1 < len(signs)
            along = torch.autograd.grad((value * v).sum(), state, retain_graph=more)[0]
            total += v * along
    return total / len(signs)


def gap_in_condition(
    denoiser: Denoiser, x: Latents, point: Point, cond: Condition, uncond: Latents
) -> Float[Tensor, "sample token feature"]:
    """Return the gradient of each sample's gap norm in the embeddings of its own tokens.

    Args:
        denoiser: The bare network.
        x: States, unit form.
        point: Where.
        cond: Encoded prompts.
        uncond: Unconditional noise estimates at `x`, which do not depend on the prompt.

    Returns:
        d ||eps_c - eps_u|| / d e, e the embedding of each token.

    Raises:
        ModelError: If the network is not conditioned on tokens.

    Source: Wen et al. 2024, eq. 4, on one row and at one state.
    """
    before = cond.embedding
    if before is None:
        raise ModelError("this model is not conditioned on tokens; there is no gradient in them")
    with torch.enable_grad():
        embedding = before.detach().requires_grad_()
        eps = predict(denoiser, x, point, cond.embedded(embedding)).eps
        size = (eps - uncond).flatten(1).norm(dim=1)
        return torch.autograd.grad(size.sum(), embedding)[0]


def divergence(
    denoiser: Denoiser, x: Latents, point: Point, condition: Condition, signs: Latents
) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]:
    """Estimate the trace of d eps / dx under one condition.

    Args:
        denoiser: The bare network.
        x: States, unit form.
        point: Where.
        condition: Encoded prompts.
        signs: Random vector of -1 and 1 a sample.

    Returns:
        The trace, and ||eps||².

    Source: Hutchinson 1990.
    """
    point = point.to(x)

    def estimate(state: Tensor) -> Tensor:
        return predict(denoiser, state, point, condition).eps

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        both: Any = torch.func.jvp(estimate, (x,), (signs,))
    value, along = both
    trace = (signs * along).flatten(1).double().sum(dim=1)
    return trace, value.flatten(1).double().square().sum(dim=1)


@torch.no_grad()
def drift(
    denoiser: Denoiser, clean: Latents, point: Point, condition: Condition, iterations: int
) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample *place"]]:
    """Denoise a clean image again and again at a fixed level.

    Args:
        denoiser: The bare network.
        clean: Clean latents.
        point: Level and time pretended.
        condition: Encoded prompts.
        iterations: Repetitions.

    Returns:
        The largest distance to the image on the way, relative to its norm; and the same for the
        channels of each place.

    Source: López Amado, Fumero & Locatello 2026, definition 3 and appendix F.
    """
    size, sizes = clean.flatten(1).norm(dim=1), clean.norm(dim=1)
    y, farthest, each = clean, torch.zeros_like(size), torch.zeros_like(sizes)
    for _ in range(iterations):
        y = predict(denoiser, point.level.alpha.to(y) * y, point, condition).x0
        moved = y - clean
        farthest = torch.maximum(farthest, moved.flatten(1).norm(dim=1) / size)
        each = torch.maximum(each, moved.norm(dim=1) / sizes)
    return farthest, each


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    x: Latents,
    points: Sequence[Point],
    final: Level,
    cond: Condition,
    uncond: Condition,
    guidance: float,
) -> Latents:
    """Lead states down to the final level, without injecting noise.

    Args:
        denoiser: The bare network.
        x: States at the first point, unit form.
        points: Where the network is called.
        final: Level that the last update leads to, unit form.
        cond: Encoded prompts.
        uncond: Encoded empty prompts.
        guidance: Guidance scale.

    Returns:
        States at the final level, unit form.

    Source: Song et al. 2021 (DDIM), eq. 12 with eta = 0; guidance as in `core.predict.combine`.
    """
    levels = [*(point.level for point in points[1:]), final]
    for point, level in zip(points, levels, strict=True):
        u, c = _branches(denoiser, x, point, cond, uncond)
        x0, eps = combine(u.x0, c.x0, guidance), combine(u.eps, c.eps, guidance)
        x = level.alpha.to(x) * x0 + level.sigma.to(x) * eps
    return x
