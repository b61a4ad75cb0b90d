"""A folder of a pipeline is read part by part, each checked before anything in it is opened.

Only safetensors are opened, only classes of diffusers and transformers are built, and no code that
comes with a model is run. What a file lacks is said; nothing is made up for it.

Contents: `Part`, `parts_of`, `build`, `weights_of`, `download`, `digest_of_files`,
`configuration_of`, `digest_of_pipeline`.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

from mnemoscope.errors import ModelError

LIBRARIES = ("diffusers", "transformers")
"""Where the classes of a pipeline's parts may come from."""

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that no sample needs."""

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Names of weight files by the library that reads them."""

ADAPTER, OTHER_WEIGHTS = "adapter_config.json", "transformers_weights"
"""A file and an entry of a configuration that make transformers read further weights."""

PROBES = ("red", "sun")
"""Two texts of one length that a tokenizer with a vocabulary tells apart."""

FLOATING = ("F", "BF")
"""Beginnings of the types of floating-point numbers in safetensors."""

READ = (".json", ".txt", ".model", ".jinja")
"""Endings of what is read besides weights."""

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError)
"""What diffusers and transformers raise on files that are missing, truncated or do not fit."""


@dataclass(frozen=True)
class Part:
    """One part of a pipeline.

    Attributes:
        name: What the pipeline calls it.
        kind: Its class.
        folder: Where its files are.
        weights: Its weight files, an index of shards first; none for a tokenizer or a scheduler.
        variant: Variant of the weight files; None for plain ones.
    """

    name: str
    kind: Any
    folder: Path
    weights: tuple[Path, ...]
    variant: str | None

    @property
    def files(self) -> list[Path]:
        """Return every file that is read for it, in a fixed order."""
        small = [path for path in self.folder.iterdir() if path.suffix in READ and path.is_file()]
        # An index that is not among the weights is of another variant.
        told = [path for path in small if ".index." not in path.name]
        return sorted([*told, *self.weights])


def line(error: BaseException) -> str:
    """Return the first line of a message that may be many pages."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: If there is none.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as JSON: {line(error)}") from error
    if not isinstance(told, dict):
        raise ModelError(f"{str(path)!r} holds no JSON object")
    return {str(key): value for key, value in told.items()}


def read_index(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """Return the class of a pipeline and what its index says of it.

    Raises:
        ModelError: If there is no index, or it names no class of diffusers.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(
            f"{name!r} has no model_index.json; expected the folder of a diffusers pipeline, or "
            "the .safetensors checkpoint itself"
        )
    index = read_json(path)
    called = index.get("_class_name")
    if not isinstance(called, str):
        raise ModelError(
            f"{name!r} names {called!r} as its pipeline; expected the name of a class of "
            "diffusers: code that comes with a model is not run"
        )
    diffusers = importlib.import_module("diffusers")
    kind = getattr(diffusers, called, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ModelError(
            f"{name!r} is a {called}, which is no pipeline of diffusers "
            f"{diffusers.__version__}; a newer one may know it"
        )
    return kind, index


def parts_of(
    folder: Path,
    name: str,
    *,
    variant: str | None = None,
    moved: Mapping[str, Path] | None = None,
) -> tuple[Any, list[Part], dict[str, Any]]:
    """Look through a pipeline's folder without opening a weight file.

    Args:
        folder: The folder.
        name: What the user called it.
        variant: Variant of the weight files to take where there is one, such as "fp16".
        moved: Folders of parts that are taken from elsewhere.

    Returns:
        The pipeline's class, its parts in the order of their names, and its further settings.

    Raises:
        ModelError: If a part is missing, of an unknown class, or has no safetensors.
    """
    kind, index = read_index(folder, name)
    parts: list[Part] = []
    settings: dict[str, Any] = {}
    for part, told in sorted(index.items()):
        if part.startswith("_"):
            continue
        if not (isinstance(told, list) and len(told) == 2):
            settings[part] = told
        elif part in LEFT_OUT or None in told:
            settings[part] = None
        else:
            inside = (moved or {}).get(part, folder / part)
            parts.append(_part(part, told, inside, name, kind.__name__, variant))
    if variant is not None and not any(part.variant for part in parts):
        raise ModelError(f"{name!r} has no weights of variant {variant!r}; leave the variant out")
    return kind, parts, settings


def _part(
    part: str, told: Sequence[Any], folder: Path, name: str, pipeline: str, variant: str | None
) -> Part:
    library, called = map(str, told)
    kind = getattr(importlib.import_module(library), called, None) if library in LIBRARIES else None
    if not isinstance(kind, type) or (called.startswith("Auto") and library == "transformers"):
        raise ModelError(
            f"{name!r} names {library}.{called} as its {part}; expected a class of "
            f"{' or '.join(LIBRARIES)}: code that comes with a model is not run"
        )
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ModelError(
            f"{name!r} has no folder {part!r}; expected a complete {pipeline}, of which it is the "
            f"{called}"
        )
    if not issubclass(kind, nn.Module):
        return Part(part, kind, folder, (), None)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name!r} has no {part}/config.json; expected a complete {pipeline}")
    weights, taken = weights_of(folder, f"{part} of {name!r}", library, variant)
    return Part(part, kind, folder, weights, taken)


def weights_of(
    folder: Path, what: str, library: str, variant: str | None = None
) -> tuple[tuple[Path, ...], str | None]:
    """Return the weight files of a network, and the variant they are.

    Args:
        folder: The network's folder.
        what: What the network is, for messages.
        library: The library that reads it.
        variant: Variant to take where there is one.

    Raises:
        ModelError: If there are none in plain safetensors, or others would be read as well.
    """
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"the {what} has an adapter beside its weights ({ADAPTER}); merge it, or move it away "
            "and give it as a LoRA"
        )
    if OTHER_WEIGHTS in read_json(folder / "config.json"):
        raise ModelError(
            f"the {what} names other weight files ({OTHER_WEIGHTS} in its config.json); rename "
            "them to the usual names, and take the entry out"
        )
    stem = STEMS[library]
    for taken in (variant, None) if variant else (None,):
        ending = f".{taken}" if taken else ""
        whole = folder / f"{stem}{ending}.safetensors"
        shards = folder / f"{stem}.safetensors.index{ending}.json"
        if whole.is_file() and shards.is_file():
            raise ModelError(
                f"the {what} has both {whole.name} and {shards.name}, and which of them is read "
                "depends on the library; remove one"
            )
        if whole.is_file():
            return (whole,), taken
        if shards.is_file():
            return _shards(shards, what), taken
    held = sorted(path.name for path in folder.iterdir())
    others = sorted({name.split(".")[1] for name in held if name.endswith(".safetensors")} - {""})
    variants = [name for name in others if name != "safetensors"]
    if variants:
        flag = variants[0].split("-")[0]
        raise ModelError(
            f"the {what} holds its weights as variant {flag!r}; load it with variant={flag!r}"
        )
    pickled = [name for name in held if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    if pickled:
        raise ModelError(
            f"the {what} holds its weights only as a pickle ({pickled[0]}), which can run code "
            "when it is read; convert the model to safetensors"
        )
    raise ModelError(f"the {what} has no {stem}.safetensors")


def _shards(index: Path, what: str) -> tuple[Path, ...]:
    told = read_json(index).get("weight_map")
    names = sorted({str(file) for file in told.values()}) if isinstance(told, dict) else []
    if not names:
        raise ModelError(f"{str(index)!r} names no weight file")
    for name in names:
        # A name that leads out of the folder would open any file there is.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{str(index)!r} names {name!r}; expected .safetensors files beside it"
            )
        if not (index.parent / name).is_file():
            raise ModelError(f"the {what} has no {name}, which {index.name} names")
    return (index, *(index.parent / name for name in names))


def build(part: Part, name: str, dtype: torch.dtype) -> Any:
    """Build a part from its files.

    Args:
        part: The part.
        name: What the user called the pipeline.
        dtype: Precision of its weights.

    Raises:
        ModelError: If its files do not fit, lack a tensor, or hold one that is no finite number; or
            if a tokenizer has no vocabulary.
    """
    options: dict[str, Any] = {"local_files_only": True}
    if part.weights:
        key = "dtype" if part.kind.__module__.startswith("transformers.") else "torch_dtype"
        options |= {"use_safetensors": True, "output_loading_info": True, key: dtype}
        if part.variant is not None:
            options["variant"] = part.variant
    try:
        made = part.kind.from_pretrained(str(part.folder), **options)
    except LOAD_ERRORS as error:
        raise ModelError(f"{part.name} of {name!r} cannot be loaded: {line(error)}") from error
    if not part.weights:
        if callable(made) and _same_to(made):
            raise ModelError(
                f"{part.name} of {name!r} encodes different texts alike: it has no vocabulary; "
                "expected a complete folder"
            )
        return made
    network, told = made
    for fault in ("missing_keys", "mismatched_keys"):
        lacking = sorted(map(str, told.get(fault) or ()))
        if lacking:
            raise ModelError(
                f"the {part.name} of {name!r} lacks {len(lacking)} tensors that its configuration "
                f"asks for, such as {lacking[0]}; the file is not complete"
            )
    _require_numbers(part, network, name)
    return network


def _same_to(tokenizer: Any) -> bool:
    one, other = (list(tokenizer(text).input_ids) for text in PROBES)
    return one == other


def _require_numbers(part: Part, network: nn.Module, name: str) -> None:
    """Refuse weights that are stored as whole numbers, or are not finite."""
    held = network.state_dict()
    floating = {key: value for key, value in held.items() if value.is_floating_point()}
    for file in part.weights:
        if file.suffix != ".safetensors":
            continue
        with safe_open(str(file), framework="pt") as stored:
            for key in stored.keys():
                if key in floating and not stored.get_slice(key).get_dtype().startswith(FLOATING):
                    raise ModelError(
                        f"the {part.name} of {name!r} stores {key} as whole numbers; expected "
                        "floating-point weights"
                    )
    for key, value in floating.items():
        # Both ends are NaN where any number is; numbers of 8 bits have no such reduction.
        if value.numel() and value.element_size() > 1:
            ends = torch.stack(torch.aminmax(value))
            if not bool(torch.isfinite(ends).all()):
                raise ModelError(
                    f"the {part.name} of {name!r} holds numbers that are not finite, in {key}; the "
                    "file is damaged, or its precision too low"
                )


def download(name: str, variant: str | None = None) -> Path:
    """Fetch a pipeline from the hub, its weights as safetensors only.

    Args:
        name: "owner/name".
        variant: Variant of the weight files.

    Returns:
        Its folder here.

    Raises:
        ModelError: If the hub does not give it.
    """
    index = read_json(_snapshot(name, ["model_index.json"]) / "model_index.json")
    inside = [
        part
        for part, told in index.items()
        if isinstance(told, list) and None not in told and part not in LEFT_OUT
    ]
    wanted = ["model_index.json"]
    for part in inside:
        wanted += [f"{part}/*{ending}" for ending in READ]
        wanted.append(f"{part}/*.safetensors")
    # Every variant is as large as the model; a part without the one asked for is taken plain.
    others = ["*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema*", "*.ema*"]
    unwanted = [pattern for pattern in others if variant is None or f".{variant}" not in pattern]
    return _snapshot(name, wanted, unwanted)


def download_autoencoder(name: str) -> Path:
    """Fetch an autoencoder, or a pipeline's, from the hub."""
    small = ["config.json", "vae/config.json"]
    return _snapshot(
        name, [*small, *(f"{at}{STEMS['diffusers']}.safetensors" for at in ("", "vae/"))]
    )


def _snapshot(name: str, patterns: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    try:
        return Path(
            snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(unwanted))
        )
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a file, a folder nor a hub id 'owner/name'"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is no file or folder here, and the hub did not give it: {line(error)}; "
            "check the spelling and the network, or give a local diffusers folder"
        ) from error


def digest_of_files(files: Iterable[tuple[str, Path]], settings: Sequence[str] = ()) -> str:
    """Return the sha256 over the sha256 of each file with the name it goes by, in their order.

    Args:
        files: Names and files. Of a configuration what counts is its content: not its layout, nor
            by which version it was written.
        settings: Lines that change the weights besides.
    """
    total = hashlib.sha256()
    for name, file in files:
        if file.name in ("config.json", "model_index.json", "scheduler_config.json"):
            told = {key: value for key, value in read_json(file).items() if _matters(key)}
            part = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        else:
            with file.open("rb") as stream:
                part = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{part}  {name}\n".encode())
    for setting in settings:
        total.update(f"{setting}\n".encode())
    return total.hexdigest()


def _matters(key: str) -> bool:
    return not key.startswith("_") or key == "_class_name"


def configuration_of(pipeline: Any) -> list[str]:
    """Return a line for each configuration and vocabulary of a pipeline in memory."""
    lines: list[str] = []
    for name, part in [("", pipeline), *sorted(pipeline.components.items())]:
        config = getattr(part, "config", None)
        if isinstance(config, Mapping):
            told = {str(key): repr(value) for key, value in config.items() if _matters(str(key))}
            lines.append(f"{name} {json.dumps(told, sort_keys=True)}")
        if callable(getattr(part, "get_vocab", None)):
            words = json.dumps(sorted(part.get_vocab().items()))
            lines.append(f"{name} {hashlib.sha256(words.encode()).hexdigest()}")
    return lines


def digest_of_pipeline(pipeline: Any) -> str:
    """Return the sha256 over every tensor, configuration and vocabulary of a pipeline in memory.

    Raises:
        ModelError: If a tensor is not in memory.
    """
    total = hashlib.sha256("\n".join(configuration_of(pipeline)).encode())
    for name, part in sorted(pipeline.components.items()):
        if not isinstance(part, nn.Module):
            continue
        for key, tensor in sorted(part.state_dict().items()):
            if tensor.is_meta:
                raise ModelError(
                    f"{name} of the pipeline is not in memory (its {key} is nowhere); move the "
                    "pipeline to a device, without sequential offloading"
                )
            total.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
