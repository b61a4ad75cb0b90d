"""DiT: a transformer conditioned on one of a list of classes.

A prompt is the text of a class, or its number; the empty prompt is the class that stands for none.

Contents: `DiT`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.models.capture import Asked
from mnemoscope.models.captured import Captured, Clock
from mnemoscope.models.family import Host
from mnemoscope.sampling.loop import start_scale

NULL = 1000
"""The class that stands for none; the pipeline knows no other."""


class DiT(Captured):
    """Class-conditional DiT, its learned variance cut off."""

    family: ClassVar[str] = "dit"
    pipelines: ClassVar[tuple[str, ...]] = ("DiTPipeline",)
    order: tuple[str, ...] = ("cond", "uncond")
    clock: Clock = "t a row"

    def __init__(self, host: Host) -> None:
        self.labels: dict[str, int] = dict(host.pipeline.labels)
        self.examples = ("0", "1")
        super().__init__(host)

    def options(
        self, prompts: Sequence[str], guidance: float, steps: int, generators: Any
    ) -> dict[str, Any]:
        """Return the arguments of a call."""
        return {
            "class_labels": [self.class_of(prompt) for prompt in prompts],
            "guidance_scale": guidance,
            "num_inference_steps": steps,
            "generator": generators,
            "output_type": "pt",
        }

    def drives(self, scheduler: Any) -> bool:
        """Return whether the scheduler starts from unit noise, for the pipeline scales none."""
        return start_scale(scheduler) == 1

    def longest(self, asked: Asked) -> int:
        """Return 1: a class is one token."""
        del asked
        return 1

    def class_of(self, prompt: str) -> int:
        """Return the class that a prompt names.

        Raises:
            InputError: If there is none of that name or number.
        """
        text = prompt.strip()
        if not text:
            return NULL
        if text in self.labels:
            return self.labels[text]
        if text.isdecimal() and int(text) < NULL:
            return int(text)
        known = self.labels or [str(number) for number in (0, NULL - 1)]
        told = did_you_mean(text, known, "class")
        if len(told) > 500:
            told = f"unknown class {text!r}; there are {len(self.labels)} with a text"
        raise InputError(f"{told} A class is given by its text or by a number below {NULL}.")

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Count one token a class."""
        return [1 if prompt.strip() else 0 for prompt in prompts]

    def token_texts(self, prompt: str) -> list[str]:
        """Return the class as the only token."""
        return [prompt.strip()]
