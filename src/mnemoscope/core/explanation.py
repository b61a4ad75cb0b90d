"""An explanation says which tokens and which places of a prompt's samples are memorized.

Contents: `Token`, `Explanation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Token:
    """One position of the text encoder's window.

    Attributes:
        position: The position, from 0.
        text: The token; "" where the model does not tell.
        attribution: How strongly the gap norm hangs on its embedding.
        attention_first: Attention to it at the first call; NaN without cross-attention.
        attention_last: Attention to it at the last call.
    """

    position: int
    text: str
    attribution: float
    attention_first: float
    attention_last: float


@dataclass(frozen=True)
class Explanation:
    """Tokens and places.

    Attributes:
        prompt: The prompt.
        tokens: All positions up to the first end token.
        rest: Attribution of all positions behind it together, the padding.
        maps: Maps by name; one missing could not be made, `missing` says why.
        missing: Why a map is missing, by name.
        pictures: The samples, RGB from 0 to 1.
        window: The model's window in tokens, where the prompt exceeds it; None where it fits.
    """

    prompt: str
    tokens: tuple[Token, ...]
    rest: float
    maps: Mapping[str, Float[Tensor, "seed _ _"]]
    missing: Mapping[str, str]
    pictures: Float[Tensor, "seed 3 rows columns"]
    window: int | None = None
