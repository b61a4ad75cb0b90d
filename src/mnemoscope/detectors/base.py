r"""A detector turns declared evidence into one score a prompt; larger means more memorized.

Three numbers are never mixed: a *prompt score* needs no image, a *pair score* takes the training
image in question, *severity* compares generated images with references (`mnemoscope.severity`).

Evidence comes in pieces. A detector names the pieces it needs, a planner gathers the union of all
detectors' pieces in one run, and nobody sees a piece that was not declared. With n seeds a prompt
and N calls on the path, pieces cost a seed, once the noise bank is warm::

    Path(k)          2k - 1 network calls: the unconditional branch of the first is the bank's
    everything else  what its class says, in forward, tangent and backward passes

    network calls = forward + tangent + 2·backward

Seed s means the same initial noise for every prompt, so the unconditional prediction at the first
call is computed once for all prompts. Values carry the leading dimensions [prompt, seed].

Contents: the pieces (`Path`, `Maps`, ...), what they hold (`Steps`, `LatentMaps`, ...), `Price`,
`Needs`, `Evidence`, `Detector`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.core.noise import Level
from mnemoscope.errors import NeedsError

T = TypeVar("T")

RELEASED = ":released_code"
"""How the name of a variant ends that computes what a released code does."""

PerPrompt = Float[Tensor, " prompt"]


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
class Steps:
    """The Gram record of the first calls of the guided path.

    Attributes:
        gram: Products, prompts in the outer and seeds in the inner order. Its "target" is the
            consensus, the mean over seeds of the conditional clean estimate at the first call; its
            "mean" is that of the unconditional one. "x_0" exists on a whole path only.
        prompts: Number of prompts.
        seeds: Number of seeds.
        exact: Weights (w0, wT) of the exact unguided path at every call.
    """

    gram: Gram
    prompts: int
    seeds: int
    exact: tuple[Float[Tensor, " call"], Float[Tensor, " call"]]

    def per_seed(self, values: Float[Tensor, "sample call"]) -> Float[Tensor, "prompt seed call"]:
        """Give a quantity of samples the dimensions of prompts and seeds."""
        return values.unflatten(0, (self.prompts, self.seeds))

    def first(self, calls: int) -> "Steps":
        """Return the record of fewer calls."""
        level = Level(*(part[:calls] for part in self.gram.level))
        gram = replace(self.gram, level=level, products=self.gram.products[:, :calls])
        return replace(self, gram=gram, exact=(self.exact[0][:calls], self.exact[1][:calls]))


@dataclass(frozen=True)
class LatentMaps:
    """States and predictions at one call, in place.

    Attributes:
        level: Level of the call, unit form.
        x: States, unit form.
        eps_u: Unconditional noise estimates.
        eps_c: Conditional noise estimates.
    """

    level: Level
    x: Float[Tensor, "prompt seed *latent"]
    eps_u: Float[Tensor, "prompt seed *latent"]
    eps_c: Float[Tensor, "prompt seed *latent"]

    @property
    def gap(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return eps_c - eps_u."""
        return self.eps_c - self.eps_u

    @property
    def x0_u(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return the unconditional clean estimate."""
        return self._clean(self.eps_u)

    @property
    def x0_c(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return the conditional clean estimate."""
        return self._clean(self.eps_c)

    def _clean(self, eps: Tensor) -> Tensor:
        alpha, sigma = (part.to(eps) for part in self.level)
        return (self.x - sigma * eps) / alpha


@dataclass(frozen=True)
class TextFacts:
    """What is known of the prompts without the network.

    Attributes:
        texts: The prompts.
        tokens: Length of each in tokens, before truncation.
        truncated: Whether it exceeds the window.
        frequency: Share of all prompts of the list that hold a word, for every word of the list.
    """

    texts: tuple[str, ...]
    tokens: Float[Tensor, " prompt"]
    truncated: tuple[bool, ...]
    frequency: Mapping[str, float]


@dataclass(frozen=True)
class Noised:
    """The record of the forward-noised training image.

    Attributes:
        gram: Products at the probed levels; "target" is the training image. Prompts without one
            have NaN.
        prompts: Number of prompts.
        seeds: Number of seeds.
    """

    gram: Gram
    prompts: int
    seeds: int

    def per_seed(self, values: Float[Tensor, "sample call"]) -> Float[Tensor, "prompt seed call"]:
        """Give a quantity of samples the dimensions of prompts and seeds."""
        return values.unflatten(0, (self.prompts, self.seeds))


@dataclass(frozen=True)
class Divergence:
    """First-order behaviour of both noise estimates at a scaled training image.

    Attributes:
        level: The level, unit form.
        trace: Estimated trace of d eps / dx; branches are (uncond, cond).
        square: ||eps||².
    """

    level: Level
    trace: Float[Tensor, "branch prompt seed"]
    square: Float[Tensor, "branch prompt seed"]


@dataclass(frozen=True)
class Drifts:
    """How far repeated denoising at a fixed level carries a clean image.

    Attributes:
        log_ratio: log(sigma / alpha) of each level, ascending.
        distance: max over repetitions of ||M^k(x) - x|| / ||x||; branches are (uncond, cond).
    """

    log_ratio: Float[Tensor, " level"]
    distance: Float[Tensor, "branch prompt level"]


@dataclass(frozen=True)
class Changes:
    """How much moves from one call of the path to the next.

    Attributes:
        state: ||x_{i+1} - x_i||, unit form; the last entry of a whole path leads to the sample.
        cond: ||eps_c(x_{i+1}) - eps_c(x_i)||.
    """

    state: Float[Tensor, "prompt seed change"]
    cond: Float[Tensor, "prompt seed step"]


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


def seed_mean(values: Float[Tensor, "prompt seed"]) -> PerPrompt:
    """Average over seeds."""
    return values.mean(dim=1)


def norms(maps: Float[Tensor, "prompt seed *latent"]) -> Float[Tensor, "prompt seed"]:
    """Return the Euclidean norm of each sample's map, in float32 or better."""
    return maps.flatten(2).double().norm(dim=2)


def pairs_mean(
    values: Float[Tensor, "prompt seed feature"],
) -> PerPrompt:
    """Return the mean of <v_s, v_s'> over pairs of different seeds.

    It is free of the bias that the seeds' own noise adds to the square of their mean.

    Source: Hoeffding 1948 (U-statistics).
    """
    seeds = values.shape[1]
    total = values.sum(dim=1).square().sum(dim=1) - values.square().sum(dim=(1, 2))
    return total / (seeds * (seeds - 1))


def seed_power(clean: Float[Tensor, "prompt seed channel h w"]) -> Float[Tensor, "h w"]:
    """Return the power, a frequency, at which estimates vary from seed to seed around their mean.

    Averaged over prompts, channels and rings of like frequency: with few seeds a single
    frequency's power is far too uncertain to divide by.
    """
    apart = clean - clean.mean(dim=1, keepdim=True)
    power = torch.fft.fft2(apart).abs().square().sum(dim=1) / (clean.shape[1] - 1)
    return radial(power.mean(dim=(0, 1)))


def radial(power: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Replace a power spectrum by its mean over rings of like frequency."""
    height, width = power.shape
    down, across = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    ring = torch.hypot(down[:, None], across[None]).round().long().flatten().to(power.device)
    total = power.new_zeros(int(ring.max()) + 1)
    count = torch.bincount(ring).to(power)
    mean = total.index_add(0, ring, power.flatten()) / count
    return mean[ring].reshape(power.shape).clamp_min(1e-12)


def words(text: str) -> list[str]:
    """Split a prompt into its words, in lower case.

    >>> words("A noto swan, twice.")
    ['a', 'noto', 'swan', 'twice']
    """
    return re.findall(r"\w+", text.lower())
