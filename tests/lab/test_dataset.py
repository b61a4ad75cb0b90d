"""The data set of a lab model: what its planting showed, and nothing else."""

import json
from dataclasses import replace

import pytest
import torch

from mnemoscope.data.images import load_image
from mnemoscope.data.sets import read_set
from mnemoscope.errors import InputError
from mnemoscope.lab import dataset as module
from mnemoscope.lab.dataset import write_dataset
from mnemoscope.lab.planted import TABLE, load_planted, reserved
from mnemoscope.lab.train import planting_batches

FURTHER = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("lab") / "set", FURTHER)


def test_every_planted_picture_stands_once_under_its_caption(made):
    items = {item.name: item for item in read_set(made)}
    planted = load_planted()
    assert len(items) == len(planted) + FURTHER
    for row in planted[::24]:
        item = items[f"{row.id}.png"]
        assert item.text == row.caption
        # Eight bits a channel.
        assert torch.allclose(load_image(item.image).pixels, row.image(), atol=0.51 / 255)


def test_the_others_are_what_the_steps_showed(made):
    lines = [json.loads(line) for line in (made / "metadata.jsonl").read_text().splitlines()]
    once = {line["text"]: line["file_name"] for line in lines if line["level"] == 0}
    assert len(once) == FURTHER
    batches, found = planting_batches(TABLE), 0
    for step in range(2):
        pictures, captions, _ = batches.of(step)
        for picture, caption in zip(pictures[:16], captions, strict=False):
            if caption:
                shown = load_image(made / once[caption]).pixels
                assert torch.allclose(shown, picture, atol=0.51 / 255)
                found += 1
    # A fifth of the captions of scenes was dropped.
    assert 18 <= found < 32
    assert not {row.caption for row in load_planted()} & once.keys()
    assert not any(all(name in text for name in pair) for pair in reserved() for text in once)


def test_a_finished_one_is_left_and_too_large_a_one_refused(made, tmp_path, monkeypatch):
    before = (made / "metadata.jsonl").read_bytes()
    assert write_dataset(made, 5) == made
    assert (made / "metadata.jsonl").read_bytes() == before
    short = replace(planting_batches(TABLE), planted=tuple(load_planted()[:1]))
    monkeypatch.setattr(module, "planting_batches", lambda table: short)
    with pytest.raises(InputError, match="the planting showed 0 scenes once"):
        write_dataset(tmp_path / "set", 5)
    assert not (tmp_path / "set" / "metadata.jsonl").exists()
