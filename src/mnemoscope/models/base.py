r"""A model is a denoiser with the conditioner and the codec it was trained with.

Scales::

    latents = encode(2·image - 1)·scaling        image in [0, 1], latents of about unit variance
    image   = (decode(latents / scaling) + 1) / 2

Contents: `Model`, `SCHEDULERS`, `make_scheduler`, `build_scheduler`, `refuse_pickle`.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.predict import Kind
from mnemoscope.errors import InputError, ModelError, did_you_mean
from mnemoscope.models.source import Source
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Denoiser

SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-heun": "FlowMatchHeunDiscreteScheduler",
}
"""The schedulers by name, with the diffusers class of each; those of flow models begin by flow."""

NETWORKS = ("transformer", "unet", "prior")
"""Names under which pipelines keep the network they sample with."""

PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of weight files that can run code when they are read."""

ZERO_SNR = "rescale_betas_zero_snr"
"""The setting by which a schedule of betas begins at pure noise; not every scheduler knows it."""

FLOW_AS_WELL = ("dpmsolver++",)
"""Schedulers that sample flow models too, where the model's configuration says so."""

Guidance = Literal["free", "embedded", "none"]
"""Classifier-free (two branches), an input of the network (one branch), or not at all."""


@runtime_checkable
class Model(Protocol):
    """Everything the rest of the package knows of a model."""

    name: str
    """What it was loaded as."""
    kind: Kind
    """What its network was trained to output."""
    latent_shape: tuple[int, ...]
    """Shape of one sample's latents: channels, then height and width; video has an axis more."""
    image_size: tuple[int, int]
    """Height and width of its images in pixels."""
    window: int
    """Longest prompt in tokens, begin and end marks included."""
    guidance: Guidance
    """How it is guided; only "free" has an unconditional branch."""
    no_uncond: str
    """Why it has no unconditional branch, in words; empty where it has one."""
    device: torch.device
    """Where it runs."""
    dtype: torch.dtype
    """Precision of the denoiser."""
    scheduler: str
    """Name of the sampler that is usual for it."""
    source: Source | None
    """What another process loads it by; None for a model that exists in this process alone."""

    @property
    def denoiser(self) -> Denoiser:
        """Return the bare network."""
        ...

    @property
    def words(self) -> tuple[str, ...]:
        """Return the text of every token, special ones left out; empty where there is none."""
        ...

    @property
    def digest(self) -> str:
        """Return the sha256 over its weights, 64 hex digits."""
        ...

    @property
    def d(self) -> int:
        """Return the number of latent coordinates."""
        ...

    @property
    def has_uncond(self) -> bool:
        """Return whether it has an unconditional branch."""
        ...

    def encode_prompts(self, prompts: Sequence[str], guidance: float = 1.0) -> Condition:
        """Encode prompts, one row each.

        Args:
            prompts: At least one.
            guidance: Guidance scale, which only a model of embedded guidance looks at.
        """
        ...

    def encode_blank(self, rows: int = 1) -> Condition:
        """Encode what stands for no prompt: the unconditional branch.

        Args:
            rows: How many to encode at once; all are alike but for rounding, which may depend on
                it. One row, expanded, serves every batch to within that.

        Raises:
            ModelError: If it has no such branch.
        """
        ...

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Count the text tokens of each prompt before truncation, without begin and end marks."""
        ...

    def token_texts(self, prompt: str) -> list[str]:
        """Return the text of each token that the network sees, begin and end marks included."""
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
        """Build a scheduler with the model's noise schedule and set its timesteps.

        Args:
            name: A key of `SCHEDULERS`, or "auto" for the one usual for the model.
            steps: Number of sampler updates.
        """
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
        ModelError: If the name is unknown, or not for this kind of model.
        InputError: If the number of steps is not between 1 and the number it was trained with.
    """
    scheduler = build_scheduler(name, config)
    check_steps(steps, config)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def build_scheduler(name: str, config: Mapping[str, Any], *, clip: bool = False) -> Any:
    """Build a diffusers scheduler from a model's noise schedule.

    Args:
        name: A key of `SCHEDULERS`.
        config: The model's scheduler configuration, of any scheduler class.
        clip: Whether clean estimates are clipped where the configuration says so, as is usual for
            models of pixels.

    Raises:
        ModelError: If the name is unknown, or one of a flow and the model is none, or the reverse.
    """
    if name not in SCHEDULERS:
        raise ModelError(did_you_mean(name, SCHEDULERS, "scheduler"))
    flow, of_flow = is_flow(config), name.startswith("flow-")
    if flow and not of_flow and not (name in FLOW_AS_WELL and config.get("use_flow_sigmas")):
        raise ModelError(f"the model is a flow, which {name!r} cannot sample; use 'flow-euler'")
    if of_flow and not flow:
        raise ModelError(
            f"{name!r} samples flow models, and this one has a schedule of betas; use 'ddim'"
        )
    built = getattr(importlib.import_module("diffusers"), SCHEDULERS[name])
    if config.get(ZERO_SNR) and ZERO_SNR not in inspect.signature(built.__init__).parameters:
        raise ModelError(
            f"the model's schedule begins at pure noise ({ZERO_SNR}), which {name!r} does not "
            "know; use 'ddim'"
        )
    changes: dict[str, Any] = {}
    if name == "pndm":
        # Stable Diffusion samples with the linear multistep part alone.
        changes = {"skip_prk_steps": True}
    elif name in ("ddim", "ddpm") and not clip:
        changes = {"clip_sample": False}
    own = {key: value for key, value in config.items() if key != "_class_name"}
    if name.startswith("flow-") and "flow_shift" in own:
        own["shift"] = own["flow_shift"]
    return built.from_config(own, **changes)


def check_steps(steps: int, config: Mapping[str, Any]) -> None:
    """Refuse a number of steps that a noise schedule does not have.

    Raises:
        InputError: If it is not between 1 and the number the model was trained with.
    """
    longest = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= longest:
        raise InputError(f"steps {steps} given; expected a number from 1 to {longest}")


def is_flow(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler configuration is one of flow matching."""
    return (
        bool(config.get("use_flow_sigmas"))
        or str(config.get("_class_name", "")).startswith("FlowMatch")
        or ("shift" in config and "beta_schedule" not in config)
    )


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
