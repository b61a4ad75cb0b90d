r"""Sampling carries an initial noise to a clean image along the calls of a scheduler.

Formula, with u and c the raw network outputs under the empty prompt and under the prompt::

    x_next = step(u + g·(c - u), t, x)        g > 1; one network call of 2B rows, uncond first
    x_next = step(c, t, x)                    g = 1; uncond in a call of its own, for the record

This is the only sampling loop of the package. It takes the same operations in the same order as
diffusers' `StableDiffusionPipeline`, so its final latents equal the pipeline's bit for bit.
`exact_path` runs a scheduler on the predictor that always knows the clean image.

Contents: `generators_of`, `initial_noise`, `points_of`, `sample`, `exact_path`.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemoscope.core.noise import Level, final_level, levels_of
from mnemoscope.core.predict import Kind, Prediction, combine, to_raw
from mnemoscope.core.record import Call, Point
from mnemoscope.errors import InputError, ModelError

Latents = Float[Tensor, "sample *latent"]


@runtime_checkable
class Denoiser(Protocol):
    """The bare network: no guidance, no scheduler, differentiable in the state."""

    @property
    def kind(self) -> Kind:
        """Return what the network was trained to output."""
        ...

    def __call__(
        self, x: Latents, timestep: Tensor, condition: Float[Tensor, "sample *feature"]
    ) -> Latents:
        """Return the raw output for states in the unit form."""
        ...


Observer = Callable[[Call], None]
Guide = Callable[[Latents, Latents, Point], Latents]
"""How the raw outputs (uncond, cond) are combined at a call."""


@dataclass(frozen=True)
class Sampled:
    """What a batch ended on.

    Attributes:
        latents: Final latents, in the scheduler's own scale (the unit form at a clean final state).
        nonfinite: Index of the first call with a number that is not finite; the number of calls if
            only the final latents have one; -1 where every number was finite.
    """

    latents: Latents
    nonfinite: Int[Tensor, " sample"]

    @property
    def ok(self) -> Bool[Tensor, " sample"]:
        """Return which samples stayed finite."""
        return self.nonfinite < 0


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a CPU generator a seed: a sample then depends on neither batch size nor device."""
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def initial_noise(
    generators: Sequence[torch.Generator],
    latent_shape: tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Latents:
    """Draw unit normal noise, one sample a generator.

    Args:
        generators: CPU generators; each is advanced.
        latent_shape: Shape of one sample.
        device: Where the noise is moved after it has been drawn on the CPU.
        dtype: Precision it is drawn in.

    Returns:
        Noise of mean 0 and variance 1; the scheduler's own scale is applied by `sample`.
    """
    drawn = [torch.randn((1, *latent_shape), generator=g, dtype=dtype) for g in generators]
    return torch.cat(drawn).to(device)


def points_of(scheduler: Any) -> list[Point]:
    """Return where the network will be called on the path, levels in the unit form.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called and no step taken.

    Returns:
        One point a call.
    """
    levels = levels_of(scheduler).unit()
    return [Point(i, t, levels.at(i)) for i, t in enumerate(scheduler.timesteps)]


def _step_arguments(
    scheduler: Any, generators: list[torch.Generator] | None, eta: float
) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"eta": eta, "generator": generators}
    return {name: value for name, value in offered.items() if name in accepted}


def _finite(latents: Tensor) -> Tensor:
    return torch.isfinite(latents).flatten(1).all(dim=1)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Latents,
    cond: Float[Tensor, "sample *feature"],
    uncond: Float[Tensor, "sample *feature"] | None,
    guidance: float,
    generators: list[torch.Generator] | None = None,
    *,
    observers: Sequence[Observer] = (),
    guide: Guide | None = None,
    eta: float = 0.0,
    calls: int | None = None,
) -> Sampled:
    """Sample a batch and show every network call to the observers.

    Args:
        denoiser: The bare network.
        scheduler: A diffusers scheduler on which `set_timesteps` has been called. It is copied, so
            the same one serves every batch.
        noise: Unit normal initial noise.
        cond: Encoded prompts, one row a sample.
        uncond: Encoded empty prompts, one row a sample; None for a model without such a branch.
        guidance: Guidance scale g >= 1; 1 samples from the conditional branch alone.
        generators: CPU generators of the noise a stochastic scheduler injects, one a sample.
        observers: Called with each `Call`.
        guide: Combines the raw outputs instead of classifier-free guidance.
        eta: Multiplies the standard deviation of injected noise where the scheduler knows it.
        calls: Stop after this many network calls, before the update that the last of them would
            make; the whole path where not given.

    Returns:
        Final latents, and which samples stayed finite. One that did not disturbs no other.

    Raises:
        InputError: If the guidance scale is below 1.
        ModelError: If guidance is asked of a model without an unconditional branch.

    Source: the operations of diffusers' StableDiffusionPipeline, in the same order.
    """
    if guidance < 1:
        raise InputError(
            f"guidance scale {guidance} is below 1; give 1 (the prompt alone) or more, "
            "or pass a `guide` that combines the branches in another way"
        )
    both = guidance > 1 or guide is not None
    if both and uncond is None:
        raise ModelError("this model has no unconditional branch; sample it with guidance 1")
    scheduler = copy.deepcopy(scheduler)
    levels = levels_of(scheduler)
    arguments = _step_arguments(scheduler, generators, eta)
    timesteps = scheduler.timesteps
    nonfinite = torch.full((len(noise),), -1, dtype=torch.int64, device=noise.device)

    def mark(finite: Tensor, call: int) -> Tensor:
        return torch.where((nonfinite < 0) & ~finite, call, nonfinite)

    x = noise * scheduler.init_noise_sigma
    for i, t in enumerate(timesteps):
        level = levels.at(i)
        point = Point(i, t, level.unit())
        raw_u: Tensor | None = None
        if both and uncond is not None:
            rows = scheduler.scale_model_input(torch.cat([x] * 2), t)
            raw_u, raw_c = denoiser(rows, t, torch.cat([uncond, cond])).chunk(2)
            if guide is None:
                used = combine(raw_u, raw_c, guidance)
            else:
                used = guide(raw_u, raw_c, point)
        else:
            rows = scheduler.scale_model_input(x, t)
            used = raw_c = denoiser(rows, t, cond)
            if observers and uncond is not None:
                raw_u = denoiser(rows, t, uncond)
        nonfinite = mark(_finite(used), i)
        if raw_u is not None:
            nonfinite = mark(_finite(raw_u), i)
        if observers:
            seen = Prediction.from_raw(denoiser.kind, raw_c, x, level)
            call = Call(
                point=point,
                x=x / level.scale.to(x),
                guidance=guidance,
                cond=seen,
                uncond=None
                if raw_u is None
                else Prediction.from_raw(denoiser.kind, raw_u, x, level),
                guided=seen
                if used is raw_c
                else Prediction.from_raw(denoiser.kind, used, x, level),
            )
            for observer in observers:
                observer(call)
        if calls is not None and i + 1 >= calls:
            break
        x = scheduler.step(used, t, x, **arguments, return_dict=False)[0]
    return Sampled(x, mark(_finite(x), len(timesteps)).cpu())


@dataclass(frozen=True)
class ExactPath:
    """What a scheduler makes of a predictor that always knows the clean image.

    Every state is w0·x + wT·x_T, with x the clean image and x_T the state at the first call.

    Attributes:
        level: Level of each state, the final one last, unit form.
        w0: Weight of the clean image.
        wT: Weight of the initial state.
    """

    level: Level
    w0: Float[Tensor, " state"]
    wT: Float[Tensor, " state"]


def _double(scheduler: Any) -> Any:
    """Return a copy that computes in float64 and neither clips nor thresholds."""
    fresh = copy.deepcopy(scheduler)
    for name, value in vars(fresh).items():
        if isinstance(value, Tensor) and value.is_floating_point() and name != "timesteps":
            setattr(fresh, name, value.double())
    fresh.timesteps = fresh.timesteps.cpu()
    affine = {name: False for name in ("clip_sample", "thresholding") if name in fresh.config}
    fresh.register_to_config(**affine)
    return fresh


def exact_path(scheduler: Any) -> ExactPath:
    """Run a scheduler on the exact unguided predictor, from pure noise.

    With the predictor's clean estimate fixed at x, every scheduler is affine in x, x_T and the
    injected noise. Its coefficients are read off two coordinates, one with (x, x_T) = (1, 0), one
    with (0, 1); injected noise is removed by subtracting a run on (0, 0) that draws the same noise.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called and no step taken.

    Returns:
        The weights at every state, the final one last. For DDIM they are
        w0 = alpha_t - alpha_T·sigma_t/sigma_T and wT = sigma_t/sigma_T.

    Source: the paper's reference curve for DDIM, taken from the scheduler itself; ours beyond DDIM.
    """
    levels, final = levels_of(scheduler), final_level(scheduler)
    kind: Kind = kind_of(scheduler)

    def run(clean: Tensor, noise: Tensor) -> Tensor:
        fresh = _double(scheduler)
        arguments = _step_arguments(fresh, generators_of([0]), 0.0)
        x = noise * float(fresh.init_noise_sigma)
        states = [x / levels.at(0).scale]
        for i, t in enumerate(fresh.timesteps):
            level = levels.at(i)
            eps = (x - level.alpha * clean) / level.sigma
            raw = to_raw(kind, Prediction(clean.expand_as(x), eps), level)
            fresh.scale_model_input(x, t)
            x = fresh.step(raw, t, x, **arguments, return_dict=False)[0].double()
            scale = levels.at(i + 1).scale if i + 1 < len(levels.alpha) else final.scale
            states.append(x / scale)
        return torch.cat(states)

    clean = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    nothing = torch.zeros_like(clean)
    w0, wT = (run(clean, noise) - run(nothing, nothing)).unbind(dim=1)
    unit = levels.unit()
    level = Level(*(torch.cat([a, b.reshape(1)]) for a, b in zip(unit, final.unit(), strict=True)))
    return ExactPath(level, w0, wT / wT[0])


KIND_OF_CONFIG: dict[str, Kind] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def kind_of(scheduler: Any) -> Kind:
    """Return the prediction kind a scheduler is configured for.

    Raises:
        ModelError: If its configuration names none that is known.
    """
    given = str(scheduler.config.get("prediction_type", "epsilon"))
    if given not in KIND_OF_CONFIG:
        raise ModelError(
            f"prediction_type {given!r} is not known; expected one of {', '.join(KIND_OF_CONFIG)}"
        )
    return KIND_OF_CONFIG[given]
