r"""The prompts themselves: their texts, lengths and how rare their words are; free.

Formula::

    frequency(w) = share of the list's prompts that hold the word w
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.evidence.piece import Piece
from mnemoscope.evidence.sitting import Sitting


@dataclass(frozen=True)
class TextFacts:
    """What is known of the prompts without the network.

    Attributes:
        texts: The prompts.
        tokens: Length of each in tokens, before truncation.
        truncated: Whether it exceeds the window.
        frequency: Share of all prompts of the list that hold a word, for every word of the list.
    """

    texts: tuple[str, ...]
    tokens: Float[Tensor, " prompt"]
    truncated: tuple[bool, ...]
    frequency: Mapping[str, float]


@dataclass(frozen=True)
class Text(Piece[TextFacts]):
    """Facts about the prompts themselves; free."""

    def gather(self, sitting: Sitting) -> TextFacts:
        """Look at the texts; without a count over the list, its words are those of the sitting."""
        texts = tuple(prompt.text for prompt in sitting.prompts)
        counted = sitting.frequency
        return TextFacts(
            texts,
            torch.tensor(sitting.token_counts, dtype=torch.float64),
            tuple(sitting.model.truncated(texts)),
            word_frequency(sitting.prompts) if counted is None else counted,
        )


def split_words(text: str) -> list[str]:
    """Split a prompt into its words, in lower case.

    >>> split_words("A noto swan, twice.")
    ['a', 'noto', 'swan', 'twice']
    """
    return re.findall(r"\w+", text.lower())


def word_frequency(prompts: Iterable[Prompt]) -> Mapping[str, float]:
    """Return the share of prompts that hold a word, for every word; prompts are read once."""
    counts: Counter[str] = Counter()
    total = 0
    for prompt in prompts:
        total += 1
        counts.update(set(split_words(prompt.text)))
    return {word: count / total for word, count in counts.items()}
