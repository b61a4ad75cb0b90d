"""What stands out in a data set before a model is asked, against a search of every pair."""

import numpy as np
import pytest

from mnemoscope.ranking.suspects import RECOLOURED, K, alike, alone, recoloured, suspects, words_of
from mnemoscope.severity.described import Described
from mnemoscope.severity.nearest import ALIKE, Whole
from tests.severity.test_described import copies_of, descriptors

SIZE = (64, 64)


def prints(n, seed=0):
    """Draw prints that differ most along one axis, as those of pictures do."""
    rng = np.random.default_rng(seed)
    light = rng.normal(0, 40, (n, 1)) + rng.normal(0, 12, (n, 192))
    return np.clip(light + 128, 0, 255).astype(np.uint8)


def near(of, by, seed):
    moved = of.astype(int) + np.random.default_rng(seed).integers(-by, by + 1, of.shape)
    return np.clip(moved, 0, 255).astype(np.uint8)


def distances(of):
    values = of.astype(np.float64) / 255
    return np.sqrt(np.mean((values[:, None] - values[None]) ** 2, axis=2))


@pytest.fixture(scope="module")
def crowd():
    some = prints(300)
    copies = [near(some[:40], by, seed) for seed, by in enumerate((3, 8, 12))]
    # In a light of 4 more, along the axis on which pictures differ most.
    copies.append(np.clip(some[40:60].astype(int) + 4, 0, 255).astype(np.uint8))
    return np.concatenate([some, *copies])[np.random.default_rng(5).permutation(440)]


@pytest.fixture(params=[256, 3, 0], ids=["one by one", "both", "together"])
def ways(request, monkeypatch):
    """Compare one picture at a time, a crowd together, or all together; blocks end inside."""
    monkeypatch.setattr("mnemoscope.ranking.suspects.CROWD", request.param)
    monkeypatch.setattr("mnemoscope.ranking.suspects.BLOCK", 32)


def held(found, apart, reach):
    """Hold what was found to a search of every pair."""
    np.fill_diagonal(apart, np.inf)
    counts, nearest = found
    assert counts.tolist() == (apart <= reach).sum(axis=1).tolist()
    some = nearest >= 0
    assert np.array_equal(some, counts > 0)
    assert np.allclose(apart[some, nearest[some]], apart[some].min(axis=1))


def test_no_pair_that_is_alike_is_overlooked(crowd, ways):
    found = alike(crowd)
    held(found, distances(crowd), ALIKE)
    assert 40 < (found[0] > 0).sum() < 200


def test_no_pair_that_is_recoloured_or_mirrored_is_overlooked(crowd, ways):
    rng = np.random.default_rng(8)
    shown = crowd.reshape(-1, 3, 8, 8) / 255
    tints = shown[:30] ** rng.uniform(0.7, 1.4, (30, 1, 1, 1)) * rng.uniform(0.6, 1, (30, 1, 1, 1))
    grey = np.repeat(np.tensordot(shown[30:60], [0.299, 0.587, 0.114], (1, 0))[:, None], 3, 1)
    mirrored = shown[60:90, ..., ::-1] * 0.8
    flat = np.full((5, 3, 8, 8), 0.5) + rng.normal(0, 0.004, (5, 3, 8, 8))
    every = np.concatenate([shown, tints, grey, mirrored, flat])
    prints = (every * 255).round().astype(np.uint8).reshape(len(every), -1)
    light = np.tensordot(prints.reshape(-1, 3, 8, 8) / 255.0, [0.299, 0.587, 0.114], (1, 0))
    blank = light.std((1, 2)) < 0.02
    light -= light.mean((1, 2), keepdims=True)
    light /= np.linalg.norm(light, axis=(1, 2), keepdims=True)
    # 1 - r²/2 is the correlation of two pictures that are r apart.
    same, turned = (np.einsum("ihw,jhw->ij", light, of) for of in (light, light[..., ::-1]))
    apart = np.sqrt(np.maximum(0, 2 - 2 * np.maximum(same, turned)))
    apart[blank] = apart[:, blank] = np.inf
    found = recoloured(prints)
    held(found, apart, RECOLOURED)
    assert (found[0][:90] > 0).mean() > 0.9
    assert (alike(prints)[0][:90] > 0).mean() < 0.5
    assert blank[-5:].all()


def test_how_alone_a_picture_lies_is_its_fifth_distance(crowd):
    apart = distances(crowd)
    apart[apart <= ALIKE] = np.inf
    # The sample is the whole of so small a set.
    assert np.allclose(alone(crowd, seed=0), np.sort(apart, axis=1)[:, K - 1], atol=1e-5)
    assert np.isnan(alone(crowd[:3], seed=0)).all()


def test_few_or_equal_pictures_are_no_trouble():
    assert alike(prints(1))[1].tolist() == [-1]
    counts, nearest = alike(np.zeros((5, 192), dtype=np.uint8))
    assert counts.tolist() == [4] * 5
    assert all(at != twin for at, twin in enumerate(nearest))


def test_words_know_neither_case_nor_marks():
    assert words_of("A red fox!") == words_of("a  Red, FOX")
    assert words_of("a red fox") != words_of("red a fox")


def test_every_reason_is_told_by_the_narrowest():
    shown = np.concatenate([prints(8, seed=3), np.zeros((1, 192), dtype=np.uint8)])
    # Item 1 is all but item 0, and item 2 is exactly item 3; item 4 shows nothing.
    shown[1] = near(shown[0], 2, 0)
    shown[2] = shown[3]
    # Item 7 is item 6 in less light.
    shown[7] = np.rint(0.8 * shown[6])
    names = np.array([1, 2, 3, 3, 0, 6, 7, 8, 9], dtype=np.uint64)
    texts = ["a", "b", "c", "d", "e", "e", "F", "f", "h"]
    keys = np.array([100 - ord(text) % 50 for text in texts], dtype=np.uint64)
    words = np.array([words_of(text) for text in texts], dtype=np.uint64)
    captions = keys[[0, 1, 2, 3, 4, 6, 7, 8]]
    # Item 8 is item 5, cropped.
    described = descriptors(9)
    described[8] = copies_of(described[5:6], 0.9)[0]
    told = Described("an embedding", described.astype(np.float16))
    found = suspects(Whole(shown, names, SIZE, told), keys, words, captions, seed=0)
    at = {text: k for k, text in enumerate("abcdeFfh")}
    told = {name: {t for t, k in at.items() if some[k]} for name, some in found.reasons.items()}
    assert told == {
        "captions": {"e"}, "wordings": {"F", "f"}, "pictures": {"c", "d"}, "alike": {"a", "b"},
        "recoloured": {"F", "f"}, "edited": {"e", "h"}, "alone": set(),
    }  # fmt: skip
    assert found.repeats.tolist() == [2, 2, 2, 2, 2, 2, 2, 2]
    assert found.twin[[at[one] for one in "abFfh"]].tolist() == [1, 0, 7, 6, 5]
    assert np.isnan(found.alone[at["e"]])
    assert set(found.some.tolist()) == set(at.values())
    # All of them repeat twice, and two do so by descriptors alone.
    assert found.repeated.tolist() == [at[text] for text in "abcdFfeh"]
    without = suspects(Whole(shown, names, SIZE), keys, words, captions, seed=0)
    assert not without.reasons["edited"].any()
    assert without.twin[at["h"]] == -1


def test_the_most_alone_come_first():
    shown = prints(300, seed=4)
    shown[17] = 255 * (np.arange(192) % 2)
    names = np.arange(1, 301, dtype=np.uint64)
    found = suspects(Whole(shown, names, SIZE), names, names, names, seed=0)
    assert len(found.lone) == 3
    assert found.lone[0] == 17
    assert found.some.tolist() == found.lone.tolist()
