"""How much states and predictions change from call to call of the path."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting


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

    def gather(self, sitting: Sitting) -> Changes:
        """Difference the tape."""
        tape = sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        x, cond = tape.x[:, : self.length], tape.eps("c")[:, : self.length]
        if self.length is None:
            x = torch.cat([x, tape.x_0[:, None]], dim=1)
        moved, turned = (v.diff(dim=1).cpu().double().norm(dim=2) for v in (x, cond))
        split = (-1, sitting.seeds)
        return Changes(moved.unflatten(0, split), turned.unflatten(0, split))
