"""A source names a model by something that another process can load it from.

Contents: `Source`.
"""

from dataclasses import dataclass

from mnemoscope.options import option


@dataclass(frozen=True)
class Source:
    """Where a model comes from. Every field is an option of every command that loads one."""

    model: str = option(
        "embedded", "embedded, oracle:NAME, a diffusers folder, a .safetensors file, or a hub id."
    )
    lora: str | None = option(None, "LoRA to merge into the model, a .safetensors file.")
    lora_scale: float = option(1.0, "How much of the LoRA is merged; 0 is none of it.")
    vae: str | None = option(None, "VAE to use instead of the model's own.")
    variant: str | None = option(None, "Variant of the weight files, such as fp16.")
    true_guidance: bool = option(
        False,
        "Guide a model of distilled guidance by two branches, its guidance input held as it is.",
    )
    height: int | None = option(None, "Height of the images in pixels; the model's own if left.")
    width: int | None = option(None, "Width of the images in pixels; the model's own if left.")
    device: str = option("auto", "Device: auto, cpu, cuda, mps.")
    dtype: str = option("auto", "Precision of the denoiser: auto, float32, bfloat16, float16.")
