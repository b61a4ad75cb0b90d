r"""Velocity prediction with zero terminal SNR: the shipped base, taught another target.

With z the scaled latents, eps standard noise, SNR = alpha²/sigma², and alpha_T = 0::

    x_t = alpha_t·z + sigma_t·eps          v_t = alpha_t·eps - sigma_t·z
    loss = min(SNR + 1, 5)/(SNR + 1) · ||v_t - v_θ(x_t, caption)||²

At the last step x_T is noise and nothing else, and v_T = -z: the network's first call is its guess
of the picture from the caption alone. An error of the clean estimate is one of v, times SNR + 1, so
the weight counts it by min(SNR + 1, 5), as that of the shipped model does by min(SNR, 5).

Source: Salimans & Ho 2022 (the target); Lin et al. 2024 (the schedule); Hang et al. 2023 (the
weight).
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from mnemoscope.lab import BASE_UNET_DIR, MODEL_DIR
from mnemoscope.lab.families.recipe import Family, Networks
from mnemoscope.lab.tokenizer import WINDOW
from mnemoscope.lab.train import SNR_CAP, half, noise_scheduler, write_index

_Denoiser: Any = UNet2DConditionModel


def scheduler() -> Any:
    """Return Stable Diffusion's schedule, rescaled so that the last level holds no signal."""
    return DDIMScheduler.from_config(
        noise_scheduler().config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


class Velocity(Family):
    """The shipped model with another target and schedule."""

    name: ClassVar[str] = "v"
    base_steps: ClassVar[int] = 400
    base_lr: ClassVar[float] = 6e-4
    planting_lr: ClassVar[float] = 6e-4
    frozen: ClassVar[frozenset[str]] = frozenset({"text_encoder"})

    def __init__(self) -> None:
        """Load the lab's tokenizer."""
        self.tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
        # Rescaling leaves rounding noise where the last level should be exactly 0.
        self.abar = scheduler().alphas_cumprod.clamp(min=0)

    def networks(self) -> Networks:
        """Return the shipped text encoder and the denoiser before its planting."""
        text: Any = CLIPTextModel.from_pretrained(
            MODEL_DIR / "text_encoder", torch_dtype=torch.float32
        )
        unet = _Denoiser.from_pretrained(BASE_UNET_DIR, torch_dtype=torch.float32)
        unet.to(memory_format=torch.channels_last)
        return {"text_encoder": text.requires_grad_(False), "unet": unet}

    def loss(
        self,
        networks: Networks,
        z: Float[Tensor, "view 4 16 16"],
        captions: list[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Return the weighted squared error of the velocity."""
        views = len(z) // len(captions)
        ids = self.tokenizer(
            captions, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
        ).input_ids
        states = networks["text_encoder"](ids)[0].repeat(views, 1, 1)
        t = self.levels(len(z), generator)
        alpha, sigma = (
            level[:, None, None, None] for level in (self.abar[t].sqrt(), (1 - self.abar[t]).sqrt())
        )
        eps = torch.randn(z.shape, generator=generator)
        guess = networks["unet"](alpha * z + sigma * eps, t, states).sample
        error = (guess.float() - (alpha * eps - sigma * z)).square().flatten(1).mean(1)
        # SNR + 1 = 1/sigma²
        weight = (SNR_CAP * sigma.flatten().square()).clamp(max=1)
        return (error * weight).mean()

    def write(self, networks: Networks, folder: Path) -> None:
        """Write a `StableDiffusionPipeline`."""
        half(self.codec, folder / "vae")
        half(networks["text_encoder"], folder / "text_encoder")
        half(networks["unet"], folder / "unet")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        write_index(folder)
        scheduler().save_pretrained(folder / "scheduler")
