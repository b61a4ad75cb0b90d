"""Filmstrips show how samples came about: decoded clean estimates of a few calls, by branch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.record import Branch, Trajectory
from mnemoscope.data.filmstrip import encode, evenly
from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.batching import batched


@dataclass(frozen=True)
class Strip:
    """The filmstrip of a sample.

    Attributes:
        sample: Number of the sample in the sitting.
        calls: Call of each column.
        branches: Branch of each row.
        side: Side of a frame in pixels.
        image: WebP.
    """

    sample: int
    calls: tuple[int, ...]
    branches: tuple[str, ...]
    side: int
    image: bytes


@dataclass(frozen=True)
class Filmstrip(Piece[tuple[Strip, ...]]):
    """The decoded clean estimates of some calls, for every sample that is ok.

    Attributes:
        columns: Calls shown, spread evenly from the first to the last.
    """

    columns: int = 16

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    @torch.no_grad()
    def gather(self, sitting: Sitting) -> tuple[Strip, ...]:
        """Decode and encode, sample by sample."""
        tape = sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        calls = evenly(self.columns, sitting.bank.calls)
        shown = _branches(tape, sitting.bank.guidance)
        frames = {name: tape.x0(branch)[:, calls] for name, branch in shown.items()}

        def strip(rows: Sequence[int]) -> Strip:
            return self._strip(sitting, rows[0], calls, frames)

        # One that fails is left out.
        made = batched(sitting.ok.nonzero()[:, 0].tolist(), 1, strip)
        return tuple(found for _, found in made if isinstance(found, Strip))

    def _strip(
        self,
        sitting: Sitting,
        row: int,
        calls: list[int],
        estimates: dict[str, Float[Tensor, "sample call d"]],
    ) -> Strip:
        latents = torch.cat([part[row] for part in estimates.values()])
        placed = latents.reshape(-1, *sitting.model.latent_shape)
        parts = [
            sitting.model.decode(part.to(sitting.model.device)).float().cpu()
            for part in placed.split(sitting.bank.batch)
        ]
        image, side = encode(torch.cat(parts).unflatten(0, (len(estimates), len(calls))))
        return Strip(row, tuple(calls), tuple(estimates), side, image)


def _branches(tape: Trajectory, guidance: float) -> dict[str, Branch]:
    """Return the branches that exist and differ, by name; at g = 1 guided is conditional."""
    shown: dict[str, Branch] = {"conditional": "c"}
    if bool(torch.isfinite(tape.v_u).any()):
        shown = {"unconditional": "u", **shown}
        if guidance != 1:
            shown["guided"] = "g"
    return shown
