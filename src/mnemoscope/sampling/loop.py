r"""The loop carries an initial noise to a clean image along the calls of a scheduler.

Formula, with u and c the raw network outputs under the empty prompt and under the prompt::

    x_next = step(guide(u, c), t, x)      guide = u + g·(c - u) where no intervention is given
    x_next = step(c, t, x)                g = 1; u in a call of its own, for the record alone

This is the only sampling loop of the package. Each network is called as its host pipeline calls it
(all branches in one call or one after the other, in which order), so final latents equal the
unmodified pipeline's bit for bit.

Contents: `Denoiser`, `generators_of`, `initial_noise`, `points_of`, `sample`, `kind_of`.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemoscope.core.level import Level, levels_of
from mnemoscope.core.predict import Kind, Prediction, shown
from mnemoscope.core.record import Call, Point
from mnemoscope.errors import InputError, ModelError
from mnemoscope.sampling.attention import Watch, Wheel, steered
from mnemoscope.sampling.condition import Condition, cat
from mnemoscope.sampling.hooks import Decode, Encode, Intervention, Start, Step, ask, checked

Latents = Float[Tensor, "sample *latent"]


@runtime_checkable
class Denoiser(Protocol):
    """The bare network: no guidance, no scheduler, differentiable in state and condition."""

    @property
    def kind(self) -> Kind:
        """Return what the network was trained to output."""
        ...

    def __call__(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        """Return the raw output for states in the form the network is shown (`predict.shown`)."""
        ...


class Manner:
    """How a host pipeline calls its network; a denoiser may say otherwise by the same names.

    Attributes:
        joint: Whether all branches go through the network in one call.
        order: Branches in the order they are called or joined.
        network: The module in which cross-attention is looked for; None for a closed form.
    """

    joint: ClassVar[bool] = True
    order: ClassVar[tuple[str, ...]] = ("uncond", "cond")
    network: Any = None


def manner(denoiser: Denoiser, name: str) -> Any:
    """Return how a denoiser is to be called; see `Manner`."""
    return getattr(denoiser, name, getattr(Manner, name))


Observer = Callable[[Call], None]
Progress = Callable[[int], None]
"""Told after every network call how many rows it evaluated."""


@dataclass(frozen=True)
class Branches:
    """What the rows of a batch are conditioned on.

    Attributes:
        cond: The prompts, one row a sample.
        uncond: The empty prompt, one row a sample; None for a model without such a branch.
        prompts: The texts, one a sample, which interventions are told.
        end: Position of the end token of each prompt; None where it is of no interest.
        groups: Number of each sample's prompt; None where it is of no interest.
        words: Tells the text of every token, for an intervention that draws some.
    """

    cond: Condition
    uncond: Condition | None = None
    prompts: tuple[str, ...] = ()
    end: Int[Tensor, " sample"] | None = None
    groups: Int[Tensor, " sample"] | None = None
    words: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class Sampled:
    """What a batch ended on.

    Attributes:
        latents: Final latents, in the scheduler's own scale (the unit form at a clean final state).
        nonfinite: Index of the first call with a number that is not finite; the number of calls if
            only the final latents have one; -1 where every number was finite.
        before: Network calls an intervention made for each sample before the path; a gradient
            counts as two.
    """

    latents: Latents
    nonfinite: Int[Tensor, " sample"]
    before: Int[Tensor, " sample"]

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


def start_scale(scheduler: Any) -> float:
    """Return what a scheduler multiplies unit noise by; flow schedulers start from it as it is."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def scaled(scheduler: Any, x: Latents, timestep: Tensor) -> Latents:
    """Return a state as the scheduler shows it to a network; flow schedulers have no such step."""
    if not hasattr(scheduler, "scale_model_input"):
        return x
    return scheduler.scale_model_input(x, timestep)


def step_arguments(
    scheduler: Any, generators: list[torch.Generator] | None, eta: float
) -> dict[str, Any]:
    """Return those of `eta` and `generator` that the scheduler's step takes."""
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"eta": eta, "generator": generators}
    return {name: value for name, value in offered.items() if name in accepted}


def finite(latents: Tensor) -> Bool[Tensor, " sample"]:
    """Return which samples are finite in every coordinate."""
    return torch.isfinite(latents).flatten(1).all(dim=1)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Latents,
    branches: Branches,
    guidance: float,
    generators: list[torch.Generator] | None = None,
    *,
    observers: Sequence[Observer] = (),
    intervention: Intervention | None = None,
    encode: Encode | None = None,
    decode: Decode | None = None,
    eta: float = 0.0,
    calls: int | None = None,
    known: Latents | None = None,
    seen: Watch | None = None,
) -> Sampled:
    """Sample a batch and show every network call to the observers.

    Args:
        denoiser: The bare network.
        scheduler: A diffusers scheduler on which `set_timesteps` has been called. It is copied, so
            the same one serves every batch.
        noise: Unit normal initial noise.
        branches: What it is conditioned on.
        guidance: Guidance scale g >= 1; 1 samples from the conditional branch alone.
        generators: CPU generators of the noise a stochastic scheduler injects, one a sample.
        observers: Called with each `Call`; they write nothing.
        intervention: Steers at its hooks; plain guidance where not given.
        encode: Turns prompts into conditions, for an intervention that asks for it.
        decode: Turns clean latents into pictures, for one that looks at them.
        eta: Multiplies the standard deviation of injected noise where the scheduler knows it.
        calls: Stop after this many network calls, before the update that the last of them would
            make; the whole path where not given.
        known: Raw unconditional output at the first call, where it is known already.
        seen: Watch of the network's cross-attention, which looks at the prompts' rows.

    Returns:
        Final latents, and which samples stayed finite. One that did not disturbs no other.

    Raises:
        InputError: If the guidance scale is below 1, or a hook returns what cannot be used.
        ModelError: If guidance is asked of a model without an unconditional branch.

    Source: the operations of diffusers' pipelines, in the same order.
    """
    if guidance < 1:
        raise InputError(
            f"guidance scale {guidance} is below 1; give 1 (the prompt alone) or more, "
            "or an intervention that combines the branches in another way"
        )
    both = guidance > 1 or intervention is not None
    if both and branches.uncond is None:
        raise ModelError("this model has no unconditional branch; sample it with guidance 1")
    scheduler = copy.deepcopy(scheduler)
    levels = levels_of(scheduler)
    before = torch.zeros(len(noise), dtype=torch.int64)
    if intervention is None:
        conditions = {"cond": branches.cond}
    else:
        start = _start(
            denoiser, scheduler, noise, branches, guidance, generators, encode, decode, before
        )  # fmt: skip
        noise, conditions = _prepared(intervention, start)
    if branches.uncond is not None and (both or observers):
        conditions["uncond"] = branches.uncond
    arguments = step_arguments(scheduler, generators, eta)
    timesteps = scheduler.timesteps
    nonfinite = torch.full((len(noise),), -1, dtype=torch.int64, device=noise.device)
    history: tuple[Step, ...] = ()
    first: Step | None = None

    def mark(fine: Tensor, call: int) -> Tensor:
        return torch.where((nonfinite < 0) & ~fine, call, nonfinite)

    x = noise * start_scale(scheduler)
    with steered(manner(denoiser, "network"), intervention) as wheel:
        network = _Network(denoiser, conditions, both, known, wheel, branches.end, seen)
        for i, t in enumerate(timesteps):
            level = levels.at(i)
            point = Point(i, t, level.unit())
            raw = network(scaled(scheduler, x, t), t, i)
            unit = x / level.scale.to(x)
            used = raw["cond"]
            if both:
                step = Step(
                    point,
                    len(timesteps),
                    unit,
                    denoiser.kind,
                    raw,
                    guidance,
                    history,
                    branches.groups,
                    first,
                    decode,
                )
                if intervention is None:
                    used = step.guided()
                else:
                    used = checked(intervention, "guide", ask(intervention, "guide", step), used)
                    first = first or step
                    if intervention.memory:
                        history = (*history, step)[-intervention.memory :]
            # A sum is finite only where all of its parts are.
            nonfinite = mark(finite(sum(raw.values(), used)), i)
            if observers:
                call = _seen(denoiser.kind, point, x, unit, level, raw, used)
                for observer in observers:
                    observer(call)
            if calls is not None and i + 1 >= calls:
                break
            x = scheduler.step(used, t, x, **arguments, return_dict=False)[0]
    return Sampled(x, mark(finite(x), len(timesteps)).cpu(), before)


@dataclass
class _Network:
    """The calls of a denoiser in the manner of its host, all branches at one state.

    Args:
        denoiser: The bare network.
        conditions: What it is conditioned on, by branch.
        both: Whether the sampler needs every branch, and not the prompt's alone.
        known: Raw unconditional output at the first call, where it is known already.
        wheel: What acts on attention.
        end: Position of the end token of each sample's prompt.
        seen: Watch that looks at the prompts' rows.
    """

    denoiser: Denoiser
    conditions: Mapping[str, Condition]
    both: bool
    known: Latents | None
    wheel: Wheel | None
    end: Int[Tensor, " sample"] | None
    seen: Watch | None
    _joined: dict[tuple[str, ...], Condition] = field(
        default_factory=dict[tuple[str, ...], Condition], init=False
    )

    def __call__(self, rows: Latents, timestep: Tensor, call: int) -> dict[str, Latents]:
        """Return the raw outputs by branch."""
        raw = {} if self.known is None or call else {"uncond": self.known}
        wanted = [name for name in self.conditions if name not in raw]
        order = [name for name in manner(self.denoiser, "order") if name in wanted]
        order += [name for name in wanted if name not in order]
        together = self.both and manner(self.denoiser, "joint")
        for group in [order] if together else [[name] for name in order]:
            if self.wheel is not None:
                self.wheel.turn(call, group, len(rows), self.end)
            if self.seen is not None:
                at = group.index("cond") * len(rows) if "cond" in group else None
                self.seen.rows = None if at is None else slice(at, at + len(rows))
            out = self.denoiser(
                torch.cat([rows] * len(group)) if len(group) > 1 else rows,
                timestep,
                self._condition(tuple(group)),
            )
            raw |= dict(zip(group, out.chunk(len(group)), strict=True))
            if self.seen is not None:
                self.seen.finish()
        return raw

    def _condition(self, group: tuple[str, ...]) -> Condition:
        if group not in self._joined:
            parts = [self.conditions[name] for name in group]
            self._joined[group] = cat(parts) if len(parts) > 1 else parts[0]
        return self._joined[group]


def _seen(
    kind: Kind,
    point: Point,
    x: Latents,
    unit: Latents,
    level: Level,
    raw: Mapping[str, Latents],
    used: Latents,
) -> Call:
    of = {name: Prediction.from_raw(kind, part, x, level) for name, part in raw.items()}
    cond = of.pop("cond")
    guided = cond if used is raw["cond"] else Prediction.from_raw(kind, used, x, level)
    return Call(point, unit, cond, of.pop("uncond", None), guided, of)


def _start(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Latents,
    branches: Branches,
    guidance: float,
    generators: Sequence[torch.Generator] | None,
    encode: Encode | None,
    decode: Decode | None,
    spent: Int[Tensor, " sample"],
) -> Start:
    """Return what an intervention is told before the first call; what it asks adds to `spent`."""
    points = tuple(point.to(noise) for point in points_of(scheduler))
    kind, level = denoiser.kind, points[0].level

    def told(prompts: Sequence[str]) -> Condition:
        if encode is None:
            raise InputError("an intervention encodes prompts; pass `encode` to `sample`")
        return encode(prompts)

    def predict(x: Latents, condition: Condition, rows: Int[Tensor, " row"]) -> Prediction:
        raw = denoiser(shown(kind, x, level), points[0].timestep, condition)
        spent.index_add_(0, rows.cpu(), torch.full((len(rows),), 3 if raw.requires_grad else 1))
        return Prediction.from_raw(kind, raw, x.to(raw), level)

    assert branches.uncond is not None, "checked before"
    return Start(
        branches.prompts,
        branches.cond,
        branches.uncond,
        noise,
        tuple(generator.initial_seed() for generator in generators or ()),
        points,
        told,
        branches.words,
        predict,
        guidance,
        decode,
    )


def _prepared(intervention: Intervention, start: Start) -> tuple[Latents, dict[str, Condition]]:
    """Let an intervention act before the first call."""
    rows = len(start.noise)
    cond = ask(intervention, "condition", start)
    _of_rows(intervention, "condition", cond, rows)
    start = replace(start, cond=cond)
    others = ask(intervention, "branches", start)
    if {"cond", "uncond"} & set(intervention.branches_asked):
        raise InputError(
            f"{intervention} asks for branches {intervention.branches_asked}; 'cond' and 'uncond' "
            "are the sampler's own, so give them other names"
        )
    if not isinstance(others, Mapping) or tuple(others) != intervention.branches_asked:
        names = tuple(others) if isinstance(others, Mapping) else type(others).__name__
        raise InputError(
            f"{intervention}: its `branches` returned {names}; it asked for "
            f"{intervention.branches_asked}"
        )
    for other in others.values():
        _of_rows(intervention, "branches", other, rows)
    noise = checked(intervention, "noise", ask(intervention, "noise", start), start.noise)
    return noise, {"cond": cond, **others}


def _of_rows(intervention: Intervention, hook: str, made: Any, rows: int) -> None:
    """Refuse what is no condition of one row a sample."""
    if not isinstance(made, Condition):
        told = type(made).__name__
    elif len(made) != rows:
        told = f"{len(made)} rows"
    else:
        return
    raise InputError(
        f"{intervention}: its `{hook}` returned {told}; expected a condition of {rows} rows"
    )


KIND_OF_CONFIG: dict[str, Kind] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def kind_of(scheduler: Any) -> Kind:
    """Return the prediction kind a scheduler is configured for.

    Raises:
        ModelError: If its configuration names none that is known, or it is no noise schedule.
    """
    if not hasattr(scheduler, "add_noise") and hasattr(scheduler, "scale_noise"):
        return "flow"
    given = str(scheduler.config.get("prediction_type", "epsilon"))
    if given not in KIND_OF_CONFIG:
        raise ModelError(
            f"prediction_type {given!r} is not known; expected one of {', '.join(KIND_OF_CONFIG)}"
        )
    return KIND_OF_CONFIG[given]
