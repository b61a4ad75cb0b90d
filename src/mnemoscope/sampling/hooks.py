r"""An intervention changes what a sampler does, at four hooks and nowhere else.

Flow of a sample, with what is the identity unless overridden::

    condition   what the prompt becomes            before the first call
    noise       what the path starts from          before the first call
    attention   logits of cross-attention          within every call
    guide       how predictions are combined       after every call, before the scheduler's update

    guided = u + g·(c - u)                         the guide where none is given

An intervention may ask for further conditions, `branches`, which are evaluated in the same network
call as the others and paid for. Before the first call it may ask the network itself, with gradients
if need be (`Start.predict`), which is counted. Observers see every call and write nothing.

Contents: `Intervention`, `Start`, `Step`, `Attended`, `Encode`, `Decode`; `ask` and `checked`, by
which a hook is called.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mnemoscope.core.predict import Kind, Prediction, combine, to_raw
from mnemoscope.core.record import Point
from mnemoscope.errors import InputError, MnemoscopeError
from mnemoscope.sampling.condition import Condition

Latents = Float[Tensor, "sample *latent"]

Encode = Callable[[Sequence[str]], Condition]
"""Turns prompts into conditions, one row each."""

Decode = Callable[[Latents], Float[Tensor, "sample 3 height width"]]
"""Turns clean latents into pictures, RGB from 0 to 1; differentiable where they are."""

NO_BRANCHES: Mapping[str, Condition] = MappingProxyType({})


Predict = Callable[[Latents, Condition, Int[Tensor, " row"]], Prediction]
"""Asks the network at the first call: states, their conditions, and the samples they belong to."""


@dataclass(frozen=True, eq=False)
class Start:
    """What is known before the first call.

    Attributes:
        prompts: The texts, one a sample.
        cond: Their conditions, as far as they have been changed.
        uncond: The empty prompt, one row a sample.
        noise: Unit normal noise, as far as it has been changed.
        seeds: Seed of each sample's generator; what is drawn from it depends on no other sample.
        points: Where the network will be called.
        encode: Turns prompts into conditions.
        words: Tells the text of every token that the model knows; none where it has none.
        predict: Asks the network at the first call, for states in the unit form. Differentiable
            where gradients are enabled; a row costs one network call, and two more where its
            estimates carry a gradient.
        guidance: Guidance scale g of the recipe.
        decode: Turns clean latents into pictures; None where nothing does.
    """

    prompts: tuple[str, ...]
    cond: Condition
    uncond: Condition
    noise: Latents
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    encode: Encode
    words: Callable[[], tuple[str, ...]]
    predict: Predict
    guidance: float
    decode: Decode | None = None

    @property
    def rows(self) -> Int[Tensor, " row"]:
        """Return the number of each sample."""
        return torch.arange(len(self.noise))

    def gap(
        self,
        x: Latents,
        cond: Condition | None = None,
        rows: Int[Tensor, " row"] | None = None,
    ) -> Latents:
        """Return the gap of the noise estimates, cond - uncond, at the first call.

        Args:
            x: States, unit form.
            cond: Their conditions; those of the prompts where not given.
            rows: Samples they belong to; all of them where not given.
        """
        rows = self.rows if rows is None else rows
        cond = self.cond.take(rows) if cond is None else cond
        of = self.predict(x, cond, rows).eps
        return of - self.predict(x, self.uncond.take(rows), rows).eps


@dataclass(frozen=True, eq=False)
class Step:
    """What a guide sees at a call.

    Attributes:
        point: Where on the path.
        calls: Number of calls of the path.
        x: States, in the unit form.
        kind: What the network outputs.
        raw: Raw outputs by branch: "cond", "uncond", and those the intervention asked for.
        guidance: Guidance scale g of the recipe.
        history: Earlier calls of the path, the latest last, as many as the intervention remembers.
        groups: Number of each sample's prompt, the same for all of its seeds; None where unknown.
        start: The first call of the path; None at the first call itself.
        decode: Turns clean latents into pictures; None where nothing does.
    """

    point: Point
    calls: int
    x: Latents
    kind: Kind
    raw: Mapping[str, Latents]
    guidance: float
    history: tuple["Step", ...] = ()
    groups: Int[Tensor, " sample"] | None = None
    start: "Step | None" = None
    decode: Decode | None = None

    @property
    def first(self) -> "Step":
        """Return the first call of the path, which may be this one."""
        return self.start or self

    @property
    def share(self) -> float:
        """Return which share of the path's calls has been made."""
        return self.point.call / self.calls

    def prediction(self, branch: str) -> Prediction:
        """Return the clean and the noise estimate of a branch."""
        raw = self.raw[branch]
        return Prediction.from_raw(self.kind, raw, self.x.to(raw), self.point.level)

    def raw_of(self, prediction: Prediction) -> Latents:
        """Return the raw output that says the same as a prediction."""
        return to_raw(self.kind, prediction, self.point.level)

    def guided(self, guidance: float | Float[Tensor, " sample"] | None = None) -> Latents:
        """Return classifier-free guidance of the raw outputs.

        Args:
            guidance: Scale, one for all samples or one a sample; the recipe's where not given.
        """
        scale = self.guidance if guidance is None else guidance
        if isinstance(scale, Tensor):
            scale = self.each(scale).to(self.x)
        return combine(self.raw["uncond"], self.raw["cond"], scale)

    def each(self, values: Shaped[Tensor, " sample"]) -> Shaped[Tensor, "sample *ones"]:
        """Return one value a sample in the dimensions of the states, to be multiplied by them."""
        return values.reshape(-1, *[1] * (self.x.ndim - 1)).to(self.x.device)


@dataclass(frozen=True, eq=False)
class Attended:
    """Which queries and tokens the logits of a cross-attention layer belong to.

    Attributes:
        layer: Name of the layer.
        down: Whether it lies on the network's way down.
        call: Index of the call.
        branches: Branch of each row, "cond", "uncond" or an intervention's own.
        end: Position of the end token of each row; padding follows it.
    """

    layer: str
    down: bool
    call: int
    branches: tuple[str, ...]
    end: Int[Tensor, " row"]


@dataclass(frozen=True)
class Intervention(ABC):
    """A way to steer; subclasses are frozen dataclasses whose fields are its settings.

    An instance belongs to no run and keeps nothing between calls: what it remembers comes to it in
    `Step.history`. `name` says what it is called on the command line, `source` who it is from.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    memory: ClassVar[int] = 0
    """How many earlier calls a guide is shown."""
    branches_asked: ClassVar[tuple[str, ...]] = ()
    """Names of the further branches it needs, one network row a sample and call each."""
    together: ClassVar[bool] = False
    """Whether it takes all samples of a prompt at once; they then share a batch, and a fate."""

    @property
    def calls_before(self) -> int:
        """Return the most network calls it makes a sample before the path; a gradient is two."""
        return 0

    def condition(self, start: Start) -> Condition:
        """Return what the prompts become; rows stay rows."""
        return start.cond

    def branches(self, start: Start) -> Mapping[str, Condition]:
        """Return the further conditions, by the names in `branches_asked`."""
        del start
        return NO_BRANCHES

    def noise(self, start: Start) -> Latents:
        """Return what the path starts from, unit normal as the noise it is given."""
        return start.noise

    def guide(self, step: Step) -> Latents:
        """Return the raw output the scheduler is given; classifier-free guidance by default."""
        return step.guided()

    def attention(
        self, logits: Float[Tensor, "row head query token"], at: Attended
    ) -> Float[Tensor, "row head query token"]:
        """Return the logits of a cross-attention layer."""
        del at
        return logits

    @property
    def attends(self) -> bool:
        """Return whether it acts on attention, for which processors must be replaced."""
        return type(self).attention is not Intervention.attention

    @property
    def settings(self) -> dict[str, Any]:
        """Return its settings by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return its name with its settings, as the command line takes it."""
        told = ",".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.name}({told})" if told else self.name


def ask(intervention: Intervention, hook: str, *given: Any) -> Any:
    """Call a hook; what goes wrong in it is said to be its fault.

    Raises:
        InputError: If it raises anything but that memory has run out.
    """
    try:
        return getattr(intervention, hook)(*given)
    except (MnemoscopeError, MemoryError):
        raise
    except Exception as error:
        # A full accelerator raises RuntimeError; batches are halved for it.
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise
        raise InputError(
            f"{intervention}: its `{hook}` raised {type(error).__name__}: {error}"
        ) from error


def checked(intervention: Intervention, hook: str, made: Any, like: Tensor) -> Tensor:
    """Return what a hook made of a tensor, if it is one of the same shape and type.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(made, Tensor):
        raise InputError(
            f"{intervention}: its `{hook}` returned {type(made).__name__}; expected a tensor"
        )
    if made.shape != like.shape or made.dtype != like.dtype:
        raise InputError(
            f"{intervention}: its `{hook}` returned {made.dtype} {tuple(made.shape)}; "
            f"expected {like.dtype} {tuple(like.shape)}"
        )
    return made
