"""Copies that an embedding finds: none overlooked, few invented, and the nearest of all."""

import numpy as np
import pytest
import torch

from mnemoscope.severity.described import EDITED, Described


def descriptors(n, common=0.0, features=64, seed=0):
    """Draw descriptors of length 1 that have a direction in common."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(n, features)) + common * features**0.5 * np.eye(features)[0]
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def copies_of(some, cosine, seed=1):
    """Return descriptors at a cosine from others."""
    other = np.random.default_rng(seed).normal(size=some.shape)
    other -= (other * some).sum(1, keepdims=True) * some
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return cosine * some + (1 - cosine**2) ** 0.5 * other


@pytest.fixture
def blocks(monkeypatch):
    """Compare few at a time, so that blocks end inside."""
    monkeypatch.setattr("mnemoscope.severity.described.BLOCK", 32)
    monkeypatch.setattr("mnemoscope.severity.described.OTHERS", 50)


def cosines(values, others):
    a, b = (np.nan_to_num(some).astype(np.float64) for some in (values, others))
    return a @ b.T


def test_no_edited_copy_is_overlooked(blocks):
    some = descriptors(300)
    every = np.concatenate([some, copies_of(some[:40], 0.9), copies_of(some[40:80], 0.7)])
    every = every[np.random.default_rng(5).permutation(380)].astype(np.float16)
    every[[3, 17]] = np.nan
    known = Described("an embedding", every)
    assert known.least == EDITED
    counts, nearest = known.copies()
    cosine = cosines(every, every)
    np.fill_diagonal(cosine, -1)
    assert counts.tolist() == (cosine >= EDITED).sum(axis=1).tolist()
    assert np.array_equal(nearest >= 0, counts > 0)
    found = counts.nonzero()[0]
    assert nearest[found].tolist() == cosine[found].argmax(axis=1).tolist()
    assert 60 < len(found) <= 80
    assert nearest[[3, 17]].tolist() == [-1, -1]
    assert known.copied(int(found[0]), int(nearest[found[0]]))
    assert not known.copied(3, 17)


def test_pictures_of_one_kind_are_no_copies_of_each_other():
    some = descriptors(400, common=1.8)
    cosine = some @ some.T
    assert np.median(cosine) > 0.7
    every = np.concatenate([some, copies_of(some[:20], 0.98)]).astype(np.float16)
    counts, nearest = Described("an embedding", every).copies()
    assert nearest[400:].tolist() == [*range(20)]
    assert counts[20:400].sum() == 0
    # Where all pictures are kept apart by that limit alone, many were copies.
    assert (cosine[np.triu_indices(400, 1)] > EDITED).mean() > 0.1


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_have_no_edited_copy(n):
    def copies(rows, value):
        return Described("an embedding", np.full((rows, 4), value, dtype=np.float16)).copies()

    assert copies(n, 0.5)[1].tolist() == [-1] * n
    assert copies(n + 1, np.nan)[0].sum() == 0


def test_the_nearest_of_all_are_found_and_some_passed_over(blocks):
    every = descriptors(120).astype(np.float16)
    every[7] = np.nan
    asked = torch.from_numpy(descriptors(5, seed=9))
    asked[4] = torch.nan
    near = Described("an embedding", every).near(asked, 6, [{0, 60}, {119}, (), (), ()])
    cosine = cosines(asked.numpy(), every)
    cosine[0, [0, 60]] = cosine[1, 119] = -1
    assert near[:4].tolist() == np.argsort(-cosine[:4], axis=1)[:, :6].tolist()
    assert near[4].tolist() == [-1] * 6
    few = Described("an embedding", every[:2]).near(asked[:1], 6)
    assert sorted(few[0].tolist(), reverse=True)[2:] == [-1] * 4
