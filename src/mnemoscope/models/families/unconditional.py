"""Unconditional diffusion of pixels or of latents: any prompt means the same, nothing.

Contents: `Unconditional`.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from mnemoscope.models.base import Guidance
from mnemoscope.models.captured import CODECS, Captured
from mnemoscope.models.family import Host
from mnemoscope.sampling.loop import start_scale


class Unconditional(Captured):
    """A network that is told nothing but state and time; of pixels where it has no autoencoder."""

    family: ClassVar[str] = "unconditional"
    pipelines: ClassVar[tuple[str, ...]] = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline")
    guidance: Guidance = "none"
    no_uncond: str = "it is unconditional: its only branch is the one under any prompt"
    joint: bool = False
    order: tuple[str, ...] = ("cond",)

    def __init__(self, host: Host) -> None:
        self.pixels = not any(hasattr(host.pipeline, name) for name in CODECS)
        self.of_ddim = any(base.__name__ == "DDIMPipeline" for base in type(host.pipeline).__mro__)
        super().__init__(host)

    def options(
        self, prompts: Sequence[str], guidance: float, steps: int, generators: Any
    ) -> dict[str, Any]:
        """Return the arguments of a call."""
        del guidance
        return {
            "batch_size": len(prompts),
            "generator": generators,
            "num_inference_steps": steps,
            "output_type": "np",
        }

    def drives(self, scheduler: Any) -> bool:
        """Return whether the pipeline, which for pixels scales no noise, can call the scheduler."""
        if not self.pixels:
            return True
        if self.of_ddim:
            return type(scheduler).__name__ == "DDIMScheduler"
        takes = "generator" in inspect.signature(scheduler.step).parameters
        return takes and start_scale(scheduler) == 1
