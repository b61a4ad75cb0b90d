"""States and predictions at the first or the last call of the path, in place."""

from dataclasses import dataclass, replace
from typing import Literal

from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.evidence.values import LatentMaps


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

    def gather(self, sitting: Sitting) -> LatentMaps:
        """Cut the call out of the tape."""
        tape = sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        call = 0 if self.at == "first" else sitting.bank.calls - 1
        level = tape.level.at(call)
        moving = {name: getattr(tape, name)[:, call : call + 1] for name in ("x", "v_u", "v_c")}
        one = replace(
            tape, level=type(level)(*(part.reshape(1) for part in level)), v_g=tape.v_g[:, :1],
            **moving,
        )  # fmt: skip
        parts = (one.x, one.eps("u"), one.eps("c"), one.x0("u"), one.x0("c"))
        return LatentMaps(level, *(part[:, 0].reshape(sitting.shape).cpu() for part in parts))
