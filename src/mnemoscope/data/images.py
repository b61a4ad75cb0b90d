r"""A training image is read once, with suspicion, into RGB from 0 to 1.

Formulas::

    pixels       = file's colours over white, turned upright, / 255
    digest       = SHA-256 of the file
    reference_id = first 16 hex digits of the SHA-256 of the pixels, rounded to 8 bits

Contents: `load_image` and `load_mask` read files that may be broken or hostile; `fit` brings pixels
to a size; `thumbnail` and `thumbnails` put them into a table, `decode` and `decode_masked` take
them out again.
"""

import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from mnemoscope.data.packed import Packed
from mnemoscope.errors import InputError

Pixels = Float[Tensor, "3 h w"]
Mask = Float[Tensor, "h w"]
ImageSource = Path | Packed | Tensor
"""A file, a picture inside a larger file, or pixels that are already in memory."""

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels; 64 MP take 0.8 GB as float32, 1.9 GB while read."""
MAX_BYTES = 256 * 2**20
"""Largest file that is read, in bytes: 64 MP of uncompressed RGBA."""
ROWS = 256
"""Rows of pixels that are rounded to 8 bits at a time."""
BACKGROUND = (255, 255, 255)
"""What transparent pixels lie on; white, as when web images are flattened for training."""
THUMBNAIL_SIDE = 256
"""Longest side of a stored picture, in pixels."""
LOSSLESS_SIDE = 128
"""Longest side up to which a stored picture is exact to 8 bits, in pixels."""
ENCODED = 32
"""Pictures that are in memory to be encoded."""
THREADS = min(4, os.cpu_count() or 1)
"""Pictures that are encoded beside each other."""

# What Pillow's decoders raise on damaged files, beside OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """One training image.

    Attributes:
        pixels: RGB from 0 to 1.
        digest: SHA-256 of the file, or of the 8-bit pixels where there is no file.
        reference_id: Name of the image, from its pixels alone.
    """

    pixels: Pixels
    digest: str
    reference_id: str


def load_image(source: ImageSource, *, root: Path | None = None) -> TrainingImage:
    """Read a training image.

    Of an animated file the first frame is taken; orientation tags are obeyed; 16-bit files keep
    their depth where Pillow does; transparent pixels lie on white.

    Args:
        source: A PNG, JPEG or WebP file, alone or packed, or RGB pixels from 0 to 1.
        root: Folder the file must lie in once every link is followed; not checked where None.

    Returns:
        The image with its digests.

    Raises:
        InputError: If the file is missing, outside the root, no regular file, of another format,
            too large, truncated or damaged, or if given pixels are no finite RGB from 0 to 1.
    """
    if isinstance(source, Tensor):
        pixels = checked_pixels(source)
        data = _eight_bit(pixels).tobytes()
    else:
        data = _read(source, root)
        pixels = _rgb(_opened(data, str(source)), str(source))
    return TrainingImage(pixels, hashlib.sha256(data).hexdigest(), pixels_id(pixels))


def load_mask(source: ImageSource, *, root: Path | None = None) -> Mask:
    """Read a template's mask: 1 where the picture repeats, 0 where it changes.

    Args:
        source: A picture that is white where the template repeats, or the values themselves.
        root: As for `load_image`.

    Returns:
        Weights from 0 to 1; luminance of a picture.

    Raises:
        InputError: As `load_image`, or if nothing is marked.
    """
    if isinstance(source, Tensor):
        mask = source.detach().float().cpu()
        if mask.ndim != 2 or not bool(((mask >= 0) & (mask <= 1)).all()):
            raise InputError(
                f"a mask must be [h w] with values from 0 to 1, got shape {tuple(mask.shape)}"
            )
    else:
        picture = _opened(_read(source, root), str(source))
        red, green, blue = _rgb(picture, str(source))
        mask = 0.299 * red + 0.587 * green + 0.114 * blue
    if not bool((mask > 0).any()):
        raise InputError(f"the mask {_named(source)} marks nothing; paint what repeats white")
    return mask


def pixels_id(pixels: Pixels) -> str:
    """Return the first 16 hex digits of the SHA-256 of size and 8-bit values."""
    eight_bit = _eight_bit(pixels)
    content = hashlib.sha256("x".join(map(str, eight_bit.shape)).encode())
    content.update(eight_bit.data)
    return content.hexdigest()[:16]


def checked_pixels(pixels: Tensor) -> Pixels:
    """Return pixels as float32 on the CPU once they are known to be finite RGB from 0 to 1.

    Raises:
        InputError: If they are not.
    """
    if pixels.ndim != 3 or len(pixels) != 3 or not pixels.is_floating_point():
        raise InputError(
            f"pixels must be floating-point RGB [3 h w], got {pixels.dtype} {tuple(pixels.shape)}"
        )
    pixels = pixels.detach().float().cpu()
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise InputError("pixels must be finite and lie from 0 to 1; clamp them, or drop the image")
    return pixels


def fit(
    images: Float[Tensor, "*batch h w"], size: tuple[int, int]
) -> Float[Tensor, "*batch height width"]:
    """Crop to an aspect ratio about the centre, then resize with antialiasing.

    This is how Stable Diffusion's own training pictures were made square.

    Args:
        images: Pixels, masks, or a batch of either.
        size: Height and width wanted.

    Returns:
        Values within the range of those given; the same tensor where nothing is to be done.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = min(height / size[0], width / size[1])
    tall = min(height, max(1, round(size[0] * scale)))
    wide = min(width, max(1, round(size[1] * scale)))
    top, left = (height - tall) // 2, (width - wide) // 2
    cropped = images[..., top : top + tall, left : left + wide]
    flat = cropped.reshape(1, -1, tall, wide)
    resized = interpolate(flat, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.reshape(*images.shape[:-2], *size)


def thumbnail(pixels: Pixels, mask: Mask | None = None) -> bytes:
    """Encode a picture for a table: WebP, at most 256 pixels a side, exact to 8 bits up to 128.

    Args:
        pixels: RGB; values outside 0 to 1 are clamped.
        mask: A template's mask; it becomes the alpha channel.

    Returns:
        The file's bytes.

    Raises:
        InputError: If a pixel is not finite: such a sample has no picture.
    """
    if not bool(torch.isfinite(pixels).all()):
        raise InputError(
            "a picture with non-finite pixels cannot be stored; mark its sample instead"
        )
    picture = Image.fromarray(_eight_bit(pixels).transpose(1, 2, 0).copy())
    if mask is not None:
        alpha = (fit(mask.float().cpu(), (picture.height, picture.width)) * 255).round()
        picture.putalpha(Image.fromarray(alpha.to(torch.uint8).numpy()))
    if max(picture.size) > THUMBNAIL_SIDE:
        ratio = THUMBNAIL_SIDE / max(picture.size)
        width, height = (max(1, round(side * ratio)) for side in picture.size)
        # Pillow would darken colours towards transparent pixels, so the channels go one by one.
        channels = [c.resize((width, height), Image.Resampling.LANCZOS) for c in picture.split()]
        picture = Image.merge(picture.mode, channels)
    file = io.BytesIO()
    lossless = max(picture.size) <= LOSSLESS_SIDE
    # Without `exact`, colours under transparent pixels are thrown away. Where nothing is lost,
    # `quality` is the effort; more of it takes 2.5 times as long and saves 8 %.
    effort = {"quality": 10, "method": 1} if lossless else {"quality": 90, "method": 2}
    picture.save(file, "WEBP", lossless=lossless, exact=True, **effort)
    return file.getvalue()


def thumbnails(pictures: Iterable[tuple[Pixels, Mask | None]]) -> Iterator[bytes]:
    """Encode pictures like `thumbnail`, several beside each other; yield them in their order.

    Args:
        pictures: Pictures and the masks of templates, taken some at a time.

    Raises:
        InputError: If a pixel is not finite.
    """
    left = iter(pictures)
    # The encoder lets other threads run.
    with ThreadPoolExecutor(THREADS, thread_name_prefix="mnemoscope-pictures") as pool:
        while some := list(islice(left, ENCODED)):
            yield from pool.map(thumbnail, *zip(*some, strict=True))


def decode(data: bytes) -> Pixels:
    """Return the pixels of a stored picture, RGB from 0 to 1; a mask in it is set aside.

    Raises:
        InputError: If the bytes are no picture.
    """
    try:
        return _tensor(_loaded(_opened(data, "a stored picture")).convert("RGB"))
    except _DAMAGED as error:
        raise InputError(f"a stored picture is damaged: {error}") from error


def decode_masked(data: bytes) -> tuple[Pixels, Mask | None]:
    """Return the pixels of a stored picture and its mask, None where it holds none.

    Raises:
        InputError: If the bytes are no picture.
    """
    try:
        picture = _loaded(_opened(data, "a stored picture"))
        pixels = _tensor(picture.convert("RGB"))
    except _DAMAGED as error:
        raise InputError(f"a stored picture is damaged: {error}") from error
    if picture.mode != "RGBA":
        return pixels, None
    return pixels, torch.from_numpy(np.asarray(picture)[..., 3] / np.float32(255))


def _named(source: ImageSource) -> str:
    return f"of shape {tuple(source.shape)}" if isinstance(source, Tensor) else repr(str(source))


def _eight_bit(pixels: Pixels) -> np.ndarray:
    found = np.empty(tuple(pixels.shape), dtype=np.uint8)
    # Some rows at a time: of a large picture one copy in float32 is enough.
    for at in range(0, pixels.shape[1], ROWS):
        rows = pixels[:, at : at + ROWS].detach().float().cpu()
        found[:, at : at + ROWS] = (rows.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return found


def resolve_inside(path: Path, root: Path | None) -> Path:
    """Follow every link of a path and return where it ends.

    Args:
        path: The path.
        root: Folder it must end in; not checked where None.

    Returns:
        An absolute path to something that exists.

    Raises:
        InputError: If there is no such file, or it lies outside the root.
    """
    try:
        resolved = path.resolve(strict=True)
        inside = root is None or resolved.is_relative_to(root.resolve(strict=True))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"no image {str(path)!r}: {error}") from error
    if not inside:
        raise InputError(
            f"image {str(path)!r} lies outside {str(root)!r}; move it there, or name another root"
        )
    return resolved


def _read(path: Path | Packed, root: Path | None) -> bytes:
    data = path.read() if isinstance(path, Packed) else _read_file(path, root)
    if len(data) > MAX_BYTES:
        raise InputError(
            f"image {str(path)!r} has more than {MAX_BYTES // 2**20} MiB; make a smaller copy"
        )
    return data


def _read_file(path: Path, root: Path | None) -> bytes:
    resolved = resolve_inside(path, root)
    try:
        # Reading a pipe or a device would wait for ever.
        if not stat.S_ISREG(resolved.stat().st_mode):
            raise InputError(f"image {str(path)!r} is no regular file")
        with resolved.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"image {str(path)!r} cannot be read: {error}") from error


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than the one Pillow warns at.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except _DAMAGED as error:
        raise InputError(
            f"image {name!r} cannot be read as PNG, JPEG or WebP ({len(data)} bytes): {error}"
        ) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"image {name!r} has {width} x {height} pixels, more than "
            f"{MAX_PIXELS // 10**6} million; make a smaller copy"
        )
    return picture


def _loaded(picture: Image.Image) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.load()
    return picture


def _rgb(picture: Image.Image, name: str) -> Pixels:
    try:
        upright = ImageOps.exif_transpose(_loaded(picture))
        if upright.mode.startswith("I"):
            grey = np.asarray(upright).astype(np.float32) / 65535
            return torch.from_numpy(grey).clamp(0, 1).expand(3, -1, -1).contiguous()
        if upright.has_transparency_data:
            over = upright.convert("RGBA")
            upright = Image.new("RGBA", over.size, (*BACKGROUND, 255))
            upright.alpha_composite(over)
        return _tensor(upright.convert("RGB"))
    except _DAMAGED as error:
        raise InputError(f"image {name!r} is truncated or damaged: {error}") from error


def _tensor(picture: Image.Image) -> Pixels:
    eight_bit = np.asarray(picture).transpose(2, 0, 1)
    values = np.empty(eight_bit.shape, dtype=np.float32)
    np.divide(eight_bit, np.float32(255), out=values)
    return torch.from_numpy(values)
