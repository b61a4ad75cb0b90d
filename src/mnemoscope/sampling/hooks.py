r"""An intervention changes what a sampler does, at four hooks and nowhere else.

Flow of a sample, with what is the identity unless overridden::

    condition   what the prompt becomes            before the first call
    noise       what the path starts from          before the first call
    attention   logits of cross-attention          within every call
    guide       how predictions are combined       after every call, before the scheduler's update

    guided = u + g·(c - u)                         the guide where none is given

An intervention may ask for further conditions, `branches`, which are evaluated in the same network
call as the others and paid for. Observers see every call and write nothing.

Contents: `Intervention`, `Step`, `Attended`, `Encode`; `ask` and `checked`, by which a hook is
called.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from mnemoscope.core.predict import Kind, Prediction, combine, to_raw
from mnemoscope.core.record import Point
from mnemoscope.errors import InputError, MnemoscopeError
from mnemoscope.sampling.condition import Condition

Latents = Float[Tensor, "sample *latent"]

Encode = Callable[[Sequence[str]], Condition]
"""Turns prompts into conditions, one row each."""

NO_BRANCHES: Mapping[str, Condition] = MappingProxyType({})


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
    """

    point: Point
    calls: int
    x: Latents
    kind: Kind
    raw: Mapping[str, Latents]
    guidance: float
    history: tuple["Step", ...] = ()

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
            scale = scale.to(self.x).reshape(-1, *[1] * (self.x.ndim - 1))
        return combine(self.raw["uncond"], self.raw["cond"], scale)


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

    def condition(self, prompts: Sequence[str], cond: Condition, encode: Encode) -> Condition:
        """Return what the prompts become; rows stay rows."""
        del prompts, encode
        return cond

    def branches(
        self, prompts: Sequence[str], cond: Condition, encode: Encode
    ) -> Mapping[str, Condition]:
        """Return the further conditions, by the names in `branches_asked`."""
        del prompts, cond, encode
        return NO_BRANCHES

    def noise(self, noise: Latents, prompts: Sequence[str]) -> Latents:
        """Return what the path starts from, unit normal as the noise it is given."""
        del prompts
        return noise

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
