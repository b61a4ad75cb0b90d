"""The search in a whole data set, against comparing everything with everything."""

import numpy as np
import pytest
import torch

from mnemoscope.data.references import Reference
from mnemoscope.severity import nearest
from mnemoscope.severity.described import Described
from mnemoscope.severity.nearest import NOTHING, Whole, fingerprint
from mnemoscope.similarity import get_similarity


def pictures(count, height, width, seed=0):
    """Draw pictures whose low frequencies differ, as photographs' do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = torch.rand(count, 3, height, width, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return 0.8 * smooth + 0.2 * fine


def whole(images):
    size = images.shape[-2], images.shape[-1]
    made = [np.frombuffer(fingerprint(one, size), dtype=np.uint8) for one in images]
    return Whole(np.stack(made), np.arange(1, len(images) + 1, dtype=np.uint64), size)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (20, 36), (4, 12)])
def test_the_search_misses_nothing_that_it_says_it_cannot(size):
    known = pictures(300, *size)
    # Copies, faint ones, and pictures that are none.
    strange = pictures(30, *size, seed=1)
    asked = torch.cat([known[:10], 0.98 * known[10:20] + 0.02 * strange[:10], strange[10:]])
    index = whole(known)
    measure = get_similarity("l2").index([Reference(str(k), one) for k, one in enumerate(known)])
    apart = 1 - measure.compare(asked).numpy()
    found = index.near(asked, 5)
    for row in range(len(asked)):
        others = np.delete(apart[row], found.places[row])
        assert others.min() >= found.beyond[row]
        if row < 20:
            assert found.places[row, 0] == row
            assert apart[row, row] <= found.beyond[row]


def test_prints_are_compared_in_blocks(monkeypatch):
    known, asked = pictures(50, 16, 16), pictures(6, 16, 16, seed=1)
    index = whole(known)
    at_once = index.near(asked, 4)
    monkeypatch.setattr(nearest, "BLOCK", 7)
    in_parts = index.near(asked, 4)
    assert np.array_equal(at_once.places, in_parts.places)
    assert np.allclose(at_once.beyond, in_parts.beyond, atol=1e-5)


def test_equal_pictures_count_once_and_broken_ones_not_at_all():
    images = pictures(4, 16, 16)
    made = np.stack([np.frombuffer(fingerprint(one, (16, 16)), dtype=np.uint8) for one in images])
    names = np.array([7, 0, 7, 9], dtype=np.uint64)
    index = Whole(made, names, (16, 16))
    assert index.places.tolist() == [0, 3]
    assert index.near(images[:1], 3).places[0].tolist() == [0, 3, -1]


def test_own_pictures_are_passed_over():
    images = pictures(5, 16, 16)
    found = whole(images).near(images[:2], 1, [frozenset({1}), frozenset()])
    assert found.places[0, 0] != 0
    assert found.places[1, 0] == 1


def test_one_picture_is_told_from_another_by_prints_and_by_descriptors():
    images = pictures(4, 16, 16)
    images[1] = (images[0] + 0.015).clamp(max=1)
    plain = whole(images)
    assert plain.alike(0, 1)
    assert not plain.alike(0, 2)
    values = np.eye(4, dtype=np.float16)
    values[2] = [0.8, 0, 0.6, 0]
    prints, names = plain.prints, plain.names
    known = Whole(prints, names, (16, 16), Described("an embedding", values))
    assert known.alike(0, 2)
    assert not known.alike(0, 3)


def test_the_nearest_by_descriptors_are_places_in_the_set():
    images = pictures(4, 16, 16)
    made = whole(images).prints[[0, 0, 1, 2, 3]]
    # Item 1 shows what item 0 does, and item 3 cannot be used.
    names = np.array([9, 9, 5, NOTHING, 7], dtype=np.uint64)
    values = np.eye(5, dtype=np.float16)
    index = Whole(made, names, (16, 16), Described("an embedding", values))
    asked = torch.tensor([[0.9, 0, 0.3, 0, 0.1], [0.9, 0, 0.3, 0, 0.1]])
    found = index.like(asked, 3, [frozenset(), frozenset({9, 123})])
    assert found.tolist() == [[0, 2, 4], [2, 4, -1]]
