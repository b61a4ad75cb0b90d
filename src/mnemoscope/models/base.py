r"""A model is a denoiser with the conditioner and the codec it was trained with.

Scales::

    latents = encode(2·image - 1)·scaling        image in [0, 1], latents of about unit variance
    image   = (decode(latents / scaling) + 1) / 2

Contents: `Model`, `SCHEDULERS`, `make_scheduler`, `load_model`.
"""

import importlib
import os.path
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.predict import Kind
from mnemoscope.core.sample import Denoiser
from mnemoscope.errors import InputError, ModelError, did_you_mean

SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
}
"""The schedulers by name, with the diffusers class of each."""

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precision of the denoiser by name; everything else runs in float32."""

PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of weight files that can run code when they are read."""


@runtime_checkable
class Model(Protocol):
    """Everything the rest of the package knows of a model."""

    name: str
    """What it was loaded as."""
    digest: str
    """sha256 over its weights, 64 hex digits."""
    kind: Kind
    """What its network was trained to output."""
    latent_shape: tuple[int, ...]
    """Shape of one sample's latents."""
    image_size: int
    """Side of its images in pixels."""
    window: int
    """Longest prompt in tokens, begin and end marks included."""
    has_uncond: bool
    """Whether it has an unconditional branch."""
    device: torch.device
    """Where it runs."""
    dtype: torch.dtype
    """Precision of the denoiser."""
    denoiser: Denoiser
    """The bare network."""

    @property
    def d(self) -> int:
        """Return the number of latent coordinates."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "sample *feature"]:
        """Encode prompts, one row each; `[""] * n` is the unconditional branch."""
        ...

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Count the text tokens of each prompt before truncation, without begin and end marks."""
        ...

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Say which prompts are longer than the window."""
        ...

    def encode_images(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Encode images in [0, 1]; they are resized to the model's size first."""
        ...

    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Decode latents to images in [0, 1]."""
        ...

    def make_scheduler(self, name: str, steps: int) -> Any:
        """Build a scheduler with the model's noise schedule and set its timesteps."""
        ...

    def host_latents(
        self,
        prompts: Sequence[str],
        scheduler: Any,
        steps: int,
        guidance: float,
        generators: list[torch.Generator],
    ) -> Float[Tensor, "sample *latent"] | None:
        """Sample with the unmodified host pipeline; None where there is none to compare with."""
        ...


def make_scheduler(
    name: str, steps: int, config: Mapping[str, Any], device: torch.device | str = "cpu"
) -> Any:
    """Build a diffusers scheduler from a model's noise schedule and set its timesteps.

    Args:
        name: A key of `SCHEDULERS`.
        steps: Number of sampler updates.
        config: The model's scheduler configuration, of any scheduler class.
        device: Where its timesteps live.

    Returns:
        A scheduler ready for its first step.

    Raises:
        ModelError: If the name is unknown.
        InputError: If the number of steps is not between 1 and the number it was trained with.
    """
    if name not in SCHEDULERS:
        raise ModelError(did_you_mean(name, SCHEDULERS, "scheduler"))
    longest = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= longest:
        raise InputError(f"steps {steps} given; expected a number from 1 to {longest}")
    built = getattr(importlib.import_module("diffusers"), SCHEDULERS[name])
    changes: dict[str, Any] = {"clip_sample": False}
    if name == "pndm":
        # Stable Diffusion samples with the linear multistep part alone.
        changes = {"skip_prk_steps": True}
    elif name not in ("ddim", "ddpm"):
        changes = {}
    own = {key: value for key, value in config.items() if key != "_class_name"}
    scheduler = built.from_config(own, **changes)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


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


def refuse_pickle(path: str | Path, what: str) -> None:
    """Refuse a weight file that could run code.

    Raises:
        ModelError: If the file's ending is one of a pickle.
    """
    if Path(path).suffix.lower() in PICKLED:
        raise ModelError(
            f"{what} {str(path)!r} is a pickle, which can run code when it is read; "
            "convert it to .safetensors and give that file"
        )


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
    # Loaded on demand: the oracles need neither diffusers' pipelines nor transformers.
    loaders: dict[str, Callable[[], Model]] = {}
    oracle = importlib.import_module("mnemoscope.models.oracle")
    for kind, build in oracle.ORACLES.items():
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
    with _without_advice():
        stable_diffusion = importlib.import_module("mnemoscope.models.stable_diffusion")
    return stable_diffusion.load(
        name, device=pick_device(device), dtype=pick_dtype(dtype), lora=lora, vae=vae
    )
