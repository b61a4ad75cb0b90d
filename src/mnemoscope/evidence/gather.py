"""Gathering makes the union of the pieces that are asked for, once, for the prompts of a sitting.

Contents: `sit`, `gather`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import (
    NO_IMAGE,
    NO_TIMESTEPS,
    Absent,
    Evidence,
    Piece,
    path_calls,
)
from mnemoscope.evidence.sitting import Sitting

NO_FORWARD_MODE = (
    "the network has no forward-mode derivative (an operation lacks one); "
    "sharpness:difference does without"
)


def sit(
    bank: Bank,
    prompts: Sequence[Prompt],
    places: Sequence[int],
    pieces: Iterable[Piece[Any]],
    *,
    frequency: Mapping[str, float] | None = None,
    targets: Callable[[Sequence[Prompt]], Float[Tensor, "prompt d"]] | None = None,
    others: Callable[[Sequence[Prompt]], Float[Tensor, "prompt d"]] | None = None,
    spent: dict[Piece[Any], float] | None = None,
) -> Sitting:
    """Begin a sitting: encode prompts, draw noise, sample as much of the path as any piece takes.

    Args:
        bank: What all prompts share.
        prompts: The prompts.
        places: Place of each in its list, from 0.
        pieces: What will be gathered.
        frequency: As for `Sitting`.
        targets: As for `Sitting`.
        others: As for `Sitting`.
        spent: Seconds so far by piece, added to: a shorter path alone would take its share.
    """
    asked = tuple(dict.fromkeys(pieces))
    length = path_calls(asked, bank.calls)
    begun = time.perf_counter()
    sitting = Sitting(
        bank,
        prompts,
        places,
        length=length,
        attention=any(piece.attention for piece in asked),
        frequency=frequency,
        targets=targets,
        others=others,
    )
    taken = time.perf_counter() - begun
    if spent is not None and length:
        for piece in asked:
            share = path_calls([piece], bank.calls) / length
            spent[piece] = spent.get(piece, 0.0) + taken * share
    return sitting


def gather(
    sitting: Sitting, pieces: Iterable[Piece[Any]], spent: dict[Piece[Any], float] | None = None
) -> Evidence:
    """Gather pieces for the prompts of a sitting.

    Args:
        sitting: The sitting; its path is as long as the pieces take.
        pieces: What to gather; equal pieces once.
        spent: Seconds so far by piece, added to.

    Returns:
        The evidence; what could not be gathered says why.
    """
    found: dict[Piece[Any], Any] = {}
    for piece in dict.fromkeys(pieces):
        begun = time.perf_counter()
        found[piece] = _gathered(sitting, piece)
        if spent is not None:
            spent[piece] = spent.get(piece, 0.0) + time.perf_counter() - begun
    return Evidence(len(sitting.prompts), sitting.seeds, found)


def _gathered(sitting: Sitting, piece: Piece[Any]) -> Any:
    if piece.uncond and not sitting.model.has_uncond:
        return Absent(sitting.model.no_uncond)
    if piece.pair and not any(prompt.images for prompt in sitting.prompts):
        return Absent(NO_IMAGE)
    if piece.timesteps and sitting.bank.network.kind == "flow":
        return Absent(NO_TIMESTEPS)
    if piece.calls != 0 and sitting.tape is None:
        reasons = [outcome.reason for outcome in sitting.outcomes if outcome.reason]
        return Absent(reasons[0] if reasons else "the path was not sampled")
    try:
        return piece.gather(sitting)
    except NotImplementedError:
        # What torch raises for an operation without a forward-mode derivative.
        return Absent(NO_FORWARD_MODE)
