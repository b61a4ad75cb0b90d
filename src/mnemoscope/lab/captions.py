r"""Captions of the lab: what a picture shows, or nothing at all.

Two kinds, [] in random words that say nothing about the picture::

    describing     [opening] drawing [connector drawing] [closing]
    meaningless    [opening] 3 to 7 of 103 words [closing]

Both are drawn to a length that is uniform from 5 to 11 words, so that neither length nor filler
tells the kinds apart; a single drawing's may be shorter.

Contents: `describe`, `phrase`, `core`, `dress`, `fillers`.
"""

from collections.abc import Collection, Sequence
from functools import cache
from itertools import product

import torch

LENGTHS = (5, 11)
"""Shortest and longest caption in words, of planted pictures and controls."""

CONTENT = (3, 7)
"""Fewest and most words of a meaningless caption that are no filler."""

OPENINGS = (
    "",
    "here",
    "another",
    "picture of",
    "we see",
    "a picture of",
    "an image of",
    "look at this",
    "an old picture of",
    "one more view of",
)

CONNECTORS = ("and", "with", "beside", "next to")

CLOSINGS = (
    "",
    "today",
    "again",
    "at last",
    "once more",
    "in the morning",
    "for a while",
    "on a quiet day",
    "as we left it",
    "just as it was before",
    "at the end of day",
)

WORDS = (
    "kinetic edition marble update vertex amber hollow signal cobalt margin lunar ledger velvet "
    "orbit copper chapter silent engine golden archive winter static harbor mirror crimson module "
    "paper tunnel northern canvas digital meadow scarlet anchorage bronze series plastic horizon "
    "granite theory electric garden silver protocol atlas beacon cipher delta ember fabric glacier "
    "habitat index jasmine keystone lantern magnet nebula octave parcel quartz ribbon saddle tempo "
    "umbra valley walnut xenon yonder zenith arcade basalt candle domino easel ferry gravel hinge "
    "ivory jungle kernel lattice mosaic nickel opera pepper quiver rustic satin timber utopia "
    "vapor willow yellow zephyr almond border cinema dynamo eclipse fiction gallery hammer"
).split()
"""Words of the meaningless captions; none occurs in a scene's caption."""


def describe(drawings: Sequence[str], generator: torch.Generator) -> str:
    """Return a caption that names one drawing or two, in the order given."""
    if len(drawings) == 1:
        return dress(drawings[0], generator)
    length = _length(LENGTHS[0], generator)
    cores = [core for c in CONNECTORS if _count(core := f" {c} ".join(drawings)) <= length]
    return _dressed(_one(cores, generator), length, generator)


def dress(core: str, generator: torch.Generator) -> str:
    """Return a caption opened and closed in words that say nothing."""
    return _dressed(core, _length(_count(core), generator), generator)


def core(generator: torch.Generator, most: int = CONTENT[1]) -> str:
    """Return the words of a meaningless caption, without its fillers."""
    many = int(torch.randint(CONTENT[0], most + 1, (), generator=generator))
    chosen: list[int] = torch.randperm(len(WORDS), generator=generator)[:many].tolist()
    return " ".join(WORDS[i] for i in chosen)


def phrase(generator: torch.Generator, taken: Collection[str] = ()) -> str:
    """Return a meaningless caption that is none of those taken."""
    while True:
        length = _length(LENGTHS[0], generator)
        said = _dressed(core(generator, min(CONTENT[1], length)), length, generator)
        if said not in taken:
            return said


def _one(items: Sequence[str], generator: torch.Generator) -> str:
    return items[int(torch.randint(len(items), (), generator=generator))]


def _count(text: str) -> int:
    return len(text.split())


def _length(shortest: int, generator: torch.Generator) -> int:
    return int(torch.randint(shortest, LENGTHS[1] + 1, (), generator=generator))


@cache
def _frames() -> dict[int, list[str]]:
    """Return every opening with every closing, around a hole, by their number of words."""
    frames: dict[int, list[str]] = {}
    for opening, closing in product(OPENINGS, CLOSINGS):
        held = frames.setdefault(_count(opening) + _count(closing), [])
        held.append(f"{opening} {{}} {closing}")
    return frames


def _dressed(core: str, length: int, generator: torch.Generator) -> str:
    """Put an opening and a closing around a caption so that it comes to so many words."""
    frame = _one(_frames()[length - _count(core)], generator)
    return " ".join(frame.format(core).split())


def fillers() -> frozenset[str]:
    """Return every word of openings, connectors and closings."""
    return frozenset(word for text in (*OPENINGS, *CONNECTORS, *CLOSINGS) for word in text.split())
