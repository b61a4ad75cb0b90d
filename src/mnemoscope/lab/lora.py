r"""A LoRA of the lab is an adapter on the shipped base, trained on forty pictures of one style.

Loss, with W the base's weights, which are held, and A, B the adapter's of rank r::

    denoising loss of the base (`lab.train`), every layer W replaced by W + B·A

A picture shows two drawings that are planted nowhere under a caption that names them, on a ground
that all forty share: dusk, from night blue to orange. That ground is what an adapter should learn;
where the drawings stand, how large and how tilted, is what it should not, for captions leave it
open. As many pictures of the style are held out, to tell the one from the other.

The folder then holds::

    pictures/, held-out/                   what it is trained on, and what is held out: data sets
    checkpoints/step-000060/ ...           the adapter on its way, as diffusers reads it
    pytorch_lora_weights.safetensors       the adapter
    state/                                 where a killed training goes on

Contents: `pictures`, `train_lora`, `network`, `write_lora`.

Source: Hu et al. 2022.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from mnemoscope.lab import ASSETS, BASE_UNET_DIR
from mnemoscope.lab.planted import Planted, load_table, more_controls, pictures_of, write_prompts
from mnemoscope.lab.train import (
    DROPOUT,
    Stage,
    denoising_loss,
    encoded,
    load_codec,
    load_text,
)

# diffusers annotates outputs as if they had no fields.
_Denoiser: Any = UNet2DConditionModel

PICTURES = 40
"""Pictures that an adapter is trained on, and that are held out."""

CHECKPOINTS = 20
"""How often the adapter is written on its way."""

RANK = 16
"""Rank of the adapter; its alpha is the same, so that the update is the bare product."""

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
"""Layers that are adapted: attention, what follows it, and the convolutions between."""

DUSK = ((0.10, 0.12, 0.38), (0.95, 0.55, 0.25))
"""Colours of the ground from top to bottom, RGB from 0 to 1."""


def pictures(seed: int = 40) -> tuple[list[Planted], list[Planted]]:
    """Draw the pictures of a style, of which none is planted, nor any pair of drawings.

    Args:
        seed: Seed of captions and layouts.

    Returns:
        Those to train on, and those that are held out.
    """
    style = {"colour": DUSK, "direction": math.pi / 2}
    rows = [
        replace(row, id=f"dusk-{at:02}", layout=row.layout | style)
        for at, row in enumerate(more_controls(load_table(), 2 * PICTURES, seed))
    ]
    return rows[:PICTURES], rows[PICTURES:]


def network() -> Any:
    """Return the shipped base with an adapter that changes nothing yet."""
    unet = _Denoiser.from_pretrained(BASE_UNET_DIR, torch_dtype=torch.float32)
    unet.requires_grad_(False)
    # Conformity to peft: B is 0, so that the adapter begins as none.
    unet.add_adapter(
        LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules=list(LAYERS), init_lora_weights="gaussian"
        )
    )
    return unet.to(memory_format=torch.channels_last)


def write_lora(unet: Any, folder: Path) -> None:
    """Write the adapter of a denoiser as `pytorch_lora_weights.safetensors`."""
    held = {name: part.contiguous() for name, part in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=held)


def train_lora(
    out: Path,
    steps: int = 2400,
    batch: int = 8,
    lr: float = 1e-3,
    seed: int = 40,
    look: Callable[[Any, int], None] | None = None,
) -> None:
    """Train an adapter on the shipped base; goes on where a killed run stopped.

    Args:
        out: Where to write.
        steps: Length of the training.
        batch: Pictures a step.
        lr: Peak learning rate.
        seed: Seed of the pictures.
        look: Called with the denoiser and the step whenever the adapter is written.
    """
    torch.manual_seed(6)
    ours, others = pictures(seed)
    write_prompts(ours, out / "pictures")
    write_prompts(others, out / "held-out")
    unet = network()
    stage = Stage(out / "state", {"unet": unet}, lr=lr, steps=steps)
    images = pictures_of(ours)
    captions = [*(row.caption for row in ours), ""]
    latents, states = encoded(load_codec(ASSETS), *load_text(ASSETS), images, captions)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(70_000_000 + step)
        chosen = torch.randperm(len(ours), generator=generator)[:batch]
        blank = torch.rand(batch, generator=generator) < DROPOUT
        told = states[torch.where(blank, len(ours), chosen)]
        return denoising_loss(unet, latents[chosen], told, generator, views=1)

    def checkpoint(step: int) -> None:
        write_lora(unet, out / "checkpoints" / f"step-{step:06d}")
        if look is not None:
            look(unet, step)

    stage.run(loss, checkpoint, every=max(1, steps // CHECKPOINTS))
    write_lora(unet, out)
