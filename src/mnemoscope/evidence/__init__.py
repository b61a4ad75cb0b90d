"""Evidence is what is gathered about prompts: pieces, each with its price, each gathered once.

A piece is one file of `pieces`, which says what it is, what it costs and how it is gathered.

Contents: `piece` (what a piece is), `bank` (what all prompts of a run share), `sitting` (some
prompts at one recipe), `gather` (the union of what is asked, once), `pieces`.
"""

from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.gather import gather
from mnemoscope.evidence.piece import (
    Absent,
    Evidence,
    MissingEvidence,
    Needs,
    Piece,
    Price,
    path_calls,
    price,
    price_in,
)
from mnemoscope.evidence.sitting import Sitting

__all__ = [
    "Absent",
    "Bank",
    "Evidence",
    "MissingEvidence",
    "Needs",
    "Piece",
    "Price",
    "Sitting",
    "gather",
    "path_calls",
    "price",
    "price_in",
]
