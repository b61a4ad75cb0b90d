"""Training images: every file that may come, and what is refused."""

import hashlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope.data.images import (
    decode,
    decode_masked,
    fit,
    load_image,
    load_mask,
    pixels_id,
    thumbnail,
    thumbnails,
)
from mnemoscope.errors import InputError

RNG = np.random.default_rng(0)


def noise(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def png_of(width, height):
    """Build the header of a PNG of any size, with a body of almost nothing."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_lossless_files_come_back_exactly(tmp_path, suffix):
    values = noise(5, 7)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path, lossless=True)
    image = load_image(path)
    expected = values.transpose(2, 0, 1).astype(np.float32) / 255
    assert image.pixels.dtype == torch.float32
    np.testing.assert_array_equal(image.pixels.numpy(), expected)
    assert image.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_reference_id_depends_on_pixels_alone(tmp_path):
    values = noise(6, 6)
    for name in ("a.png", "b.webp"):
        Image.fromarray(values).save(tmp_path / name, lossless=True)
    a, b = (load_image(tmp_path / name) for name in ("a.png", "b.webp"))
    assert a.reference_id == b.reference_id
    assert a.digest != b.digest
    assert load_image(a.pixels).reference_id == a.reference_id
    # Equal bytes in another shape are another picture.
    assert pixels_id(a.pixels) != pixels_id(a.pixels.reshape(3, 4, 9))


def test_jpeg_is_close(tmp_path):
    values = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
    got = load_image(tmp_path / "a.jpg").pixels * 255
    # 4 of 255: the quantisation of chroma at quality 95.
    assert (got - torch.tensor([200.0, 30, 90])[:, None, None]).abs().max() <= 4


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = load_image(tmp_path / "a.jpg").pixels.mean((1, 2)).tolist()
    assert red > 0.95
    assert max(green, blue) < 0.05


def test_sixteen_bit_grey_keeps_its_scale(tmp_path):
    values = np.array([[0, 32768], [65535, 256]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png").pixels
    np.testing.assert_allclose(got.numpy(), np.stack([values / 65535] * 3), atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.convert(mode).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png").pixels
    assert got[:, 0, 0].tolist() == [0, 0, 0]
    assert got[:, 0, 1].tolist() == [1, 1, 1]


def test_half_transparency_is_mixed(tmp_path):
    Image.new("RGBA", (1, 1), (255, 0, 0, 51)).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png").pixels.flatten()
    assert got.tolist() == pytest.approx([1, 0.8, 0.8], abs=1 / 255)


def test_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    values = noise(2, 3)
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    got = load_image(tmp_path / "a.png").pixels
    expected = np.rot90(values, -1).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(path).pixels[:, 4, 4].tolist() == [1, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * kept)])
    with pytest.raises(InputError, match=r"a\."):
        load_image(path)


def test_a_thousand_damaged_files_never_raise_anything_else(tmp_path):
    originals = []
    for format in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(noise(8, 8)).save(file, format)
        originals.append(file.getvalue())
    path = tmp_path / "a"
    refused = 0
    for trial in range(1000):
        data = bytearray(originals[trial % 3])
        for place in RNG.integers(0, len(data), 4):
            data[place] = RNG.integers(0, 256)
        path.write_bytes(data)
        try:
            assert torch.isfinite(load_image(path).pixels).all()
        except InputError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8001, 8001), "8001 x 8001 pixels, more than 64 million"),
        ((10_000, 12_000), "10000 x 12000 pixels, more than 64 million"),
        ((60_000, 60_000), "bomb"),
        ((2**31 - 1, 2**31 - 1), "bomb"),
    ],
)
def test_bombs_are_refused_before_decoding(tmp_path, size, message):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(*size))
    with pytest.raises(InputError, match=message):
        load_image(path)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match="PNG, JPEG or WebP"):
        load_image(path)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "PPM"])
def test_other_formats_are_refused(tmp_path, format):
    Image.fromarray(noise(4, 4)).save(tmp_path / "a.png", format)
    with pytest.raises(InputError, match="PNG, JPEG or WebP"):
        load_image(tmp_path / "a.png")


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("missing.png", "pipe", ".", "loop", "nul\0.png", "x" * 5000):
        with pytest.raises(InputError):
            load_image(tmp_path / name)


def test_links_may_not_leave_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    root.mkdir()
    Image.fromarray(noise(4, 4)).save(outside)
    (root / "link.png").symlink_to(outside)
    for path in (root / "link.png", root / ".." / "outside.png", outside):
        with pytest.raises(InputError, match="outside"):
            load_image(path, root=root)
    assert load_image(root / "link.png").pixels.shape == (3, 4, 4)
    (root / "inner.png").symlink_to(root / "real.png")
    Image.fromarray(noise(4, 4)).save(root / "real.png")
    load_image(root / "inner.png", root=root)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.full((3, 2, 2), float("nan")),
        torch.full((3, 2, 2), 1.5),
        torch.zeros(1, 2, 2),
        torch.zeros(3, 2, 2, dtype=torch.uint8),
    ],
)
def test_pixels_in_memory_are_checked(pixels):
    with pytest.raises(InputError, match="pixels must"):
        load_image(pixels)


def test_masks(tmp_path):
    Image.fromarray(np.array([[0, 255], [51, 0]], np.uint8)).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    torch.testing.assert_close(mask, torch.tensor([[0, 1], [0.2, 0]]))
    assert torch.equal(load_mask(mask), mask)
    Image.new("L", (4, 4)).save(tmp_path / "none.png")
    for bad in (tmp_path / "none.png", torch.zeros(2, 2), torch.ones(3, 2, 2), mask * 2):
        with pytest.raises(InputError, match="mask"):
            load_mask(bad)


def test_thumbnails_are_exact_while_small():
    pixels = torch.from_numpy(noise(128, 100).transpose(2, 0, 1).copy()) / 255
    assert torch.equal((decode(thumbnail(pixels)) * 255).round(), (pixels * 255).round())
    assert decode_masked(thumbnail(pixels))[1] is None


def test_a_mask_travels_with_its_thumbnail():
    pixels = torch.rand(3, 64, 64)
    mask = (torch.rand(64, 64) > 0.5).float()
    stored = thumbnail(pixels, mask)
    assert torch.equal(decode_masked(stored)[1], mask)
    # The colours under the masked part survive.
    assert torch.equal((decode(stored) * 255).round(), (pixels * 255).round())


def test_many_thumbnails_come_in_order_and_are_taken_some_at_a_time(monkeypatch):
    monkeypatch.setattr("mnemoscope.data.images.ENCODED", 3)
    taken = []

    def pictures():
        for at in range(10):
            taken.append(at)
            mask = torch.ones(8, 8).tril() if at % 3 == 0 else None
            yield torch.full((3, 8, 8), at / 10), mask

    made = thumbnails(pictures())
    first = next(made)
    assert taken == [0, 1, 2]
    assert [first, *made] == [thumbnail(*one) for one in pictures()]


def test_large_thumbnails_shrink_and_stay_close():
    ramp = torch.linspace(0, 1, 600).expand(3, 300, -1)
    got = decode(thumbnail(ramp, torch.ones(300, 600)))
    assert got.shape == (3, 128, 256)
    # 2 % covers lossy coding of a smooth ramp.
    assert (got - torch.linspace(0, 1, 256)).abs().mean() < 0.02


def test_thumbnails_of_broken_samples_are_refused():
    with pytest.raises(InputError, match="non-finite"):
        thumbnail(torch.full((3, 4, 4), float("inf")))
    with pytest.raises(InputError):
        decode(b"RIFF0000WEBP")
    with pytest.raises(InputError):
        decode_masked(thumbnail(torch.rand(3, 9, 9))[:40])


def test_fit_crops_the_centre_and_equals_pillows_resizing():
    values = noise(40, 60)
    got = fit(torch.from_numpy(values.transpose(2, 0, 1).copy()) / 255, (16, 16))
    expected = Image.fromarray(values[:, 10:50]).resize((16, 16), Image.Resampling.BILINEAR)
    expected = np.asarray(expected).transpose(2, 0, 1) / 255
    # Pillow rounds to 8 bits after each of its two passes.
    np.testing.assert_allclose(got.numpy(), expected, atol=1.5 / 255)


def test_fit_leaves_what_fits():
    images = torch.rand(2, 3, 8, 8)
    assert fit(images, (8, 8)) is images
    assert fit(torch.rand(1, 1000), (4, 4)).shape == (4, 4)
