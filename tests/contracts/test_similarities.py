"""Every registered similarity keeps the contract, and another distribution's is found like ours."""

from pathlib import Path

import pytest
import torch

from mnemoscope import similarity as package
from mnemoscope.errors import InputError, ModelError
from mnemoscope.similarity import Index, Reference, Similarity, get_similarity, names
from mnemoscope.similarity.sscd import PRESETS, VARIABLE
from tests.contracts.extension import installed
from tests.similarity.test_sscd import Stand

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a stand-in network for each measure that takes one."""
    folder = tmp_path_factory.mktemp("networks")
    files = {}
    for preset, how in PRESETS.items():
        if how is not None:
            features = how.features or 512
            path = folder / f"{features}.pt"
            if not path.exists():
                torch.jit.save(torch.jit.trace(Stand(features), torch.rand(2, 3, 8, 8)), path)
            files[f"sscd:{preset}"] = path
    return files


@pytest.fixture(params=names())
def measure(request, weights, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    try:
        return get_similarity(request.param, weights=weights.get(request.param))
    except ModelError as error:
        pytest.skip(str(error))


def references(count=5, side=16):
    mask = torch.zeros(side, side)
    mask[: side // 2] = 1
    return [Reference(f"r{i}", torch.rand(3, side, side), mask) for i in range(count)]


def test_names_itself(measure):
    assert isinstance(measure, Similarity)
    assert measure.name in names()


def test_compares_every_image_with_every_reference(measure):
    index = measure.index(references())
    assert isinstance(index, Index)
    found = index.compare(torch.rand(3, 3, 16, 16))
    assert found.shape == (3, 5)
    assert found.dtype == torch.float64
    assert bool(torch.isfinite(found).all())


def test_a_copy_is_closest_and_no_closer_than_one(measure):
    known = references()
    found = measure.index(known).compare(torch.stack([r.pixels for r in known]))
    torch.testing.assert_close(found.diagonal(), torch.ones(5).double(), atol=1e-6, rtol=0)
    assert bool((found <= 1 + 1e-9).all())


def test_batches_make_no_difference(measure):
    index = measure.index(references())
    images = torch.rand(5, 3, 16, 16)
    cut = torch.cat([index.compare(images[:2]), index.compare(images[2:])])
    torch.testing.assert_close(index.compare(images), cut, atol=1e-6, rtol=0)


def test_references_may_come_as_a_stream(measure):
    known = references()
    images = torch.rand(2, 3, 16, 16)
    streamed = measure.index(reference for reference in known).compare(images)
    torch.testing.assert_close(streamed, measure.index(known).compare(images), atol=0, rtol=0)


def test_sizes_may_differ(measure):
    known = [*references(2), *references(2, side=24)]
    assert measure.index(known).compare(torch.rand(2, 3, 20, 20)).shape == (2, 4)


def test_what_is_not_finite_is_nan_and_spoils_nothing_else(measure):
    index = measure.index(references())
    images = torch.rand(2, 3, 16, 16)
    alone = index.compare(images[1:])
    images[0, 0, 0, 0] = torch.nan
    found = index.compare(images)
    assert bool(torch.isnan(found[0]).all())
    torch.testing.assert_close(found[1:], alone, atol=1e-6, rtol=0)


def test_nothing_is_compared_with_nothing(measure):
    assert measure.index([]).compare(torch.rand(2, 3, 16, 16)).shape == (2, 0)
    assert measure.index(references()).compare(torch.empty(0, 3, 16, 16)).shape == (0, 5)


EXTENSION = '''"""A brightness similarity compares the means of two images."""

import torch


class Brightness:
    """Closeness of means."""

    name = "brightness_of_another"

    def index(self, references):
        """Keep the means."""
        return Means(torch.stack([r.pixels.double().mean() for r in references]))


class Means:
    """The means."""

    def __init__(self, means):
        self.means = means

    def compare(self, images):
        """Compare means."""
        return 1 - (images.double().mean(dim=(1, 2, 3))[:, None] - self.means[None]).abs()


SIMILARITIES = {"brightness_of_another": lambda weights: Brightness()}
'''


def test_a_similarity_of_another_distribution_is_found(tmp_path: Path) -> None:
    before = names()
    with installed(tmp_path, "brightness_of_another", EXTENSION, "mnemoscope.similarity"):
        package._factories.cache_clear()
        try:
            assert set(names()) == {*before, "brightness_of_another"}
            known = references(2)
            index = get_similarity("brightness_of_another").index(known)
            found = index.compare(torch.stack([r.pixels for r in known]))
        finally:
            package._factories.cache_clear()
    assert found.diagonal().tolist() == [1, 1]
    assert names() == before


def test_one_name_is_one_measure(tmp_path: Path) -> None:
    source = EXTENSION.replace('{"brightness_of_another"', '{"l2"')
    with installed(tmp_path, "brightness_of_another", source, "mnemoscope.similarity"):
        package._factories.cache_clear()
        try:
            with pytest.raises(InputError, match="'l2' is defined twice"):
                names()
        finally:
            package._factories.cache_clear()
