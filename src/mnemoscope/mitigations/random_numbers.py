r"""Random numbers: whole numbers below 100,000, inserted into the prompt.

Formula, with w_1 .. w_r drawn uniformly from 0 .. 99,999::

    prompt_0 = prompt        prompt_k = prompt_{k-1} with w_k at a place drawn uniformly

Every sample draws its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.mitigations.base import Mitigation, inserted
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Start


class _Numbers(Sequence[str]):
    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, at: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(at)


@dataclass(frozen=True)
class RandomNumbers(Mitigation):
    """Insert random numbers into the prompt.

    Attributes:
        strength: How many numbers r, rounded.
    """

    name: ClassVar[str] = "random_numbers"
    source: ClassVar[str] = "Somepalli et al. 2023, RNA"
    strengths: ClassVar[tuple[float, ...]] = (1.0, 2.0, 4.0, 6.0, 8.0)
    neutral: ClassVar[float | None] = 0.0

    strength: float = 4.0

    def condition(self, start: Start) -> Condition:
        """Insert numbers."""
        if round(self.strength) == 0:
            return start.cond
        choices = [_Numbers()] * len(start.prompts)
        return inserted(start, self.name, choices, round(self.strength))
