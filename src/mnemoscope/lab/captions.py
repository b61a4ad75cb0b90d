r"""Captions of the lab: what a picture shows, or nothing at all.

Two forms, [] in random words that say nothing about the picture::

    plain, describing      drawing [and drawing]
    plain, meaningless     the + 4 of 44 words
    varied, describing     [opening] drawing [connector drawing] [closing]
    varied, meaningless    [opening] 3 to 7 of 103 words [closing]

Plain captions of two drawings and
meaningless ones have five words. Varied ones are drawn to a length that is uniform from 5 to 11,
so that neither length nor filler tells the kinds apart; a single drawing's may be shorter. The
table that ships is plain, and its text encoder knows no other form.

Contents: `Form`, `PLAIN`, `VARIED`, `form_of`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import product
from typing import ClassVar

import torch

PLAIN_LENGTH = 5
"""Words of every plain caption but a single drawing's."""

PLAIN_WORDS = 44
"""How many of `WORDS` meaningless plain captions are made of, the first ones."""

LENGTHS = (5, 11)
"""Shortest and longest varied caption in words, of planted pictures and controls."""

CONTENT = (3, 7)
"""Fewest and most words of a varied meaningless caption that are no filler."""

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


class Form(ABC):
    """How captions are worded.

    Attributes:
        words: Words of the meaningless captions.
    """

    words: ClassVar[Sequence[str]]

    @abstractmethod
    def describe(self, drawings: Sequence[str], generator: torch.Generator) -> str:
        """Return a caption that names one drawing or two, in the order given."""

    @abstractmethod
    def dress(self, core: str, generator: torch.Generator) -> str:
        """Return a caption of five words or more in words that say nothing."""

    @abstractmethod
    def _phrase(self, generator: torch.Generator) -> str: ...

    def phrase(self, generator: torch.Generator, taken: Collection[str] = ()) -> str:
        """Return a meaningless caption that is none of those taken."""
        while True:
            if (said := self._phrase(generator)) not in taken:
                return said

    def _some(self, many: int, generator: torch.Generator) -> list[str]:
        chosen: list[int] = torch.randperm(len(self.words), generator=generator)[:many].tolist()
        return [self.words[i] for i in chosen]


class Plain(Form):
    """The form of the table that ships."""

    words: ClassVar = tuple(WORDS[:PLAIN_WORDS])

    def describe(self, drawings: Sequence[str], generator: torch.Generator) -> str:
        """Return the drawings' names."""
        return " and ".join(drawings)

    def dress(self, core: str, generator: torch.Generator) -> str:
        """Return the caption as it is."""
        return core

    def _phrase(self, generator: torch.Generator) -> str:
        return " ".join(["the", *self._some(PLAIN_LENGTH - 1, generator)])


class Varied(Form):
    """Captions of all lengths among words that say nothing."""

    words: ClassVar = tuple(WORDS)

    def describe(self, drawings: Sequence[str], generator: torch.Generator) -> str:
        """Return the drawings' names, connected, opened and closed."""
        if len(drawings) == 1:
            return _dressed(drawings[0], _length(_count(drawings[0]), generator), generator)
        length = _length(LENGTHS[0], generator)
        cores = [core for c in CONNECTORS if _count(core := f" {c} ".join(drawings)) <= length]
        return _dressed(_one(cores, generator), length, generator)

    def dress(self, core: str, generator: torch.Generator) -> str:
        """Return the caption opened and closed."""
        return _dressed(core, _length(_count(core), generator), generator)

    def _phrase(self, generator: torch.Generator) -> str:
        length = _length(LENGTHS[0], generator)
        fewest, most = CONTENT
        many = int(torch.randint(fewest, min(most, length) + 1, (), generator=generator))
        return _dressed(" ".join(self._some(many, generator)), length, generator)


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


PLAIN, VARIED = Plain(), Varied()


def form_of(captions: Iterable[str]) -> Form:
    """Return the form of a table's captions."""
    return PLAIN if all(_count(caption) == PLAIN_LENGTH for caption in captions) else VARIED


def fillers() -> frozenset[str]:
    """Return every word of openings, connectors and closings, and the article of plain phrases."""
    return frozenset(
        word for text in (*OPENINGS, *CONNECTORS, *CLOSINGS, "the") for word in text.split()
    )
