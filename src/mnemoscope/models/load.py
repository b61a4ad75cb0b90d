"""A name leads to a model: a closed form, the one that ships inside, or a pipeline of diffusers.

Contents: `load_model`, `load_adapted`, `pick_device`, `pick_dtype`.
"""

import importlib
import os.path
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mnemoscope.errors import ModelError, did_you_mean
from mnemoscope.models.base import NETWORKS, Model, refuse_pickle
from mnemoscope.models.oracle import ORACLES
from mnemoscope.models.shipped import BASE_UNET_DIR, MODEL_DIR
from mnemoscope.models.source import Source

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
    model: Any = "embedded",
    *,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    vae: str | Path | None = None,
    variant: str | None = None,
    true_guidance: bool = False,
    height: int | None = None,
    width: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Model:
    """Load a model by name, or make one of a pipeline that is loaded already.

    Args:
        model: "embedded", "oracle:memorizer", "oracle:gaussian", "oracle:mixture", a diffusers
            folder, a .safetensors checkpoint, or a hub id "owner/name"; a `Source`, which says
            everything else as well; or a pipeline object of diffusers, whose networks are frozen
            and set to evaluation. "embedded:base" is the embedded model before it was shown its
            planted images.
        lora: A LoRA as a .safetensors file, merged into the weights of network and text encoders.
        lora_scale: How much of it is merged.
        vae: A diffusers folder or hub id of an autoencoder to use instead of the model's own.
        variant: Variant of the weight files, such as "fp16".
        true_guidance: Guide a model of distilled guidance by two branches.
        height: Height of the images in pixels; the model's own where not given.
        width: Width of the images in pixels; the model's own where not given.
        device: "auto", "cpu", "cuda", "cuda:0", "mps". A pipeline object stays where it is under
            "auto".
        dtype: Precision of the denoiser: "auto" (float32; a pipeline object's own), "float32",
            "bfloat16", "float16".

    Returns:
        The model, ready to sample.

    Raises:
        ModelError: If there is no such model, its weights are no safetensors, or it does not fit.
    """
    if isinstance(model, Source):
        return _named(model)
    given = Source(
        model=str(model) if isinstance(model, (str, Path)) else type(model).__name__,
        lora=None if lora is None else str(lora),
        lora_scale=lora_scale,
        vae=None if vae is None else str(vae),
        variant=variant,
        true_guidance=true_guidance,
        height=height,
        width=width,
        device=device,
        dtype=dtype,
    )
    if isinstance(model, (str, Path)):
        return _named(given)
    return _of_object(model, given)


def _named(source: Source) -> Model:
    name = source.model
    loaders: dict[str, Callable[[], Model]] = {}
    for kind, build in ORACLES.items():
        loaders[f"oracle:{kind}"] = lambda build=build: build(device=pick_device(source.device))
    if name in loaders:
        return _closed_form(loaders[name](), source)
    known = ("embedded", "embedded:base", *loaders)
    refuse_pickle(name, "model")
    for given, what in ((source.lora, "LoRA"), (source.vae, "VAE")):
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
    if not isfinite(source.lora_scale):
        raise ModelError(f"LoRA scale {source.lora_scale} given; expected a finite number")
    device, dtype, size = pick_device(source.device), pick_dtype(source.dtype), _size(source)
    # On demand: the oracles need neither diffusers' pipelines nor transformers.
    with _without_advice():
        from mnemoscope.models.capture import quiet
        from mnemoscope.models.family import Host, family_of
    with quiet():
        pipeline, digest = _pipeline(source, dtype)
        for part, network in _networks(pipeline):
            network.to(device, dtype if part in NETWORKS else torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    # Whoever reads the name must not take it for the model as published.
    changed = [Path(part).name for part in (source.lora, source.vae) if part is not None]
    told = " with ".join([name, " and ".join(changed)] if changed else [name])
    host = Host(pipeline, told, digest, device, dtype, source, size, source.true_guidance)
    return family_of(type(pipeline)).wrap(host)


def _closed_form(model: Any, source: Source) -> Model:
    plain = Source(model=source.model, device=source.device, dtype=source.dtype)
    if source != plain:
        raise ModelError(
            f"{source.model!r} is a closed form; it takes no LoRA, VAE, variant, size or guidance"
        )
    if pick_dtype(source.dtype) != torch.float32:
        raise ModelError(f"{source.model!r} runs in float32; leave dtype at 'auto'")
    model.source = source
    return model


def _of_object(pipeline: Any, given: Source) -> Model:
    with _without_advice():
        from diffusers import DiffusionPipeline

        from mnemoscope.models.family import Host, family_of
        from mnemoscope.models.folder import digest_of_pipeline
    if not isinstance(pipeline, DiffusionPipeline):
        raise ModelError(
            f"a {type(pipeline).__name__} was given; expected a name, a Source or a pipeline "
            "object of diffusers"
        )
    if given.lora is not None or given.vae is not None or given.variant is not None:
        raise ModelError(
            f"a {given.model} is loaded already; load its LoRA, VAE or variant by diffusers itself"
        )
    networks = dict(_networks(pipeline))
    sampled = next((networks[name] for name in NETWORKS if name in networks), None)
    if sampled is None:
        raise ModelError(
            f"a {given.model} has no network to sample with; expected one named "
            f"{' or '.join(NETWORKS)}"
        )
    if given.device != "auto":
        pipeline.to(pick_device(given.device))
    if given.dtype != "auto":
        sampled.to(pick_dtype(given.dtype))
    return family_of(type(pipeline)).wrap(
        Host(
            pipeline,
            given.model,
            digest_of_pipeline(pipeline),
            torch.device(getattr(pipeline, "_execution_device", pipeline.device)),
            sampled.dtype,
            None,
            _size(given),
            given.true_guidance,
        )
    )


def _networks(pipeline: Any) -> list[tuple[str, Any]]:
    parts = pipeline.components.items()
    return [(name, part) for name, part in parts if isinstance(part, torch.nn.Module)]


def _size(source: Source) -> tuple[int, int] | None:
    if source.height is None and source.width is None:
        return None
    if source.height is None or source.width is None:
        raise ModelError("a size needs both height and width; give the other one as well")
    if min(source.height, source.width) < 1:
        raise ModelError(f"{source.height} x {source.width} pixels given; expected at least 1 x 1")
    return source.height, source.width


def _pipeline(source: Source, dtype: torch.dtype) -> tuple[Any, str]:
    """Build the pipeline that a source names, and digest what it was built from."""
    from mnemoscope.models.folder import configuration_of, digest_of_files

    codec = None if source.vae is None else _autoencoder(source.vae)
    embedded = source.model in ("embedded", "embedded:base")
    path = MODEL_DIR if embedded else Path(source.model)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(f"{source.model!r} is a file of another kind; expected .safetensors")
        pipeline, files = _from_checkpoint(path, codec)
        # A checkpoint brings weights alone; the rest comes from elsewhere, and counts as well.
        settings = configuration_of(pipeline)
    else:
        pipeline, files = _from_folder(path, source, codec, dtype)
        settings = list[str]()
    if source.lora is not None:
        _merge_lora(pipeline, Path(source.lora), source.lora_scale)
        files.append(("lora", Path(source.lora)))
        settings.append(f"lora_scale {source.lora_scale:g}")
    return pipeline, digest_of_files(files, settings)


def _from_folder(
    path: Path, source: Source, codec: Any, dtype: torch.dtype
) -> tuple[Any, list[tuple[str, Path]]]:
    from mnemoscope.models.folder import LOAD_ERRORS, build, download, line, parts_of

    name = source.model
    if not path.is_dir():
        if path == MODEL_DIR:
            raise ModelError(
                "the embedded model is not built; run `mnemoscope lab train`, or install a "
                "release that ships it"
            )
        path = download(name, source.variant)
    moved = {"unet": BASE_UNET_DIR} if name == "embedded:base" else {}
    if codec is not None:
        moved["vae"] = codec.folder
    kind, parts, settings = parts_of(path, name, variant=source.variant, moved=moved)
    files = [("model_index.json", path / "model_index.json")]
    made: dict[str, Any] = {}
    for part in parts:
        # A LoRA is merged in full precision.
        low = part.name in NETWORKS and source.lora is None
        made[part.name] = build(part, name, dtype if low else torch.float32)
        files += [(f"{part.name}/{file.name}", file) for file in part.files]
    if codec is not None and "vae" not in made:
        raise ModelError(f"{name!r} is a {kind.__name__}, which takes no VAE")
    try:
        return kind(**made, **settings), files
    except LOAD_ERRORS as error:
        raise ModelError(
            f"the parts of {name!r} make no {kind.__name__}: {line(error)}; expected "
            "a complete folder"
        ) from error


def _autoencoder(vae: str) -> Any:
    from diffusers import AutoencoderKL

    from mnemoscope.models.folder import Part, download_autoencoder, weights_of

    path = Path(vae)
    if not path.exists():
        path = download_autoencoder(vae)
    if (path / "vae").is_dir():
        path = path / "vae"
    if not (path / "config.json").is_file():
        raise ModelError(
            f"VAE {vae!r} has no config.json; expected the diffusers folder of an autoencoder"
        )
    weights, variant = weights_of(path, f"VAE {vae!r}", "diffusers")
    return Part("vae", AutoencoderKL, path, weights, variant)


def _from_checkpoint(path: Path, codec: Any) -> tuple[Any, list[tuple[str, Path]]]:
    """Build a pipeline from a single file, of the family whose tensor names it has."""
    from mnemoscope.models.family import families
    from mnemoscope.models.folder import LOAD_ERRORS, build, line

    files = [("checkpoint", path)]
    options: dict[str, Any] = {"torch_dtype": torch.float32}
    if codec is not None:
        options["vae"] = build(codec, str(path), torch.float32)
        files += [(f"vae/{file.name}", file) for file in codec.files]
    diffusers = importlib.import_module("diffusers")
    try:
        with safe_open(str(path), framework="pt") as held:
            names = list(held.keys())
        marked = {
            kind.pipelines[0]
            for kind in families().values()
            if any(name.startswith(mark) for mark in kind.marks for name in names)
        }
        if len(marked) != 1:
            raise ValueError("its tensors are named as in no family that is read from one file")
        called = marked.pop()
        if called == "StableDiffusionPipeline":
            options |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = getattr(diffusers, called).from_single_file(str(path), **options)
    except LOAD_ERRORS as error:
        readable = sorted(kind.family for kind in families().values() if kind.marks)
        raise ModelError(
            f"checkpoint {str(path)!r} cannot be loaded: {line(error)}; expected one of "
            f"{', '.join(readable)} (small configuration files are fetched from the hub the first "
            "time)"
        ) from error
    return pipeline, files


def load_adapted(source: Source) -> Any:
    """Load the pipeline that a source names with its LoRA beside the weights, not merged.

    Raises:
        ModelError: If the model or the LoRA cannot be loaded, or they do not fit.
    """
    from mnemoscope.models.capture import quiet

    if source.lora is None:
        raise ModelError("no adapter given; name one by --lora FILE")
    if source.model in (f"oracle:{kind}" for kind in ORACLES):
        raise ModelError(f"{source.model!r} is a closed form; it takes no LoRA")
    refuse_pickle(source.lora, "LoRA")
    with quiet():
        pipeline, _ = _pipeline(replace(source, lora=None), torch.float32)
        _add_lora(pipeline, Path(source.lora))
    return pipeline


def _merge_lora(pipeline: Any, lora: Path, scale: float) -> None:
    from mnemoscope.models.folder import LOAD_ERRORS, line

    adapters = _add_lora(pipeline, lora)
    try:
        named = [part for part in pipeline._lora_loadable_modules if part in adapters]
        if named:
            pipeline.fuse_lora(components=named, lora_scale=scale)
        pipeline.unload_lora_weights()
    except LOAD_ERRORS as error:
        raise ModelError(f"LoRA {str(lora)!r} does not fit the model: {line(error)}") from error


def _add_lora(pipeline: Any, lora: Path) -> Mapping[str, Any]:
    """Load a LoRA beside a pipeline's weights; return its names by the part that it adapts."""
    from mnemoscope.models.folder import LOAD_ERRORS, line

    if lora.suffix != ".safetensors" or not lora.is_file():
        raise ModelError(f"LoRA {str(lora)!r} is not there; expected a .safetensors file")
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"a {type(pipeline).__name__} takes no LoRA; leave it out")
    try:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name, use_safetensors=True)
        adapters: Mapping[str, Any] = pipeline.get_list_adapters()
    except LOAD_ERRORS as error:
        raise ModelError(f"LoRA {str(lora)!r} does not fit the model: {line(error)}") from error
    if not adapters:
        raise ModelError(
            f"LoRA {str(lora)!r} names no layer of this model; was it made for another family?"
        )
    return adapters
