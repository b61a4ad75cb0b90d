r"""Random tokens: tokens of the model's vocabulary, inserted into the prompt.

Formula, with w_1 .. w_r drawn uniformly from the vocabulary, special tokens left out::

    prompt_0 = prompt        prompt_k = prompt_{k-1} with w_k at a place drawn uniformly

Every sample draws its own. The vocabulary's tokens need not be whole words.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.errors import ModelError
from mnemoscope.mitigations.base import Mitigation, inserted
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Start


@dataclass(frozen=True)
class RandomTokens(Mitigation):
    """Insert random tokens into the prompt.

    Attributes:
        strength: How many tokens r, rounded.
    """

    name: ClassVar[str] = "random_tokens"
    source: ClassVar[str] = "Somepalli et al. 2023, RTA"
    strengths: ClassVar[tuple[float, ...]] = (1.0, 2.0, 4.0, 6.0, 8.0)
    neutral: ClassVar[float | None] = 0.0

    strength: float = 4.0

    def condition(self, start: Start) -> Condition:
        """Insert tokens.

        Raises:
            ModelError: If the model has no vocabulary.
        """
        if round(self.strength) == 0:
            return start.cond
        words = start.words()
        if not words:
            raise ModelError(f"{self} draws tokens, and this model has no vocabulary")
        return inserted(start, self.name, [words] * len(start.prompts), round(self.strength))
