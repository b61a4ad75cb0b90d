"""A name leads to a model: a closed form, the one that ships inside, or a Stable Diffusion.

Contents: `load_model`, `pick_device`, `pick_dtype`.
"""

import importlib
import os.path
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from mnemoscope.errors import ModelError, did_you_mean
from mnemoscope.models.base import Model, refuse_pickle
from mnemoscope.models.oracle import ORACLES

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precision of the denoiser by name; everything else runs in float32."""


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA, then MPS, then the CPU.

    Raises:
        ModelError: If the device is unknown or absent.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    family = name.split(":")[0]
    if family not in present:
        raise ModelError(did_you_mean(name, ("auto", *present), "device"))
    if not present[family]:
        raise ModelError(f"device {name!r} is not present here; use 'auto' or 'cpu'")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is not a device name; expected e.g. 'cuda:0'") from error


def pick_dtype(name: str) -> torch.dtype:
    """Return the precision of a name; "auto" is float32, the only one with bit-exact parity.

    Raises:
        ModelError: If the precision is unknown.
    """
    if name == "auto":
        return torch.float32
    if name not in DTYPES:
        raise ModelError(did_you_mean(name, ("auto", *DTYPES), "dtype"))
    return DTYPES[name]


@contextmanager
def _without_advice() -> Generator[None]:
    """Silence what transformers says on import of image processors that are not used here."""
    advice = importlib.import_module("transformers.utils.logging")
    before = advice.get_verbosity()
    advice.set_verbosity_error()
    try:
        yield
    finally:
        advice.set_verbosity(before)


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    lora: str | Path | None = None,
    vae: str | Path | None = None,
) -> Model:
    """Load a model by name.

    Args:
        name: "embedded", "oracle:memorizer", "oracle:gaussian", "oracle:mixture", a diffusers
            folder, a .safetensors checkpoint, or a hub id "owner/name" of the Stable
            Diffusion 1.x or 2.x family. "embedded:base" is the embedded model before it was shown
            its planted images.
        device: "auto", "cpu", "cuda", "cuda:0", "mps".
        dtype: Precision of the denoiser: "auto" (float32), "float32", "bfloat16", "float16".
        lora: A LoRA as a .safetensors file, merged into the weights.
        vae: A diffusers folder or hub id of an AutoencoderKL to use instead of the model's own.

    Returns:
        The model, ready to sample.

    Raises:
        ModelError: If there is no such model, its weights are no safetensors, or it does not fit.
    """
    loaders: dict[str, Callable[[], Model]] = {}
    for kind, build in ORACLES.items():
        loaders[f"oracle:{kind}"] = lambda build=build: build(device=pick_device(device))
    if name in loaders:
        if lora is not None or vae is not None:
            raise ModelError(f"{name!r} is a closed form; it takes no LoRA and no VAE")
        if pick_dtype(dtype) != torch.float32:
            raise ModelError(f"{name!r} runs in float32; leave dtype at 'auto'")
        return loaders[name]()
    known = ("embedded", "embedded:base", *loaders)
    refuse_pickle(name, "model")
    for given, what in ((lora, "LoRA"), (vae, "VAE")):
        if given is not None:
            refuse_pickle(given, what)
    hub_id = (
        re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name)
        and Path(name).suffix != ".safetensors"
    )
    if not (name in known or os.path.exists(name) or hub_id):
        raise ModelError(
            did_you_mean(name, known, "model")
            + " A diffusers folder, a .safetensors file or a hub id 'owner/name' does as well."
        )
    # On demand: the oracles need neither diffusers' pipelines nor transformers.
    with _without_advice():
        from mnemoscope.models.families import stable_diffusion
    return stable_diffusion.load(
        name, device=pick_device(device), dtype=pick_dtype(dtype), lora=lora, vae=vae
    )
