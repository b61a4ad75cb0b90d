r"""Word repetition: words of the prompt, inserted once more.

Formula, with w_1 .. w_r drawn uniformly from the prompt's own words::

    prompt_0 = prompt        prompt_k = prompt_{k-1} with w_k at a place drawn uniformly

Every sample draws its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.mitigations.base import Mitigation, inserted
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Start


@dataclass(frozen=True)
class WordRepetition(Mitigation):
    """Repeat random words of the prompt.

    Attributes:
        strength: How many words r, rounded.
    """

    name: ClassVar[str] = "word_repetition"
    source: ClassVar[str] = "Somepalli et al. 2023, CWR"
    strengths: ClassVar[tuple[float, ...]] = (1.0, 2.0, 4.0, 6.0, 8.0)
    neutral: ClassVar[float | None] = 0.0

    strength: float = 4.0

    def condition(self, start: Start) -> Condition:
        """Insert words once more."""
        if round(self.strength) == 0:
            return start.cond
        choices = [prompt.split(" ") for prompt in start.prompts]
        return inserted(start, self.name, choices, round(self.strength))
