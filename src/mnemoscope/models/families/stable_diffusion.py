r"""Stable Diffusion 1.x and 2.x: a UNet in a VAE's latent space, conditioned on CLIP text states.

Scales::

    latents = mode(VAE(2·image - 1))·scaling_factor
    image   = (VAE⁻¹(latents / scaling_factor) + 1) / 2

Weights are read from safetensors only, and no code from a model's repository is run. The UNet may
run in half precision; text encoder, VAE, sampler and every sum stay in float32.

Contents: `UNetDenoiser`, `StableDiffusion`, `load`.
"""

import copy
import hashlib
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from mnemoscope.core.predict import Kind
from mnemoscope.errors import InputError, ModelError
from mnemoscope.lab import BASE_UNET_DIR, MODEL_DIR
from mnemoscope.models.base import Guidance, make_scheduler, refuse_pickle
from mnemoscope.models.source import Source
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import kind_of

WEIGHTS: Mapping[str, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""Weight file of each network in a diffusers folder."""

DECODED_AT_ONCE = 8
"""Images a VAE call; bounds memory, for a 512-pixel image needs about 1 GB of activations."""

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""What diffusers and transformers raise on files that are missing, truncated or do not fit."""


class UNetDenoiser:
    """The UNet as a bare network: the state's dtype in and out, its own precision within.

    Args:
        unet: The network.
        kind: What it was trained to output.
    """

    def __init__(self, unet: Any, kind: Kind) -> None:
        self.unet = unet
        self.network = unet
        self.kind: Kind = kind

    def __call__(
        self,
        x: Float[Tensor, "sample *latent"],
        timestep: Tensor,
        condition: Condition,
    ) -> Float[Tensor, "sample *latent"]:
        """Return the raw output for states in the unit form."""
        inner = self.unet.dtype
        states = condition.parts["states"].to(inner)
        raw = self.unet(x.to(inner), timestep, encoder_hidden_states=states, return_dict=False)[0]
        return raw.to(x.dtype)


class StableDiffusion:
    """A Stable Diffusion pipeline as a model.

    Args:
        name: What it was loaded as.
        pipeline: The host pipeline; its networks are used, its loop only for the parity check.
        digest: sha256 over its weight files.
        device: Where it runs.
        dtype: Precision of the UNet.
    """

    has_uncond = True
    guidance: Guidance = "free"
    no_uncond = ""
    scheduler = "ddim"

    def __init__(
        self,
        name: str,
        pipeline: Any,
        digest: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.digest = digest
        self.device = device
        self.dtype = dtype
        self.kind: Kind = kind_of(pipeline.scheduler)
        for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            network.requires_grad_(False).eval()
        pipeline.vae.to(device, torch.float32)
        pipeline.text_encoder.to(device, torch.float32)
        pipeline.unet.to(device, dtype)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.denoiser = UNetDenoiser(pipeline.unet, self.kind)
        side = pipeline.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.latent_shape: tuple[int, ...] = (pipeline.unet.config.in_channels, height, width)
        factor = pipeline.vae_scale_factor
        self.image_size = (int(height * factor), int(width * factor))
        self.source: Source | None = None
        self.window = int(pipeline.tokenizer.model_max_length)

    @property
    def d(self) -> int:
        """Return the number of latent coordinates."""
        return prod(self.latent_shape)

    def _tokens(self, prompts: Sequence[str], **options: Any) -> Any:
        try:
            return self.pipeline.tokenizer(list(prompts), **options)
        except (TypeError, UnicodeError) as error:
            raise InputError(
                "a prompt cannot be tokenized; expected text that can be written as UTF-8, "
                f"without lone surrogates ({error})"
            ) from error

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], guidance: float = 1.0) -> Condition:
        """Encode prompts as the pipeline does.

        Raises:
            InputError: If there is no prompt, or one is no text.
        """
        del guidance
        if not prompts:
            raise InputError("no prompt given; expected at least one")
        tokens = self._tokens(
            prompts,
            padding="max_length",
            max_length=self.window,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        uses_mask = bool(getattr(encoder.config, "use_attention_mask", False))
        mask = tokens.attention_mask.to(self.device) if uses_mask else None
        return Condition.of(encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0])

    def encode_blank(self) -> Condition:
        """Encode the empty prompt, which is what the pipeline takes for none."""
        return self.encode_prompts([""])

    def token_texts(self, prompt: str) -> list[str]:
        """Return the text of each token of a prompt, begin and end marks included."""
        ids = self._tokens([prompt], truncation=True, max_length=self.window).input_ids[0]
        return [str(self.pipeline.tokenizer.decode([piece])).strip() for piece in ids]

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Count the text tokens of each prompt before truncation, without begin and end marks."""
        if not prompts:
            return []
        # The tokenizer's advice about long prompts would be printed once for what is counted here.
        ids = self._tokens(prompts, add_special_tokens=False, verbose=False).input_ids
        return [len(row) for row in ids]

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Say which prompts are longer than the window with its begin and end mark."""
        return [count + 2 > self.window for count in self.token_counts(prompts)]

    @torch.no_grad()
    def encode_images(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Encode images in [0, 1] to the mode of the VAE's posterior, scaled.

        An image of another size is resized directly, by Lanczos, with no crop.
        """
        vae = self.pipeline.vae
        sized = torch.stack([_resized(image, self.image_size) for image in images])
        parts = [
            vae.encode((2 * part - 1).to(self.device)).latent_dist.mode()
            for part in sized.split(DECODED_AT_ONCE)
        ]
        return torch.cat(parts) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Decode latents to images in [0, 1]."""
        vae = self.pipeline.vae
        scaled = latents.to(self.device, torch.float32) / vae.config.scaling_factor
        parts = [vae.decode(part, return_dict=False)[0] for part in scaled.split(DECODED_AT_ONCE)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    def make_scheduler(self, name: str, steps: int) -> Any:
        """Build a scheduler with the model's noise schedule and set its timesteps."""
        usual = self.scheduler if name == "auto" else name
        return make_scheduler(usual, steps, self.pipeline.scheduler.config, self.device)

    def host_latents(
        self,
        prompts: Sequence[str],
        scheduler: Any,
        steps: int,
        guidance: float,
        generators: list[torch.Generator],
    ) -> Float[Tensor, "sample *latent"]:
        """Sample with the unmodified StableDiffusionPipeline.

        Args:
            prompts: One a sample.
            scheduler: As `make_scheduler` returned it; it is copied.
            steps: Number of sampler updates.
            guidance: Guidance scale.
            generators: CPU generators, one a sample.

        Returns:
            The final latents, output_type="latent".
        """
        own = self.pipeline.scheduler
        self.pipeline.scheduler = copy.deepcopy(scheduler)
        try:
            with _cast_within(self.pipeline.unet):
                return self.pipeline(
                    list(prompts),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=generators,
                    output_type="latent",
                ).images
        finally:
            self.pipeline.scheduler = own


@contextmanager
def _cast_within(unet: Any) -> Generator[None]:
    """Let a half-precision UNet stand in a float32 pipeline: cast what enters and what leaves."""

    def enter(_module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = options["encoder_hidden_states"].to(unet.dtype)
        return (args[0].to(unet.dtype), *args[1:]), {**options, "encoder_hidden_states": states}

    def leave(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0].float(), *out[1:])

    hooks = [
        unet.register_forward_pre_hook(enter, with_kwargs=True),
        unet.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _resized(
    image: Float[Tensor, "3 height width"], size: tuple[int, int]
) -> Float[Tensor, "3 high wide"]:
    if tuple(image.shape[1:]) == size:
        return image.float().cpu()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    sized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(sized)).permute(2, 0, 1).float() / 255


def _digest(files: Iterable[Path], root: Path) -> str:
    """Return the sha256 over the sha256 of each file with its relative name, in their order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            part = hashlib.file_digest(stream, "sha256").hexdigest()
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        total.update(f"{part}  {name}\n".encode())
    return total.hexdigest()


def _download(name: str, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a file, a folder nor a hub id 'owner/name'"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is no file or folder here, and the hub did not give it: {_line(error)}; "
            "check the spelling and the network, or give a local diffusers folder"
        ) from error


def _line(error: BaseException) -> str:
    """Return the first line of a message that may be many pages."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _weights(folder: Path, component: str, name: str) -> Path:
    """Return the weight file of a network in a diffusers folder.

    Raises:
        ModelError: If there is none, or only a pickle.
    """
    inside = folder / component
    wanted = inside / WEIGHTS[component]
    if wanted.is_file():
        return wanted
    others = sorted(path.name for path in inside.glob("*.bin")) if inside.is_dir() else []
    if others:
        raise ModelError(
            f"{name!r} holds {component} weights only as a pickle ({others[0]}), which can run "
            "code when it is read; convert the model to safetensors"
        )
    raise ModelError(
        f"{name!r} has no {component}/{WEIGHTS[component]}; expected a complete diffusers "
        "folder of Stable Diffusion 1.x or 2.x"
    )


def _check_class(folder: Path, name: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{name!r} has no model_index.json; expected a diffusers folder of Stable Diffusion, "
            "or the .safetensors checkpoint itself"
        )
    try:
        given = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError, OSError) as error:
        raise ModelError(f"{str(index)!r} cannot be read as JSON: {_line(error)}") from error
    if given != "StableDiffusionPipeline":
        raise ModelError(f"{name!r} is a {given}; expected a StableDiffusionPipeline (1.x or 2.x)")


def _vae_folder(vae: str | Path) -> Path:
    refuse_pickle(vae, "VAE")
    path = Path(vae)
    if not path.exists():
        path = _download(str(vae), ["config.json", WEIGHTS["vae"]])
    if (path / "vae" / WEIGHTS["vae"]).is_file():
        return path / "vae"
    if not (path / WEIGHTS["vae"]).is_file():
        raise ModelError(
            f"VAE {str(vae)!r} has no {WEIGHTS['vae']}; expected the diffusers folder of an "
            "AutoencoderKL"
        )
    return path


def _from_folder(
    folder: Path, name: str, vae: Path | None, unet_at: Path | None = None
) -> tuple[Any, list[Path]]:
    _check_class(folder, name)
    unet_at = folder / "unet" if unet_at is None else unet_at
    files = [
        _weights(folder, "text_encoder", name),
        _weights(unet_at.parent, "unet", name),
        _weights(folder, "vae", name) if vae is None else vae / WEIGHTS["vae"],
    ]
    fp32: dict[str, Any] = {"torch_dtype": torch.float32, "use_safetensors": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(unet_at, **fp32)
        codec = AutoencoderKL.from_pretrained(folder / "vae" if vae is None else vae, **fp32)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, use_safetensors=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        config: Any = DDIMScheduler.load_config(folder / "scheduler")
        scheduler = DDIMScheduler.from_config(config, clip_sample=False)
        pipeline = _assemble(unet, codec, encoder, tokenizer, scheduler)
    except LOAD_ERRORS as error:
        raise ModelError(f"{name!r} cannot be loaded: {_line(error)}") from error
    return pipeline, files


def _assemble(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> Any:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def _from_checkpoint(path: Path, vae: Path | None) -> tuple[Any, list[Path]]:
    options: dict[str, Any] = {"torch_dtype": torch.float32}
    files = [path]
    try:
        if vae is not None:
            options["vae"] = AutoencoderKL.from_pretrained(
                vae, torch_dtype=torch.float32, use_safetensors=True
            )
            files.append(vae / WEIGHTS["vae"])
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), safety_checker=None, requires_safety_checker=False, **options
        )
    except LOAD_ERRORS as error:
        raise ModelError(
            f"checkpoint {str(path)!r} cannot be loaded: {_line(error)}; expected Stable Diffusion "
            "1.x or 2.x (its small configuration files are fetched from the hub the first time)"
        ) from error
    return pipeline, files


def _merge_lora(pipeline: Any, lora: Path) -> None:
    if lora.suffix != ".safetensors" or not lora.is_file():
        raise ModelError(f"LoRA {str(lora)!r} is not there; expected a .safetensors file")
    try:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name, use_safetensors=True)
        adapters = pipeline.get_list_adapters()
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except LOAD_ERRORS as error:
        raise ModelError(f"LoRA {str(lora)!r} does not fit the model: {_line(error)}") from error
    if not adapters:
        raise ModelError(
            f"LoRA {str(lora)!r} names no layer of this model; was it made for another family?"
        )


def load(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    lora: str | Path | None = None,
    vae: str | Path | None = None,
) -> StableDiffusion:
    """Load a Stable Diffusion model.

    Args:
        name: "embedded", "embedded:base", a diffusers folder, a .safetensors checkpoint or a hub
            id.
        device: Where to run it.
        dtype: Precision of the UNet.
        lora: A LoRA .safetensors file to merge into the weights.
        vae: Folder or hub id of another VAE.

    Returns:
        The model.

    Raises:
        ModelError: If files are missing, damaged, pickled, or of another family.
    """
    codec = None if vae is None else _vae_folder(vae)
    embedded = name in ("embedded", "embedded:base")
    path = MODEL_DIR if embedded else Path(name)
    with _quiet():
        if path.is_file():
            if path.suffix != ".safetensors":
                raise ModelError(f"{name!r} is a file of another kind; expected .safetensors")
            root = path.parent
            pipeline, files = _from_checkpoint(path, codec)
        else:
            root = path
            if embedded and not path.is_dir():
                raise ModelError(
                    "the embedded model is not built; run `mnemoscope lab train`, or install a "
                    "release that ships it"
                )
            if not path.is_dir():
                small = ("model_index.json", "tokenizer/*", "scheduler/*.json", "*/config.json")
                own = [f"{part}/{file}" for part, file in WEIGHTS.items()]
                root = _download(name, [*small, *own])
            unet_at = BASE_UNET_DIR if name == "embedded:base" else None
            pipeline, files = _from_folder(root, name, codec, unet_at)
        if lora is not None:
            _merge_lora(pipeline, Path(lora))
            files.append(Path(lora))
        return StableDiffusion(name, pipeline, _digest(files, root), device, dtype)


@contextmanager
def _quiet() -> Generator[None]:
    """Silence loading bars, and what is said of a scheduler's keys that another does not know."""
    before = diffusers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
