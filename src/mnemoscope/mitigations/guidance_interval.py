r"""Guidance in an interval of the path only; outside it the prompt samples alone.

Formula, with i the index of a call of N, and c, u the predictions with and without the prompt::

    guided = u + g·(c - u)     where strength <= i / N < stop          guided = c     elsewhere
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.errors import InputError
from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class GuidanceInterval(Mitigation):
    """Guide in an interval of the path only.

    Attributes:
        strength: Share of the calls before guidance begins.
        stop: Share of the calls at which it ends.
    """

    name: ClassVar[str] = "guidance_interval"
    source: ClassVar[str] = "Kynkäänniemi et al. 2024, section 3"
    strengths: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.4, 0.6)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"strength": (0.0, 1.0), "stop": (0.0, 1.0)}

    strength: float = 0.2
    stop: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an interval that is none.

        Raises:
            InputError: If it does not lie within [0, 1], or is empty.
        """
        super().__post_init__()
        if self.strength >= self.stop:
            raise InputError(
                f"interval from {self.strength} to {self.stop} given; expected strength < stop, "
                "as shares of the path"
            )

    def guide(self, step: Step) -> Latents:
        """Guide within the interval."""
        return step.guided() if self.strength <= step.share < self.stop else step.raw["cond"]
