"""Stable Diffusion 1.x and 2.x: a UNet in a VAE's latent space, conditioned on CLIP text states.

Contents: `StableDiffusion`.
"""

from typing import ClassVar

from mnemoscope.models.captured import Captured


class StableDiffusion(Captured):
    """Stable Diffusion 1.x and 2.x, eps or v."""

    family: ClassVar[str] = "stable-diffusion"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    marks: ClassVar[tuple[str, ...]] = (
        "cond_stage_model.transformer.text_model.",
        "cond_stage_model.model.",
    )
