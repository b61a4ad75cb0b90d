"""Stable Diffusion 3 and 3.5: a flow-matching transformer over text and picture together.

Contents: `StableDiffusion3`.
"""

from typing import ClassVar

from mnemoscope.models.capture import Asked
from mnemoscope.models.captured import Captured, Clock

T5_WINDOW = 256
"""Tokens of the third text encoder; those of the other two come before them, and are fewer."""


class StableDiffusion3(Captured):
    """Stable Diffusion 3 and 3.5, with or without the third text encoder."""

    family: ClassVar[str] = "stable-diffusion-3"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    marks: ClassVar[tuple[str, ...]] = ("model.diffusion_model.joint_blocks.",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer_3", "tokenizer")
    clock: Clock = "t a row"

    def longest(self, asked: Asked) -> int:
        """Return the window of the encoder that reads most of a prompt."""
        third = getattr(self.pipeline, "tokenizer_3", None) is not None
        return T5_WINDOW if third else super().longest(asked)
