r"""The Gram record of the first calls of the guided path, with what the seeds agree on.

Formulas, means over the n seeds of a prompt at the first call::

    consensus   = (1/n) sum_s x0_c(s)        consensus_u = (1/n) sum_s x0_u(s)
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level
from mnemoscope.core.record import Trajectory
from mnemoscope.evidence.piece import Absent, Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class Steps:
    """The Gram record of the first calls of the guided path.

    Attributes:
        gram: Products, prompts in the outer and seeds in the inner order. Beside the tape stand
            "consensus" and "consensus_u". "x_0" exists on a whole path only.
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
        products = self.gram.products[:, :calls].clone()
        if calls < self.gram.calls:
            # Whoever asks for a part of the path is given the same, whoever asks for more.
            x_0 = self.gram.names.index("x_0")
            products[:, :, x_0] = products[:, :, :, x_0] = torch.nan
        gram = replace(self.gram, level=level, products=products)
        return replace(self, gram=gram, exact=(self.exact[0][:calls], self.exact[1][:calls]))


@dataclass(frozen=True)
class PathRecord(Piece[Steps]):
    """The Gram record of the first calls of the guided path.

    Attributes:
        length: Number of calls; None for the whole path.
    """

    length: int | None = 1

    @property
    def calls(self) -> int | None:
        """Return its length."""
        return self.length

    def gather(self, sitting: Sitting) -> Steps | Absent:
        """Reduce the tape."""
        steps: Steps = sitting.keep("steps", lambda: _steps(sitting))
        return steps if self.length is None else steps.first(self.length)


def _steps(sitting: Sitting) -> Steps:
    tape = sitting.tape
    assert tape is not None, "a piece of the path was asked for without a path"
    exact = sitting.bank.exact[0][: tape.calls], sitting.bank.exact[1][: tape.calls]
    return steps_of(tape, sitting.seeds, sitting.bank.final, exact)


def steps_of(
    tape: Trajectory,
    seeds: int,
    final: Level,
    exact: tuple[Float[Tensor, " call"], Float[Tensor, " call"]],
) -> Steps:
    """Reduce the tape of some prompts to their record.

    Args:
        tape: Prompts in the outer and seeds in the inner order.
        seeds: Seeds a prompt.
        final: Level that the last update of the path arrives at.
        exact: Weights (w0, wT) of the exact unguided path at every call.
    """

    def agreed(first: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
        means = first.unflatten(0, (-1, seeds)).mean(dim=1)
        return means.repeat_interleave(seeds, dim=0)

    first = _first(tape)
    gram = Gram.of(
        tape,
        final=final,
        consensus=agreed(first.x0("c")[:, 0]),
        consensus_u=agreed(first.x0("u")[:, 0]),
    )
    return Steps(gram, len(tape.x) // seeds, seeds, exact)


def _first(tape: Trajectory) -> Trajectory:
    """Return the tape of the first call."""
    moving = {name: getattr(tape, name)[:, :1] for name in ("x", "v_u", "v_c", "v_g")}
    return replace(tape, level=Level(*(part[:1] for part in tape.level)), **moving)
