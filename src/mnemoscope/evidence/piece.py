"""Evidence comes in pieces, each with its price.

With n seeds a prompt and N calls on the path, pieces cost a seed, once the noise bank is warm::

    Path(k)          2k - 1 network calls: the unconditional branch of the first is the bank's
    everything else  what its class says, in forward, tangent and backward passes

    network calls = forward + tangent + 2·backward

Seed s means the same initial noise for every prompt, so the unconditional prediction at the first
call is computed once for all prompts.

Contents: `Price`, `price`, `Piece` and its kinds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.values import (
    Changes,
    Divergence,
    Drifts,
    LatentMaps,
    Noised,
    Steps,
    TextFacts,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Price:
    """What evidence costs, in passes through the network of one latent under one condition.

    Attributes:
        forward: Evaluations.
        tangent: Forward-mode derivatives carried along, each about one more evaluation.
        backward: Reverse-mode derivatives, each about two more evaluations.
    """

    forward: int = 0
    tangent: int = 0
    backward: int = 0

    @property
    def calls(self) -> int:
        """Return the price in network calls: forward + tangent + 2·backward."""
        return self.forward + self.tangent + 2 * self.backward

    def __add__(self, other: "Price") -> "Price":
        """Add prices."""
        return Price(
            self.forward + other.forward,
            self.tangent + other.tangent,
            self.backward + other.backward,
        )

    def __mul__(self, times: int) -> "Price":
        """Multiply a price."""
        return Price(self.forward * times, self.tangent * times, self.backward * times)


@dataclass(frozen=True)
class Piece(Generic[T]):
    """A kind of evidence; equal pieces are gathered once."""

    @property
    def calls(self) -> int | None:
        """Return how many calls of the path it takes; 0 for none, None for all."""
        return 0

    def extra(self, calls: int) -> Price:
        """Return what it costs a seed beside a path of that many calls."""
        return Price()

    @property
    def once(self) -> bool:
        """Return whether the extra price is due once a prompt and not once a seed."""
        return False

    @property
    def pair(self) -> bool:
        """Return whether it takes the training image."""
        return False


@dataclass(frozen=True)
class Text(Piece[TextFacts]):
    """Facts about the prompts themselves; free."""


@dataclass(frozen=True)
class Path(Piece[Steps]):
    """The Gram record of the first calls of the guided path.

    Attributes:
        length: Number of calls; None for the whole path.
    """

    length: int | None = 1

    @property
    def calls(self) -> int | None:
        """Return its length."""
        return self.length


@dataclass(frozen=True)
class Maps(Piece[LatentMaps]):
    """States and predictions at the first or the last call of the path.

    Attributes:
        at: "first" or "last".
    """

    at: Literal["first", "last"] = "first"

    @property
    def calls(self) -> int | None:
        """Return 1 for the first call, the whole path for the last."""
        return 1 if self.at == "first" else None


@dataclass(frozen=True)
class LowNoise(Piece[LatentMaps]):
    """Predictions for the initial noise when it is shown as if it were an almost clean state.

    Attributes:
        before_last: Which call's time and level are pretended, counted from the end; 1 is the last.
    """

    before_last: int = 3

    def extra(self, calls: int) -> Price:
        """Return one evaluation; the unconditional branch is the bank's."""
        return Price(forward=1)


@dataclass(frozen=True)
class GapDerivative(Piece[Float[Tensor, "prompt seed *latent"]]):
    """The derivative of the gap in the state along itself at the first call, (J_c - J_u)·gap.

    Attributes:
        method: "jvp" (forward mode) or "difference" (two evaluations a short way apart).
    """

    method: Literal["jvp", "difference"] = "jvp"

    @property
    def calls(self) -> int | None:
        """Return 1: the direction is the gap at the first call."""
        return 1

    def extra(self, calls: int) -> Price:
        """Return both branches with their tangents, or both at the displaced state."""
        return Price(forward=2, tangent=2 if self.method == "jvp" else 0)


@dataclass(frozen=True)
class SquareGradient(Piece[Float[Tensor, "prompt seed *latent"]]):
    """The gradient of (||eps_c||² - ||eps_u||²) / 2 in the state at the first call."""

    def extra(self, calls: int) -> Price:
        """Return the conditional branch forward and back; the other is the bank's."""
        return Price(forward=1, backward=1)


@dataclass(frozen=True)
class Curvature(Piece[Float[Tensor, "prompt seed *latent"]]):
    """The diagonal of the gap's Jacobian in the state at the last call, by Hutchinson's estimator.

    Attributes:
        probes: Random signs vectors.
    """

    probes: int = 4

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    def extra(self, calls: int) -> Price:
        """Return both branches forward once and back once a probe."""
        return Price(forward=2, backward=2 * self.probes)


@dataclass(frozen=True)
class TokenAttention(Piece[Float[Tensor, "prompt seed call layer token"]]):
    """Cross-attention to each token under the prompt, averaged over queries and heads.

    Attributes:
        length: Calls of the path it is read at; None for the whole path.
    """

    length: int | None = 1

    @property
    def calls(self) -> int | None:
        """Return its length."""
        return self.length


@dataclass(frozen=True)
class EndAttention(Piece[Float[Tensor, "prompt seed height width"]]):
    """Cross-attention to the end token at the last call, averaged over heads and fine layers."""

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None


@dataclass(frozen=True)
class ChangeNorms(Piece[Changes]):
    """How much moves from call to call.

    Attributes:
        length: Calls of the path, at least 2; None for the whole path.
    """

    length: int | None = 2

    @property
    def calls(self) -> int | None:
        """Return its length."""
        return self.length


@dataclass(frozen=True)
class GapMaps(Piece[Float[Tensor, "prompt seed call height width"]]):
    """The squared gap, summed over channels, at every call of the path."""

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None


@dataclass(frozen=True)
class Pictures(Piece[Float[Tensor, "prompt seed 3 height width"]]):
    """Decoded images: the guided clean estimate of the first call, or the finished sample.

    Attributes:
        at: "first" or "final".
    """

    at: Literal["first", "final"] = "final"

    @property
    def calls(self) -> int | None:
        """Return 1 for the first estimate, the whole path for samples."""
        return 1 if self.at == "first" else None


@dataclass(frozen=True)
class NoisedTarget(Piece[Noised]):
    """The record of the forward-noised training image at levels spread over the path.

    Attributes:
        levels: Number of levels.
    """

    levels: int = 10

    def extra(self, calls: int) -> Price:
        """Return both branches at every level."""
        return Price(forward=2 * min(self.levels, calls))

    @property
    def pair(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True)
class TargetDivergence(Piece[Divergence]):
    """Divergence and square of both noise estimates at alpha·target, one random probe a seed.

    Attributes:
        before_last: Which call's level, counted from the end; 1 is the last.
    """

    before_last: int = 10

    def extra(self, calls: int) -> Price:
        """Return both branches with their tangents."""
        return Price(forward=2, tangent=2)

    @property
    def pair(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True)
class Drift(Piece[Drifts]):
    """How far repeated denoising carries the training image, at levels spread over the path.

    Attributes:
        levels: Number of levels.
        iterations: Repetitions K at each.
    """

    levels: int = 8
    iterations: int = 8

    def extra(self, calls: int) -> Price:
        """Return both branches at each iteration and level."""
        return Price(forward=2 * self.iterations * min(self.levels, calls))

    @property
    def once(self) -> bool:
        """Return True: no noise is drawn."""
        return True

    @property
    def pair(self) -> bool:
        """Return True."""
        return True


def path_calls(pieces: Iterable[Piece[Any]], calls: int) -> int:
    """Return how many of a path's calls the pieces take together.

    Args:
        pieces: Evidence.
        calls: Calls of the whole path.
    """
    asked = [calls if piece.calls is None else piece.calls for piece in pieces]
    return min(calls, max(asked, default=0))


def price(pieces: Iterable[Piece[Any]], *, calls: int, seeds: int, branches: int = 2) -> Price:
    """Return what pieces cost a prompt, once the noise bank is warm.

    Args:
        pieces: Evidence; equal pieces count once, and paths share their calls.
        calls: Calls of the whole path.
        seeds: Seeds a prompt.
        branches: 2, or 1 for a model without an unconditional branch.
    """
    wanted = set(pieces)
    length = path_calls(wanted, calls)
    path = max(0, 2 * length - 1) if branches == 2 else length
    total = Price(forward=path) * seeds
    for piece in wanted:
        total = total + piece.extra(calls) * (1 if piece.once else seeds)
    return total
