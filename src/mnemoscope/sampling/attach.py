r"""An attachment shows the network calls of somebody else's live pipeline and changes nothing.

A forward hook on the network collects what it says, and what stands in for `scheduler.step` sees
what the pipeline made of it, before the update. Which branch is which follows from the pipeline's
own arithmetic, with a and b the branches in the order usual for its way of calling::

    used = a + w·(b - a)             w = <used - a, b - a> / |b - a|²
    w >= 1                           a is unconditional, b conditional, g = w
    w < 1                            the same, or g = 1 - w the other way round: believed only
                                     where the pipeline states that scale
    |used - a - w·(b - a)| > 0       no guidance of two branches, beyond rounding: refused

Ways of calling, with B samples::

    one         a call of B rows, handed on as it is                cond alone
    joint       a call of 2B rows                                   usually uncond, cond
    separate    two calls of B rows                                 usually cond, uncond
    doubled     a call of 2B rows, and 2B equal states (DiT)        usually cond, uncond

"Unconditional" is what the pipeline takes for it: a negative prompt where one is given.

Who steers is shown each update as an intervention's guide would be, and may put another guided
output, and other states, in its place; nothing else in the pipeline is written to.

Contents: `attach`, `Attachment`, `Steer`, `Update`, `Steered`, `Split`, `split`.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isclose, nan
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mnemoscope.core.level import Level, levels_of
from mnemoscope.core.predict import Kind, Prediction
from mnemoscope.core.record import Call, Point
from mnemoscope.errors import InputError, ModelError
from mnemoscope.sampling.hooks import Step
from mnemoscope.sampling.loop import Latents, Observer, finite, kind_of, scaled

Way = Literal["one", "joint", "separate", "doubled"]
Order = tuple[str, ...]

USUAL: Mapping[Way, Order] = {
    "one": ("cond",),
    "joint": ("uncond", "cond"),
    "separate": ("cond", "uncond"),
    "doubled": ("cond", "uncond"),
}
"""Order of the branches by way of calling."""

NETWORKS = ("transformer", "transformer_2", "unet")
"""Where a pipeline keeps its denoiser; those with two use one after the other."""

UNREADABLE: Mapping[str, str] = {
    "precondition_outputs": "mixes the network's output with the state before it reads it (EDM)",
    "get_scalings": "mixes the network's output with the state before it reads it (consistency)",
    "sigmas_interpol": "calls the network between the levels that it tells of (KDPM2)",
    "mid_point_sigma": "calls the network between the levels that it tells of (DPM SDE)",
}
"""Why the calls of a scheduler with such an attribute cannot be read."""

SLACK = 1e-3
"""How far a solved guidance scale may lie from what it has to be."""

OWN_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""What the solution for the scale itself may be off by, relative to the numbers it is from."""


class Output(NamedTuple):
    """What a network said in one call.

    Attributes:
        raw: The output.
        embedded: Whether guidance was an input of the call.
        skips: Whether layers were skipped.
        network: The network.
        args: What it was called with by position.
        options: What it was called with by name.
    """

    raw: Tensor
    embedded: bool
    skips: bool
    network: Any = None
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Update:
    """An update that is about to be made, as one who steers sees it.

    Attributes:
        step: What an intervention's guide is shown, without history.
        used: Raw output that the pipeline gives its scheduler, one a sample; full precision.
        samples: For each sample, the index of the first whose conditions equal its own: samples of
            one prompt are told by that.
        again: Calls the network once more at the same time under the same conditions, at other
            states in the unit form; differentiable where gradients are enabled.
    """

    step: Step
    used: Latents
    samples: tuple[int, ...]
    again: Callable[[Latents], Step]


class Steered(NamedTuple):
    """What takes the place of an update's.

    Attributes:
        used: Raw output the scheduler is given, one a sample.
        x: States it is given, in the unit form; the pipeline's own where None.
    """

    used: Latents
    x: Latents | None = None


Steer = Callable[[Update], Steered | None]
"""Told each update before it is made; None leaves it as it is, bit for bit."""


@dataclass(frozen=True, eq=False)
class Split:
    """One update of a pipeline, taken apart; in full precision.

    Attributes:
        way: How the network was called.
        order: Branches in the order they were called or joined.
        x: States, one a sample, in the scheduler's own scale.
        raw: Raw outputs by branch.
        used: What the scheduler is given, one a sample; `raw["cond"]` itself where it is that.
        guidance: Guidance scale; 1 with one branch, NaN where both branches say the same.
    """

    way: Way
    order: Order
    x: Latents
    raw: Mapping[str, Latents]
    used: Latents
    guidance: float


HALVES = (torch.float16, torch.bfloat16)
"""Types that numbers are not combined in."""


def _full(latents: Tensor) -> Tensor:
    """Return latents in at least single precision."""
    latents = latents.detach()
    return latents.float() if latents.dtype in HALVES else latents


def _raw(out: Any) -> Tensor:
    """Return the tensor in what a network returned.

    Raises:
        ModelError: If there is none.
    """
    raw = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
    if not isinstance(raw, Tensor):
        raise ModelError(
            f"the network returned {type(raw).__name__}; expected a tensor, a tuple that begins "
            "with one, or an output with `sample`, so this pipeline cannot be read"
        )
    return raw


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN to NaN."""
    if one.data_ptr() == other.data_ptr() and one.dtype == other.dtype:
        return True
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _paired(latents: Tensor) -> bool:
    """Return whether the second half of the rows repeats the first."""
    return len(latents) % 2 == 0 and _same(*latents.chunk(2))


class _Fit(NamedTuple):
    """How well `used = a + w·(b - a)` holds.

    Attributes:
        w: The scale.
        off: Norm of what it leaves, relative to the numbers it was computed from.
        gap: Norm of b - a, relative to a.
    """

    w: float
    off: float
    gap: float


def _fit(a: Latents, b: Latents, used: Latents) -> _Fit:
    # One broken sample must not hide what the others say.
    fine = finite(a + b + used).reshape(-1, *[1] * (a.ndim - 1))
    a, b, used = (torch.where(fine, part, 0.0) for part in (a, b, used))
    gap, rest = b - a, used - a
    square = gap.square().sum()
    w = torch.where(square > 0, (rest * gap).sum() / square, 0.0)
    off = (rest - w * gap).norm()
    # One transfer from the device for all of them.
    told = torch.stack([w, off, square.sqrt(), a.norm(), used.norm()]).tolist()
    w, off, width, base, size = (float(number) for number in told)
    whole = size + abs(w) * width
    return _Fit(w, off / whole if whole else 0.0, width / base if base else float(width > 0))


def split(
    outputs: Sequence[Output],
    used: Tensor,
    states: Tensor,
    *,
    stated: float | None = None,
    before: Order | None = None,
) -> Split:
    """Take an update of a pipeline apart.

    Args:
        outputs: What the network said since the update before.
        used: What the pipeline hands its scheduler.
        states: The states it hands along.
        stated: Guidance scale that the pipeline states, where it states one.
        before: Order found at the call before on the same path.

    Returns:
        The branches, one row a sample.

    Raises:
        ModelError: If the pipeline's arithmetic is no guidance of two branches, or does not tell
            them apart.

    Source: Ho & Salimans 2022, eq. 6, solved for its scale.
    """
    width = states.shape[1]

    def cut(part: Tensor) -> Tensor:
        # What a network says of its own variance follows in further channels.
        return part[:, :width] if part.ndim == states.ndim and part.shape[1] > width else part

    def refused(why: str) -> ModelError:
        rows = " and ".join(str(len(output.raw)) for output in outputs) or "no"
        return ModelError(
            f"the way this pipeline is guided is not understood: {len(outputs)} network call(s) of "
            f"{rows} rows for {len(states)} state(s), {why}"
        )

    raws = [cut(output.raw) for output in outputs]
    if not raws:
        raise refused(
            "so the update follows no call that was seen; attach to the pipeline that runs, whose "
            "network must be called as a module and not by `forward`"
        )
    if cut(used).shape != states.shape or any(raw.shape[1:] != states.shape[1:] for raw in raws):
        shapes = ", ".join(str(tuple(part.shape)) for part in (*raws, used))
        raise refused(
            f"shaped {shapes} where states are {tuple(states.shape)}; only networks that answer in "
            "the shape of the state can be read"
        )
    if any(output.skips for output in outputs):
        raise refused("one of them with layers skipped; switch skip-layer guidance off")
    rows = [len(raw) for raw in raws]
    precision = max(torch.finfo(part.dtype).eps for part in (used, *raws))
    x, given = _full(states), _full(cut(used))
    whole = len(states)
    if rows == [whole] and _same(cut(used), raws[0].to(used.dtype)):
        raw = _full(raws[0])
        return Split("one", USUAL["one"], x, {"cond": raw}, raw, 1.0)
    if rows == [2 * whole]:
        way, parts = "joint", raws[0].chunk(2)
    elif rows == [whole, whole]:
        way, parts = "separate", tuple(raws)
    elif rows == [whole] and _paired(states) and _paired(cut(used)):
        way, parts = "doubled", raws[0].chunk(2)
        x, given = (part.chunk(2)[0] for part in (x, given))
    elif rows == [whole]:
        raise refused(
            "whose output is changed before the scheduler is given it; only classifier-free "
            "guidance can be read"
        )
    else:
        raise refused(
            f"{sum(rows) / whole:g} branches; only classifier-free guidance of two branches can be "
            "read: switch further guidance (perturbed attention, image guidance) off"
        )
    usual = USUAL[way]
    branch = dict(zip(usual, map(_full, parts), strict=True))
    fit = _fit(branch["uncond"], branch["cond"], given)
    # Guidance rounds three times, by at most half of the precision each: w·gap twice, the sum once.
    if fit.off > precision + OWN_ROUNDING:
        raise refused(
            f"and {fit.off:.1%} of what the scheduler is given is no guidance of two branches; "
            "switch rescaled, normalized or perturbed guidance off (guidance_rescale=0)"
        )
    turned = usual[::-1]
    if fit.gap <= precision:
        order, scale = before or usual, nan
    elif fit.w >= 1 - SLACK or _near(stated, fit.w):
        order, scale = usual, fit.w
    elif _near(stated, 1 - fit.w):
        order, scale = turned, 1 - fit.w
    elif before is not None and 0 <= fit.w <= 1:
        order, scale = before, fit.w if before == usual else 1 - fit.w
    else:
        raise refused(
            f"guided by {fit.w:.4g} if the branches are {' and '.join(usual)}, by "
            f"{1 - fit.w:.4g} if they are {' and '.join(turned)}; the pipeline does not say which, "
            "so give it a guidance scale above 1"
        )
    raw = dict(zip(order, branch.values(), strict=True))
    return Split(way, order, x, raw, given, scale)


def _near(stated: float | None, solved: float) -> bool:
    return stated is not None and isclose(stated, solved, rel_tol=SLACK, abs_tol=SLACK)


@dataclass(eq=False)
class Attachment:
    """What is seen of a live pipeline: the path that runs, or the last one that ran.

    A path begins when the scheduler is given new timesteps, which every run of a pipeline does, or
    has come to the end of those it has. The index of the call restarts at 0 then.

    Attributes:
        pipeline: The pipeline.
        scheduler: Its scheduler.
        observers: Called with each `Call`; they write nothing.
        steer: May replace what an update is given; None where nobody does.
        paths: Number of paths begun.
        guidance: Guidance scale of each call of the path, from the pipeline's arithmetic; 1 with
            one branch, NaN where both say the same.
        order: Branches in the order the network is called with.
        no_uncond: Why there is no unconditional branch, in words; empty where there is one.
        latents: States after the latest update, in the scheduler's own scale; None before one.
    """

    pipeline: Any
    scheduler: Any
    observers: tuple[Observer, ...]
    steer: Steer | None = None
    paths: int = 0
    guidance: list[float] = field(default_factory=list[float])
    order: Order = ()
    no_uncond: str = ""
    latents: Latents | None = None
    _outputs: list[Output] = field(default_factory=list[Output], repr=False)
    _timesteps: Any = field(default=None, repr=False)
    _times: list[float] = field(default_factory=list[float], repr=False)
    _levels: Level | None = field(default=None, repr=False)
    _kind: Kind = field(default="eps", repr=False)
    _place: int = field(default=-1, repr=False)
    _resting: bool = field(default=False, repr=False)

    def rest(self) -> None:
        """Look away until the next path begins, at no cost."""
        self._resting = True

    def rests(self) -> bool:
        """Return whether the update at hand is to be left alone, and count it."""
        if self._resting:
            self._place += 1
            # Another path may follow on the same timesteps.
            self._resting = self._place + 1 < len(self._times)
            return True
        return False

    @property
    def place(self) -> int:
        """Return the place of the latest call among the scheduler's timesteps; -1 before one."""
        return self._place

    @property
    def calls(self) -> int:
        """Return how many calls of the path were seen, a call of all branches counting once."""
        return len(self.guidance)

    def hear(self, module: Any, args: Any, options: Mapping[str, Any], out: Any) -> None:
        """Take what the network said; a forward hook.

        Raises:
            ModelError: If it is no tensor, or the scheduler is no longer the one attached to.
        """
        if self.pipeline.scheduler is not self.scheduler:
            raise ModelError(
                "the scheduler was exchanged while attached; exchange it before `attach`"
            )
        if self.scheduler.timesteps is not self._timesteps:
            # Whatever an aborted run, or a call beside the pipeline, has left.
            self._outputs.clear()
            self._timesteps, self._levels = self.scheduler.timesteps, None
            self._resting = False
        if self._resting:
            return
        raw = _raw(out)
        if len(self._outputs) == _MOST:
            raise ModelError(
                f"the network was called {_MOST + 1} times and its scheduler not once; attach to "
                "the pipeline that runs, and call its network directly outside of the attachment"
            )
        embedded = options.get("guidance") is not None
        skips = options.get("skip_layers") is not None
        # Only one who steers may ask for the call again; arguments are not kept alive otherwise.
        heard = Output(raw.detach(), embedded, skips)
        if self.steer is not None:
            heard = heard._replace(network=module, args=args, options=options)
        self._outputs.append(heard)

    @torch.no_grad()
    def see(self, used: Tensor, timestep: Any, states: Tensor) -> tuple[Split, Steered | None]:
        """Show an update to the observers and to who steers, before it is made.

        Args:
            used: What the scheduler is given as the network's output.
            timestep: What it is given as time.
            states: The states it is given.

        Returns:
            The update, taken apart, and what takes its place; None where nothing does.

        Raises:
            ModelError: If it cannot be taken apart.
        """
        outputs, self._outputs = self._outputs, []
        levels = self._levels
        if levels is None or self._place + 1 == len(self._times):
            levels = self._begin()
        place = self._find(float(timestep))
        seen = split(
            outputs,
            used,
            states,
            stated=self._stated(),
            before=self.order if self.calls and len(self.order) > 1 else None,
        )
        level = levels.at(place)
        point = Point(self.calls, torch.as_tensor(timestep), level.unit())
        self._place, self.order = place, seen.order
        self.guidance.append(seen.guidance)
        self.no_uncond = "" if "uncond" in seen.raw else _reason(outputs)
        if self.observers:
            call = _call(self._kind, point, level, seen)
            for observer in self.observers:
                observer(call)
        if self.steer is None:
            return seen, None
        step = self._step_of(seen.x, level, point, seen.raw, seen.guidance)

        def again(x: Latents) -> Step:
            raw = self._again(outputs, seen, x * level.scale.to(x), timestep)
            return self._step_of(x * level.scale.to(x), level, point, raw, seen.guidance)

        steered = self.steer(Update(step, seen.used, _alike(outputs, seen), again))
        if steered is not None and steered.x is not None:
            moved = (steered.x != step.x).flatten(1).any(dim=1)
            # What was not moved keeps its bits, which a scale and its inverse may not.
            moved = moved.reshape(-1, *[1] * (seen.x.ndim - 1))
            scale = level.scale.to(steered.x)
            steered = steered._replace(x=torch.where(moved, steered.x * scale, seen.x))
        return seen, steered

    def _step_of(
        self, x: Latents, level: Level, point: Point, raw: Mapping[str, Latents], guidance: float
    ) -> Step:
        stated = self._stated()
        if guidance != guidance and stated is not None:
            guidance = stated
        unit = x / level.scale.to(x)
        return Step(point, len(self._times), unit, self._kind, raw, guidance)

    def _again(
        self, outputs: Sequence[Output], seen: Split, x: Latents, timestep: Any
    ) -> dict[str, Latents]:
        """Call the network as the pipeline did, at other states in the scheduler's own scale."""
        shown, raws = scaled(self.scheduler, x, timestep), list[Tensor]()
        for output in outputs:
            bound = inspect.signature(output.network.forward).bind(*output.args, **output.options)
            state = next(iter(bound.arguments))
            rows = torch.cat([shown] * (len(output.raw) // len(x)))
            bound.arguments[state] = rows.to(bound.arguments[state].dtype)
            raw = _raw(output.network(*bound.args, **bound.kwargs))[:, : x.shape[1]]
            raws.append(raw.float() if raw.dtype in HALVES else raw)
        # What the hook has heard of these calls is no call of the pipeline.
        self._outputs = []
        parts = raws if seen.way in ("one", "separate") else raws[0].chunk(2)
        return dict(zip(seen.order, parts, strict=True))

    def _begin(self) -> Level:
        """Start a path and return its levels, which a copy of the scheduler is asked for."""
        guider = getattr(self.pipeline, "guider", None)
        if guider is not None and type(guider).__name__ != "ClassifierFreeGuidance":
            raise ModelError(
                f"the pipeline is guided by {type(guider).__name__}, whose branches are not those "
                "of a prompt and none; give it ClassifierFreeGuidance"
            )
        fresh = copy.deepcopy(self.scheduler)
        # Once told where to begin, a scheduler answers for that place whatever it is asked.
        for told in ("_begin_index", "_step_index"):
            if hasattr(fresh, told):
                setattr(fresh, told, None)
        self._timesteps = self.scheduler.timesteps
        self._kind, self._levels = kind_of(fresh), (levels := levels_of(fresh))
        self._times = [float(t) for t in fresh.timesteps.tolist()]
        self._place, self.paths = -1, self.paths + 1
        self.guidance, self.order = [], ()
        return levels

    def _find(self, time: float) -> int:
        """Return the place of a call among the timesteps: they may repeat, and begin anywhere."""
        place = getattr(self.scheduler, "step_index", None)
        if place is None and self._place >= 0:
            place = self._place + 1
        if place is None:
            place = getattr(self.scheduler, "begin_index", None)
        if place is None:
            place = min(range(len(self._times)), key=lambda i: abs(self._times[i] - time))
        # A pipeline may round the time it hands on to its own precision.
        if place >= len(self._times) or not isclose(
            self._times[place], time, rel_tol=5e-4, abs_tol=1e-6
        ):
            raise ModelError(
                f"the scheduler is stepped at time {time:g} at call {self.calls}, out of the order "
                f"of its {len(self._times)} timesteps; only one update a timestep can be read"
            )
        return int(place)

    def _stated(self) -> float | None:
        """Return the guidance scale that the pipeline states."""
        teller = getattr(self.pipeline, "guider", None) or self.pipeline
        scale = getattr(teller, "guidance_scale", None)
        return float(scale) if isinstance(scale, int | float) else None


_MOST = 8
"""Network calls between two updates of which something else than guidance must be the cause."""


def _reason(outputs: Sequence[Output]) -> str:
    if any(output.embedded for output in outputs):
        return "guidance is an input of this network, which has no unconditional branch"
    return (
        "the network is called once a state: guidance is off, or the model is conditioned on "
        "nothing"
    )


def _alike(outputs: Sequence[Output], seen: Split) -> tuple[int, ...]:
    """Return for each sample the first one of its prompt: whose conditions are the same."""
    count = len(seen.x)
    place = seen.order.index("cond") if seen.way != "one" else 0
    output = outputs[place] if seen.way == "separate" else outputs[0]
    offset = 0 if seen.way in ("one", "separate") else place * count
    given = inspect.signature(output.network.forward).bind(*output.args, **output.options)
    _, *others = given.arguments.values()
    rows = slice(offset, offset + count)
    parts = [p[rows] for p in tensors_in(others) if p.ndim and len(p) == len(output.raw)]
    return alike(parts, count)


def alike(parts: Sequence[Tensor], count: int | None = None) -> tuple[int, ...]:
    """Return for each row the first one that equals it in every tensor.

    Args:
        parts: Conditions, a row a sample each.
        count: Number of samples; that of the first part where not given.
    """
    first: list[int] = []
    for row in range(len(parts[0]) if count is None else count):
        same = (at for at in dict.fromkeys(first) if all(_same(p[at], p[row]) for p in parts))
        first.append(next(same, row))
    return tuple(first)


def tensors_in(values: Any) -> Generator[Tensor]:
    """Yield the tensors among arguments, those inside mappings and sequences as well."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def _call(kind: Kind, point: Point, level: Level, seen: Split) -> Call:
    x, cond = seen.x, seen.raw["cond"]
    of = {name: Prediction.from_raw(kind, raw, x, level) for name, raw in seen.raw.items()}
    guided = of["cond"] if seen.used is cond else Prediction.from_raw(kind, seen.used, x, level)
    return Call(point, x / level.scale.to(x), of["cond"], of.get("uncond"), guided)


def _put(new: Latents, old: Tensor, copies: int) -> Tensor:
    """Return a tensor of a pipeline's with other latents in it, one a sample."""
    rows = torch.cat([new] * copies).to(old)
    if rows.shape[1] == old.shape[1]:
        return rows
    # What a network says of its own variance follows in further channels, and is left.
    return torch.cat([rows, old[:, rows.shape[1] :]], dim=1)


class _Step:
    """Stands in for `scheduler.step` on one instance; its signature is the original's.

    Args:
        attachment: Who looks at the updates.
        original: The scheduler's own step.
    """

    def __init__(self, attachment: Attachment, original: Callable[..., Any]) -> None:
        # Pipelines ask the signature which arguments they may give.
        functools.update_wrapper(self, original)
        self._attachment = attachment
        self._original = original
        self._signature = inspect.signature(original)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._attachment.rests():
            return self._original(*args, **options)
        bound = self._signature.bind(*args, **options)
        given = bound.arguments
        seen, steered = self._attachment.see(
            given["model_output"], given["timestep"], given["sample"]
        )
        if steered is not None:
            copies = 2 if seen.way == "doubled" else 1
            given["model_output"] = _put(steered.used, given["model_output"], copies)
            if steered.x is not None:
                given["sample"] = _put(steered.x, given["sample"], copies)
        made = self._original(*bound.args, **bound.kwargs)
        self._attachment.latents = made[0].chunk(2)[0] if seen.way == "doubled" else made[0]
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Leave a copied scheduler its own step: this one belongs to the original's instance."""
        copied = memo.get(id(self._attachment.scheduler))
        return self if copied is None else type(copied).step.__get__(copied)


def _networks(pipeline: Any) -> list[Any]:
    """Return the denoisers of a pipeline.

    Raises:
        InputError: If it is no pipeline.
        ModelError: If it has no scheduler or denoiser that can be attached to.
    """
    found = [
        network
        for name in NETWORKS
        if isinstance(network := getattr(pipeline, name, None), nn.Module)
    ]
    scheduler, told = getattr(pipeline, "scheduler", None), type(pipeline).__name__
    if not callable(getattr(scheduler, "step", None)):
        inner = getattr(pipeline, "pipeline", None)
        if not found:
            hint = "; give its `pipeline`" if hasattr(inner, "scheduler") else ""
            raise InputError(f"{told} given; expected a pipeline of diffusers{hint}")
        raise ModelError(
            f"{told} has no `scheduler` with a `step`; a pipeline of one scheduler is expected"
        )
    if not found:
        raise ModelError(
            f"{told} has no denoiser under {', '.join(NETWORKS)}; expected a network there"
        )
    for network in found:
        if getattr(network, "_compiled_call_impl", None) is not None:
            raise ModelError(
                "the denoiser was compiled in place, which compiles its hooks as well; compile it "
                "by `pipe.unet = torch.compile(pipe.unet)` instead"
            )
    return found


def _check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose calls cannot be read.

    Raises:
        ModelError: If it tells of no levels, or reads a network's output in a way of its own.
    """
    name = type(scheduler).__name__
    accepted = inspect.signature(scheduler.step).parameters
    lacking = [part for part in ("model_output", "timestep", "sample") if part not in accepted]
    if lacking:
        raise ModelError(
            f"{name}.step takes {', '.join(accepted)}; expected model_output, timestep and sample; "
            "choose another scheduler"
        )
    for mark, why in UNREADABLE.items():
        if hasattr(scheduler, mark):
            raise ModelError(f"{name} {why}; choose another scheduler")
    if not (hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise")):
        raise ModelError(
            f"{name} has neither add_noise nor scale_noise, so its noise levels cannot be asked "
            "for; choose another scheduler"
        )
    kind_of(scheduler)


@contextmanager
def attach(
    pipeline: Any, *observers: Observer, steer: Steer | None = None
) -> Generator[Attachment]:
    """Show the network calls of a live pipeline to observers while a block runs.

    The pipeline is not changed otherwise: its images are bit for bit those it makes alone, as far
    as nobody steers, and hook and step are gone after the block, however it ends. Not for several
    threads at once.

    Args:
        pipeline: A pipeline of diffusers, with a UNet or a transformer and one scheduler. Packed
            latents (Flux) stay packed.
        observers: Called with each `Call`, rows in the pipeline's order: all images of the first
            prompt, then those of the second. They write nothing.
        steer: Shown each update after the observers; may replace what it is given.

    Yields:
        What is seen, and how the pipeline guides.

    Raises:
        InputError: If it is no pipeline, or one that is attached to already.
        ModelError: If its denoiser or scheduler cannot be found or read. While it runs, if it calls
            its network in a way that is not understood.

    Source: ours.
    """
    networks = _networks(pipeline)
    scheduler = pipeline.scheduler
    _check_scheduler(scheduler)
    own: dict[str, Any] = vars(scheduler)
    hooks = [hook for network in networks for hook in network._forward_hooks.values()]
    if isinstance(own.get("step"), _Step) or any(
        isinstance(getattr(hook, "__self__", None), Attachment) for hook in hooks
    ):
        raise InputError(
            "this pipeline, or one that shares its network or scheduler, is attached to already; "
            "give all observers to one `attach`"
        )
    attachment = Attachment(pipeline, scheduler, observers, steer)
    missing = object()
    before = own.get("step", missing)

    def restore() -> None:
        if before is missing:
            own.pop("step", None)
        else:
            own["step"] = before

    with ExitStack() as stack:
        stack.callback(restore)
        for network in networks:
            hook = network.register_forward_hook(attachment.hear, with_kwargs=True)
            stack.callback(hook.remove)
        scheduler.step = _Step(attachment, scheduler.step)
        yield attachment
