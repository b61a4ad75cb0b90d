r"""Each word of a prompt is left out in turn, to see what hangs on it.

Formula, at the first call, p_j the prompt without word j::

    change_j = mean over seeds of ||eps_c(p) - eps_c(p_j)|| / ||eps_c(p) - eps_u||

Contents: `words_of`, `without`, `changes`.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.explanation import Word

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")


@dataclass(frozen=True)
class Place:
    """A word of a prompt, from `start` up to `end` in characters."""

    text: str
    start: int
    end: int


def words_of(text: str) -> list[Place]:
    """Return the words of a text, in order.

    >>> [place.text for place in words_of("Anna's well-known swan, twice.")]
    ["Anna's", 'well-known', 'swan', 'twice']
    """
    return [Place(found[0], found.start(), found.end()) for found in _WORD.finditer(text)]


def without(text: str) -> list[str]:
    """Return the prompt without each of its words, in order.

    >>> without("a red  cat")
    ['red cat', 'a cat', 'a red']

    Source: occlusion (Zeiler & Fergus 2014), of words.
    """
    return [" ".join((text[: place.start] + text[place.end :]).split()) for place in words_of(text)]


def changes(
    text: str,
    cond: Float[Tensor, "variant seed *latent"],
    uncond: Float[Tensor, "seed *latent"],
) -> tuple[Word, ...]:
    """Say how much each word changes.

    Args:
        text: The prompt.
        cond: Noise estimates at the first call: of the prompt, then without each word.
        uncond: Noise estimates without a prompt.

    Returns:
        The words, in order.
    """
    whole = (cond[0] - uncond).flatten(1).double().norm(dim=1)
    moved = (cond[1:] - cond[0]).flatten(2).double().norm(dim=2) / whole
    ends = torch.tensor([0.16, 0.84], dtype=torch.float64)
    found: list[Word] = []
    for place, part in zip(words_of(text), moved, strict=True):
        low, high = torch.quantile(part, ends).tolist()
        found.append(Word(place.text, place.start, float(part.mean()), low, high))
    return tuple(found)
