"""Pixel similarities against loops over pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemoscope.errors import InputError
from mnemoscope.similarity import Reference, get_similarity, names
from mnemoscope.similarity.pixels import CHUNK, grid_of

MEASURES = ("l2", "tiled_l2", "masked_l2")


def references(count, side=16, masks=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Reference(
            f"r{i}",
            torch.rand(3, side, side, generator=generator),
            (torch.rand(side, side, generator=generator) > 0.5).float() if masks else None,
        )
        for i in range(count)
    ]


def by_hand(measure, image, reference):
    a, b = image.numpy().astype(np.float64), reference.pixels.numpy().astype(np.float64)
    square = (a - b) ** 2
    if measure == "l2":
        return 1 - np.sqrt(square.mean())
    if measure == "masked_l2":
        return 1 - np.sqrt(np.average(square.mean(0), weights=reference.mask.numpy()))
    step = square.shape[-1] // 4
    tiles = [
        square[:, y : y + step, x : x + step].mean()
        for y in range(0, 4 * step, step)
        for x in range(0, 4 * step, step)
    ]
    return 1 - np.sqrt(max(tiles))


@pytest.mark.parametrize("measure", MEASURES)
def test_equals_the_loop(measure):
    refs = references(5)
    images = torch.stack([r.pixels for r in references(4, seed=1)])
    got = get_similarity(measure).index(refs).compare(images)
    expected = [[by_hand(measure, image, r) for r in refs] for image in images]
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("measure", MEASURES)
def test_chunks_make_no_difference(measure):
    refs = references(CHUNK + 3, side=8)
    images = torch.rand(2, 3, 8, 8)
    index = get_similarity(measure).index(refs)
    alone = [get_similarity(measure).index([r]).compare(images) for r in refs]
    torch.testing.assert_close(index.compare(images), torch.cat(alone, 1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_copy_has_similarity_one(measure):
    refs = references(3)
    images = torch.stack([r.pixels for r in refs])
    got = get_similarity(measure).index(refs).compare(images)
    # The product form keeps an RMSE of zero below 1e-7.
    torch.testing.assert_close(got.diagonal(), torch.ones(3).double(), atol=1e-7, rtol=0)
    assert (got - torch.eye(3)).max() < 1


@given(shift=st.floats(0, 0.5), base=st.floats(0, 0.5))
def test_a_uniform_shift_is_its_own_error(shift, base):
    reference = Reference("r", torch.full((3, 8, 8), base), torch.ones(8, 8))
    image = torch.full((1, 3, 8, 8), base) + shift
    for measure in MEASURES:
        got = get_similarity(measure).index([reference]).compare(image)
        # float32 pixels carry 6e-8.
        assert got.item() == pytest.approx(1 - shift, abs=2e-7)


def test_tiles_see_what_a_shared_background_hides():
    reference = Reference("r", torch.zeros(3, 16, 16))
    image = torch.zeros(1, 3, 16, 16)
    image[..., :4, :4] = 1
    l2, tiled = (
        get_similarity(m).index([reference]).compare(image).item() for m in ("l2", "tiled_l2")
    )
    assert l2 == pytest.approx(0.75)
    assert tiled == pytest.approx(0)


def test_a_mask_sees_only_what_repeats():
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    template = Reference("t", torch.rand(3, 8, 8), mask)
    image = template.pixels.clone()[None]
    image[..., 4:, :] = torch.rand(3, 4, 8)
    assert get_similarity("masked_l2").index([template]).compare(image).item() > 1 - 1e-6
    assert get_similarity("l2").index([template]).compare(image).item() < 0.9


def test_what_is_not_defined_is_nan():
    whole, masked = references(1, masks=False) + references(1)
    images = torch.rand(2, 3, 16, 16)
    images[1, 0, 0, 0] = torch.nan
    got = get_similarity("masked_l2").index([whole, masked]).compare(images)
    assert torch.isnan(got).tolist() == [[True, False], [True, True]]
    assert torch.isnan(get_similarity("l2").index([whole]).compare(images)).tolist() == [
        [False],
        [True],
    ]


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_to_compare(measure):
    similarity = get_similarity(measure)
    assert similarity.index([]).compare(torch.rand(2, 3, 8, 8)).shape == (2, 0)
    assert similarity.index(references(2, 8)).compare(torch.empty(0, 3, 8, 8)).shape == (0, 2)


def test_references_of_other_sizes_are_brought_to_the_grid():
    smooth = torch.linspace(0, 1, 96).expand(3, 64, -1)
    index = get_similarity("l2").index([Reference("r", smooth)])
    same = torch.linspace(1 / 6, 5 / 6, 32).expand(1, 3, 32, -1)
    assert index.compare(same).item() > 0.99
    assert index.compare(torch.rand(1, 3, 32, 32)).item() < 0.8
    # One index serves images of several sizes.
    assert index.compare(torch.rand(1, 3, 16, 16)).shape == (1, 1)


def test_grid():
    assert grid_of(512, 512) == (256, 256)
    assert grid_of(64, 64) == (64, 64)
    assert all(side % 4 == 0 for side in grid_of(333, 97))
    with pytest.raises(InputError, match="too small"):
        grid_of(2, 64)


def test_names_and_unknown_ones():
    assert {*MEASURES, "sscd:official_320", "sscd:wen_224"} <= set(names())
    assert get_similarity("l2").name == "l2"
    with pytest.raises(InputError, match="Did you mean 'tiled_l2'"):
        get_similarity("tile_l2")
    with pytest.raises(InputError, match="takes no weights"):
        get_similarity("l2", weights="x.pt")
