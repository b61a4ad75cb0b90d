"""Stable Diffusion XL: two text encoders, their pooled states, and the picture's size as time ids.

An empty negative prompt becomes zeros, not the text states of nothing, where the pipeline says so.

Contents: `StableDiffusionXL`.
"""

from typing import ClassVar

from mnemoscope.models.captured import Captured


class StableDiffusionXL(Captured):
    """Stable Diffusion XL."""

    family: ClassVar[str] = "stable-diffusion-xl"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    marks: ClassVar[tuple[str, ...]] = ("conditioner.embedders.1.model.",)
