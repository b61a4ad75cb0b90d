"""A detector turns declared evidence into one score a prompt; larger means more memorized.

Three numbers are never mixed: a *prompt score* needs no image, a *pair score* takes the training
image in question, *severity* compares generated images with references (`mnemoscope.severity.grade`).

A detector names the pieces it needs, a planner gathers the union of all detectors' pieces in one
run, and nobody sees a piece that was not declared.

Contents: `Needs`, `Evidence`, `Detector`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece
from mnemoscope.errors import NeedsError

T = TypeVar("T")

RELEASED = ":released_code"
"""How the name of a variant ends that computes what a released code does."""

PerPrompt = Float[Tensor, " prompt"]


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
class Absent:
    """A piece that could not be gathered.

    Attributes:
        reason: Why.
    """

    reason: str


class MissingEvidence(NeedsError):
    """A declared piece does not exist for this model or these prompts; the message says why."""


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
                f"{piece} was not declared; add it to the detector's needs "
                f"(declared: {', '.join(map(str, self.pieces)) or 'nothing'})"
            )
        value = self.pieces[piece]
        if isinstance(value, Absent):
            raise MissingEvidence(value.reason)
        return value

    def only(self, needs: Needs) -> "Evidence":
        """Return what a detector has declared, and nothing else."""
        return replace(self, pieces={p: v for p, v in self.pieces.items() if p in needs.pieces})


class Detector(ABC):
    """A score; an instance in the `DETECTORS` of any file of this package is found by itself.

    Subclasses are frozen dataclasses, whose fields are the variants of a method.
    """

    source: ClassVar[str]
    """Author, year and equation, or "ours"."""

    released: bool = False
    """Whether it computes what a released code does, bugs included, to tell what they change."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return its name, variant included, such as "gap_norm:all"."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """Return what it computes, in one line."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """Return the evidence it takes."""

    @property
    def kind(self) -> Literal["prompt", "pair"]:
        """Return "pair" if it takes the training image, "prompt" otherwise."""
        return "pair" if self.needs.pair else "prompt"

    @abstractmethod
    def score(self, evidence: Evidence) -> PerPrompt:
        """Return a score a prompt; larger is more memorized, NaN is not scored.

        Raises:
            MissingEvidence: If it does not apply; the message says why.
        """
