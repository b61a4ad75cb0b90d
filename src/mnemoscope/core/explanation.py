"""An explanation says which words and which places of a prompt's samples are memorized.

Contents: `Word`, `Token`, `Explanation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Part = Literal["begin", "text", "end", "padding"]
"""What stands at a position of the text encoder's window."""


@dataclass(frozen=True)
class Word:
    """One word of a prompt.

    Attributes:
        text: The word.
        start: Where it begins in the prompt, in characters.
        change: How much of what the prompt does at the first call is changed by leaving it out,
            mean over seeds; 1 is as much as the whole prompt changes.
        low: 16 % quantile over seeds.
        high: 84 % quantile.
    """

    text: str
    start: int
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Token:
    """One position of the text encoder's window.

    Attributes:
        position: The position, from 0.
        text: The token; "" where the model does not tell.
        part: What stands there.
        attribution: How strongly the gap norm hangs on what the text encoder writes there.
        attention_first: Attention to it at the first call; NaN without cross-attention.
        attention_last: Attention to it at the last call.
    """

    position: int
    text: str
    part: Part
    attribution: float
    attention_first: float
    attention_last: float


@dataclass(frozen=True)
class Explanation:
    """Words, positions and places.

    Attributes:
        prompt: The prompt.
        words: Its words; empty where `missing` says why.
        tokens: All positions of the window; empty where `missing` says why.
        maps: Maps by name; one missing could not be made.
        missing: Why words, positions or a map are missing, by name.
        pictures: The samples, RGB from 0 to 1.
        target: The prompt's training image, RGB from 0 to 1; None where there is none.
        window: The model's window in tokens, where the prompt exceeds it; None where it fits.
    """

    prompt: str
    words: tuple[Word, ...]
    tokens: tuple[Token, ...]
    maps: Mapping[str, Float[Tensor, "seed _ _"]]
    missing: Mapping[str, str]
    pictures: Float[Tensor, "seed 3 rows columns"]
    target: Float[Tensor, "3 _ _"] | None = None
    window: int | None = None

    def share(self, part: Part) -> float:
        """Return the share of all attribution that positions of a kind have."""
        total = sum(token.attribution for token in self.tokens)
        return sum(t.attribution for t in self.tokens if t.part == part) / total
