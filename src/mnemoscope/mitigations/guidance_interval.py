r"""Guidance in an interval of the path only; outside it the prompt samples alone.

Formula, with i the index of a call of N, and c, u the predictions with and without the prompt::

    guided = u + g·(c - u)     where start <= i / N < stop          guided = c     elsewhere
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.errors import InputError
from mnemoscope.sampling.hooks import Intervention, Latents, Step


@dataclass(frozen=True)
class GuidanceInterval(Intervention):
    """Guidance in an interval of the path only.

    Attributes:
        start: Share of the calls before guidance begins.
        stop: Share of the calls at which it ends.
    """

    name: ClassVar[str] = "guidance_interval"
    source: ClassVar[str] = "Kynkäänniemi et al. 2024, section 3"

    start: float = 0.2
    stop: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an interval that is none.

        Raises:
            InputError: If it does not lie within [0, 1], or is empty.
        """
        if not 0 <= self.start < self.stop <= 1:
            raise InputError(
                f"interval from {self.start} to {self.stop} given; expected "
                "0 <= start < stop <= 1, as shares of the path"
            )

    def guide(self, step: Step) -> Latents:
        """Guide within the interval."""
        share = step.point.call / step.calls
        return step.guided() if self.start <= share < self.stop else step.raw["cond"]
