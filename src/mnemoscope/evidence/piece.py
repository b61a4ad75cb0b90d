r"""A piece is a kind of evidence: what it is, what it costs and how it is gathered.

With n seeds a prompt and N calls on the path, the pieces of a prompt cost::

    path    n·(2k - 1) network calls for the longest path asked for, k calls: the unconditional
            branch of the first is the noise bank's, where prompts share their noise; else 2k
    beside  what each class says, in forward, tangent and backward passes

    network calls = forward + tangent + 2·backward

Contents: `Price`, `price`, `Piece`, `Needs`, `Evidence`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mnemoscope.errors import NeedsError
from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.sitting import Sitting

T = TypeVar("T")

NO_IMAGE = "the prompt has no training image"
NO_TIMESTEPS = "the model is a flow, which was trained at no timesteps"


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
class Absent:
    """A piece that could not be gathered.

    Attributes:
        reason: Why.
    """

    reason: str


class MissingEvidence(NeedsError):
    """A declared piece does not exist for this model or these prompts; the message says why."""


@dataclass(frozen=True)
class Piece(ABC, Generic[T]):
    """A kind of evidence; subclasses are frozen dataclasses, and equal pieces are gathered once."""

    @property
    def calls(self) -> int | None:
        """Return how many calls of the path it takes; 0 for none, None for all."""
        return 0

    def extra(self, calls: int) -> Price:
        """Return what it costs a seed beside a path of that many calls."""
        return Price()

    def total(self, calls: int, seeds: int) -> Price:
        """Return what it costs a prompt beside the path; once a seed unless it says otherwise."""
        return self.extra(calls) * seeds

    def apart(self, calls: int) -> Price:
        """Return what it costs a seed more where prompts do not share their noise."""
        return Price()

    @property
    def pair(self) -> bool:
        """Return whether it takes the training image."""
        return False

    @property
    def uncond(self) -> bool:
        """Return whether it takes an unconditional branch."""
        return False

    @property
    def attention(self) -> bool:
        """Return whether cross-attention must be watched along the path."""
        return False

    @property
    def timesteps(self) -> bool:
        """Return whether it calls the network at timesteps of its training, off the path."""
        return False

    @property
    def own_network(self) -> bool:
        """Return whether it takes a network of its own, beside the model's."""
        return False

    def warm(self, bank: Bank) -> None:
        """Compute what depends on no prompt, once for all of them."""

    @abstractmethod
    def gather(self, sitting: Sitting) -> T | Absent:
        """Gather it for the prompts of a sitting, whose path is sampled already."""


def path_calls(pieces: Iterable[Piece[Any]], calls: int) -> int:
    """Return how many of a path's calls the pieces take together.

    Args:
        pieces: Evidence.
        calls: Calls of the whole path.
    """
    asked = [calls if piece.calls is None else piece.calls for piece in pieces]
    return min(calls, max(asked, default=0))


def price(
    pieces: Iterable[Piece[Any]],
    *,
    calls: int,
    seeds: int,
    branches: int = 2,
    shared: bool = True,
    known: bool | None = None,
    before: int = 0,
) -> Price:
    """Return what pieces cost a prompt, once the noise bank is warm.

    Args:
        pieces: Evidence; equal pieces count once, and paths share their calls.
        calls: Calls of the whole path.
        seeds: Seeds a prompt.
        branches: Branches of a call: 2, 1 for a model without an unconditional branch, more under
            an intervention that asks for them.
        shared: Whether prompts share their noise, and so what depends on it alone.
        known: Whether the unconditional branch of the first call is the bank's; where noise is
            shared, if not given. An intervention may change the noise.
        before: Most network calls a sample costs before its path.
    """
    wanted = set(pieces)
    length = path_calls(wanted, calls)
    known = shared if known is None else known
    path = branches * length - (1 if known and branches > 1 and length else 0)
    total = Price(forward=path + (before if length else 0)) * seeds
    for piece in wanted:
        total = total + piece.total(calls, seeds)
        if not shared:
            total = total + piece.apart(calls) * seeds
    return total


def price_in(bank: Bank, pieces: Iterable[Piece[Any]]) -> Price:
    """Return what pieces cost a prompt of a bank, once it is warm."""
    return price(
        pieces,
        calls=bank.calls,
        seeds=bank.seeds,
        branches=bank.branches,
        shared=bank.shared,
        known=bank.knows_start,
        before=bank.before,
    )


@dataclass(frozen=True)
class Needs:
    """What a detector must be given.

    Attributes:
        pieces: Its evidence.
        seeds: Fewest seeds it makes sense with.
        uncond: Whether it takes an unconditional branch.
    """

    pieces: tuple[Piece[Any], ...]
    seeds: int = 1
    uncond: bool = True

    @property
    def pair(self) -> bool:
        """Return whether the training image is needed."""
        return any(piece.pair for piece in self.pieces)


@dataclass(frozen=True)
class Evidence:
    """What was gathered about some prompts.

    Attributes:
        prompts: Number of prompts.
        seeds: Seeds a prompt.
        pieces: Value of each piece, or why there is none.
    """

    prompts: int
    seeds: int
    pieces: Mapping[Piece[Any], Any]

    def __getitem__(self, piece: Piece[T]) -> T:
        """Return a piece.

        Raises:
            NeedsError: If it was not declared.
            MissingEvidence: If it does not exist for this model or these prompts.
        """
        if piece not in self.pieces:
            raise NeedsError(
                f"{piece} was not declared; add it to the needs "
                f"(declared: {', '.join(map(str, self.pieces)) or 'nothing'})"
            )
        value = self.pieces[piece]
        if isinstance(value, Absent):
            raise MissingEvidence(value.reason)
        return value

    def only(self, needs: Needs) -> "Evidence":
        """Return what a detector has declared, and nothing else."""
        return replace(self, pieces={p: v for p, v in self.pieces.items() if p in needs.pieces})
