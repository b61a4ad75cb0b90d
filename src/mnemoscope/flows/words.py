r"""Other words are put in the place of each word of a prompt, to see what hangs on it.

Formula, at the first call, w_j(p) the prompt with another word in place of word j::

    change_j = mean over w_j and seeds of ||eps_c(p) - eps_c(w_j(p))|| / ||eps_c(p) - eps_u||

A word is replaced and never left out, since that moves every later word to another position; by
words of as many tokens, for the same reason; and by several, since one may happen to fit.

Contents: `ORDINARY`, `words_of`, `replaced`, `changes`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.explanation import Word
from mnemoscope.models.base import Model
from mnemoscope.sampling.loop import generators_of
from mnemoscope.sampling.recipe import seed_of

ORDINARY = (
    "apple basket bottle branch bridge button candle carpet chair cloud corner curtain desk door "
    "feather fence flower forest fountain garden glass hammer hill island kettle kitchen ladder "
    "lake lamp leaf market meadow mirror mountain needle ocean paper pencil pillow plate pocket "
    "pond rain ribbon river road roof rope salt shelf shore spoon square stone street sugar table "
    "thread tower valley village wall water wheel window winter wood yard"
).split()
"""What words are replaced by where a list of prompts has too few of its own."""

FEWEST = 20
"""Words from which on those of the list are taken: they are words the model was trained on."""

DRAWS = 3
"""Other words that are put in the place of each."""

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


def pool_of(texts: Sequence[str]) -> list[str]:
    """Return the words to replace by: those of other prompts, or ordinary ones."""
    known = sorted({place.text for text in texts for place in words_of(text)})
    return known if len(known) >= FEWEST else list(ORDINARY)


def replaced(
    model: Model, text: str, pool: Sequence[str], seed: int, draws: int = DRAWS
) -> list[list[str]]:
    """Return the prompt with other words in the place of each word.

    Args:
        model: Counts tokens.
        text: The prompt.
        pool: Words to choose from; those of the prompt are not taken.
        seed: Seed of the choice.
        draws: How many for each word.

    Returns:
        The changed prompts, by word.

    Source: ours, after occlusion (Zeiler & Fergus 2014).
    """
    places = words_of(text)
    own = {place.text.lower() for place in places}
    others = [word for word in pool if word.lower() not in own]
    lengths = model.token_counts([*(place.text for place in places), *others])
    sizes = np.array(lengths[len(places) :])
    made: list[list[str]] = []
    for at, place in enumerate(places):
        like = np.flatnonzero(np.abs(sizes - lengths[at]) == np.abs(sizes - lengths[at]).min())
        generator = generators_of([seed_of(seed, text, at)])[0]
        chosen = like[torch.randperm(len(like), generator=generator).numpy()[:draws]]
        made.append([text[: place.start] + others[one] + text[place.end :] for one in chosen])
    return made


def changes(
    text: str,
    counts: Sequence[int],
    cond: Float[Tensor, "variant seed *latent"],
    uncond: Float[Tensor, "seed *latent"],
) -> tuple[Word, ...]:
    """Say how much each word changes.

    Args:
        text: The prompt.
        counts: Changed prompts of each word.
        cond: Noise estimates at the first call: of the prompt, then of the changed prompts.
        uncond: Noise estimates without a prompt.

    Returns:
        The words, in order.
    """
    whole = (cond[0] - uncond).flatten(1).double().norm(dim=1)
    moved = (cond[1:] - cond[0]).flatten(2).double().norm(dim=2) / whole
    found: list[Word] = []
    for place, part in zip(words_of(text), moved.split(list(counts)), strict=True):
        low, high = torch.quantile(part, torch.tensor([0.16, 0.84], dtype=torch.float64)).tolist()
        found.append(Word(place.text, place.start, float(part.mean()), low, high))
    return tuple(found)
