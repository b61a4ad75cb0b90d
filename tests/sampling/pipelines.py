"""Live pipelines, tiny and random, and how each is run to its latents or its image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, LDMTextToImagePipeline

from tests import tiny

PROMPTS = ["a cat", "a dog"]


@dataclass
class Live:
    """A pipeline and how it is run.

    Attributes:
        pipe: The pipeline.
        arguments: What it is called with, guidance and steps aside.
        scale: Name of the argument that guides it; None where nothing does.
        output: What is asked for.
    """

    pipe: Any
    arguments: dict[str, Any] = field(default_factory=lambda: {"prompt": PROMPTS})
    scale: str | None = "guidance_scale"
    output: str = "latent"

    def run(self, guidance: float = 1.0, steps: int = 4, **more: Any) -> torch.Tensor:
        scale = {} if self.scale is None else {self.scale: guidance}
        options = {
            "num_inference_steps": steps,
            "output_type": self.output,
            "generator": torch.Generator().manual_seed(0),
            **scale,
            **self.arguments,
            **more,
        }
        return torch.as_tensor(self.pipe(**options)[0])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stable_diffusion(prediction_type="epsilon"):
    return Live(tiny.tiny_pipeline(prediction_type))


def small(pipe):
    return Live(pipe, {"prompt": PROMPTS, "height": 16, "width": 16})


def stable_diffusion_3():
    return small(tiny.tiny_sd3())


def flux(embedded=True):
    live = small(tiny.tiny_flux(guidance_embeds=embedded))
    live.scale = "true_cfg_scale"
    live.arguments |= {"negative_prompt": ["", ""], "guidance_scale": 3.5}
    return live


def pixart():
    live = small(tiny.tiny_pixart())
    live.arguments |= {"use_resolution_binning": False, "clean_caption": False}
    return live


def latent_diffusion():
    host = tiny.tiny_pipeline()
    pipe = LDMTextToImagePipeline(
        vqvae=host.vae,
        bert=host.text_encoder,
        tokenizer=host.tokenizer,
        unet=host.unet,
        scheduler=DDIMScheduler(**tiny.BETAS),
    )
    pipe.set_progress_bar_config(disable=True)
    return Live(pipe, {"prompt": PROMPTS, "height": 64, "width": 64}, output="np")


def unconditional(pipe):
    return Live(pipe, {"batch_size": 2}, scale=None, output="np")


def ddim():
    pipe = DDIMPipeline(unet=tiny.tiny_ddpm().unet, scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return unconditional(pipe)


GUIDED: Mapping[str, Callable[[], Live]] = {
    "sd": stable_diffusion,
    "sd v": lambda: stable_diffusion("v_prediction"),
    "sd zero-snr": lambda: Live(tiny.tiny_zero_snr()),
    "sdxl": lambda: small(tiny.tiny_sdxl()),
    "sd3": stable_diffusion_3,
    "flux dev": flux,
    "flux schnell": lambda: flux(embedded=False),
    "dit": lambda: Live(tiny.tiny_dit(), {"class_labels": [3, 7]}, output="np"),
    "pixart": pixart,
    "auraflow": lambda: small(tiny.tiny_auraflow()),
    "ldm": latent_diffusion,
}
"""Pipelines that can be guided by two branches."""

UNGUIDED: Mapping[str, Callable[[], Live]] = {
    "ddpm": lambda: unconditional(tiny.tiny_ddpm()),
    "ddim": ddim,
    "ldm": lambda: unconditional(tiny.tiny_ldm()),
}
"""Pipelines that nothing guides."""
