"""The training images of a list: each once, opened when needed, hardly any held."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope.data import references as module
from mnemoscope.data.images import decode, decode_masked, load_image, pixels_id
from mnemoscope.data.prompts import Prompt
from mnemoscope.data.references import References
from mnemoscope.errors import InputError
from mnemoscope.similarity import get_similarity


def saved(folder, name, side=8, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / name)
    return folder / name


@pytest.fixture
def opened(monkeypatch):
    """Count how often each file is opened."""
    counts = {}

    def counting(source, **options):
        counts[source] = counts.get(source, 0) + 1
        return load_image(source, **options)

    monkeypatch.setattr(module, "load_image", counting)
    return counts


def test_shared_images_are_known_once():
    image, other = torch.rand(3, 8, 8), torch.rand(3, 20, 30)
    prompts = (
        Prompt("a", "a", images=(image, other)),
        Prompt("b", "b", images=(image,), group="control"),
        Prompt("c", "c", images=(torch.rand(3, 8, 8),), group="control"),
        Prompt("d", "d"),
    )
    found = References(prompts, (8, 8))
    assert found.own == {"a": (0, 1), "b": (0,), "c": (2,), "d": ()}
    assert found.entries[0].prompt_ids == ("a", "b")
    assert (found.entries[1].height, found.entries[1].width) == (20, 30)
    assert found[1].pixels.shape == (3, 8, 8)
    assert found.ids("a") == [found[0].reference_id, pixels_id(other)]
    # What one prompt was trained on was trained on, whoever else calls it a control.
    assert found.trained == (True, True, False)
    assert References(prompts)[1].pixels.shape == (3, 20, 30)
    # Larger means in both directions.
    assert References(prompts, (24, 8))[1].pixels.shape == (3, 20, 30)
    assert References(prompts, (16, 24))[1].pixels.shape == (3, 16, 24)


def test_nothing_is_opened_before_it_is_asked_for(tmp_path, opened):
    paths = [saved(tmp_path, f"{i}.png", seed=i) for i in range(3)]
    prompts = [Prompt(f"p{i}", "x", images=(path,)) for i, path in enumerate(paths)]
    found = References([*prompts, Prompt("again", "x", images=(paths[0],))])
    assert not opened
    assert found.first(prompts[1]).shape == (3, 8, 8)
    assert opened == {paths[1]: 1}
    assert found.first(prompts[1]) is found.first(prompts[1])
    assert found.first(Prompt("none", "x")) is None
    assert len(found) == 3
    assert found.entries[0].prompt_ids == ("p0", "again")
    assert opened == {paths[0]: 1, paths[1]: 2, paths[2]: 1}
    assert len(found.digest) == 64
    assert sum(opened.values()) == 4


@pytest.fixture
def room(monkeypatch):
    """Let three images of 4 x 4 pixels be held."""
    monkeypatch.setattr(module, "CACHED", 3 * 3 * 4 * 4 * 4)
    return 3


def test_few_pixels_are_held(tmp_path, opened, room):
    count = room + 6
    prompts = [
        Prompt(f"p{i}", "x", images=(saved(tmp_path, f"{i}.png", side=4, seed=i),))
        for i in range(count)
    ]
    found = References(prompts)
    names = [reference.reference_id for reference in found]
    assert names == [entry.reference_id for entry in found.entries]
    assert len(found._held) == room
    assert len(pickle.dumps(found)) < 700 * count
    copy = pickle.loads(pickle.dumps(found))
    assert copy.digest == found.digest
    assert torch.equal(copy[3].pixels, found[3].pixels)
    assert opened[tmp_path / "8.png"] == opened[tmp_path / "0.png"] == 2
    found[8]
    found[0]
    assert opened[tmp_path / "8.png"] == 2
    assert opened[tmp_path / "0.png"] == 3


def test_rows_are_those_of_the_table(tmp_path):
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    path = saved(tmp_path, "a.png", side=16)
    prompts = [Prompt("t", "x", images=(path,), mask=mask), Prompt("u", "x", images=(path,))]
    found = References(prompts, (8, 8))
    (row,) = found.rows()
    assert (row["width"], row["height"], row["masked"]) == (16, 16, True)
    assert row["prompt_ids"] == ["t", "u"]
    assert row["digest"] == load_image(path).digest
    torch.testing.assert_close(decode(row["image"]), found[0].pixels, atol=0.51 / 255, rtol=0)
    assert torch.equal(decode_masked(row["image"])[1], mask)
    assert list(found.rows([])) == []


def test_an_image_that_changed_is_noticed(tmp_path, room):
    path = saved(tmp_path, "a.png", side=4)
    many = [
        Prompt(f"p{i}", "x", images=(saved(tmp_path, f"{i}.png", side=4, seed=100 + i),))
        for i in range(room)
    ]
    found = References([Prompt("a", "x", images=(path,)), *many])
    assert len(found) == room + 1
    saved(tmp_path, "a.png", seed=7)
    with pytest.raises(InputError, match="has changed"):
        found[0]


def test_a_missing_image_is_told(tmp_path):
    found = References([Prompt("a", "x", images=(tmp_path / "no.png",))])
    with pytest.raises(InputError, match=r"no\.png"):
        len(found)


@pytest.mark.parametrize("measure", ["l2", "tiled_l2", "masked_l2"])
def test_similarities_take_them_as_they_are(tmp_path, opened, measure):
    prompts = [
        Prompt(f"p{i}", "x", images=(saved(tmp_path, f"{i}.png", seed=i),)) for i in range(70)
    ]
    found = References(prompts)
    index = get_similarity(measure).index(found)
    images = torch.rand(3, 3, 8, 8)
    plain = get_similarity(measure).index([found[i] for i in range(70)]).compare(images)
    assert torch.equal(index.compare(images).nan_to_num(), plain.nan_to_num())
    before = sum(opened.values())
    index.compare(images)
    assert sum(opened.values()) == before
