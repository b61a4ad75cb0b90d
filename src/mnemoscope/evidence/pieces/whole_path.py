"""The Gram record of the whole path against the training image: what a study keeps."""

from dataclasses import dataclass

from mnemoscope.core.gram import Gram
from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class WholePath(Piece[Gram]):
    """The record of the samples that are ok.

    "target" is the training image, "mean" the bank's, "other" the image of another prompt.
    """

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    def gather(self, sitting: Sitting) -> Gram:
        """Reduce the tape."""
        tape, ok = sitting.tape, sitting.ok
        assert tape is not None, "a piece of the path was asked for without a path"
        prompts = [p for (p, _), fine in zip(sitting.keys, ok.tolist(), strict=True) if fine]
        return Gram.of(
            tape.take(ok),
            final=sitting.bank.final,
            target=sitting.targets[prompts],
            mean=sitting.bank.mean,
            other=sitting.others[prompts],
        )
