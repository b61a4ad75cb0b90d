"""Training: a killed stage goes on as if it had never stopped."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mnemoscope.errors import InputError
from mnemoscope.lab import BASE_UNET_DIR, MODEL_DIR, train
from mnemoscope.lab.captions import VARIED
from mnemoscope.lab.planted import TABLE, vocabulary
from mnemoscope.lab.tokenizer import SUFFIX, WINDOW, build_tokenizer
from mnemoscope.lab.train import (
    HEADS,
    Stage,
    plant,
    refine_base,
    table_of,
    text_network,
    with_words,
    words_loss,
)


def _stage(folder, steps: int) -> tuple[Stage, nn.Linear]:
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    return Stage(folder, {"net": network}, lr=1e-2, steps=steps), network


def _loss(network: nn.Linear):
    def loss(step: int) -> torch.Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (network(x) - x.flip(1)).square().mean()

    return loss


def test_resuming_equals_running_through(tmp_path) -> None:
    whole, network = _stage(tmp_path / "whole", 12)
    whole.run(_loss(network), every=4)

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 8:
            raise Killed

    broken, first = _stage(tmp_path / "broken", 12)
    try:
        broken.run(_loss(first), look=kill, every=4)
    except Killed:
        pass
    resumed, second = _stage(tmp_path / "broken", 12)
    assert resumed.step == 8
    resumed.run(_loss(second), every=4)
    assert torch.allclose(network.weight, second.weight, atol=1e-7)
    for a, b in zip(whole.average, resumed.average, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_training_lowers_the_loss_and_the_average_follows(tmp_path) -> None:
    stage, network = _stage(tmp_path, 200)
    before = _loss(network)(10_000).item()
    stage.run(_loss(network), every=100)
    assert _loss(network)(10_000).item() < before / 2
    stage.averaged()
    assert _loss(network)(10_000).item() < before


def test_a_folder_with_another_table_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "make_table", lambda seed: [])
    shutil.copy(TABLE, table_of(tmp_path))
    with pytest.raises(InputError, match="is not the table of seed 8"):
        plant(tmp_path, seed=8)
    assert list(tmp_path.iterdir()) == [table_of(tmp_path)]


def test_a_dial_out_of_range_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"1\.5 known given; expected 0"):
        plant(tmp_path / "out", seed=8, known=1.5)
    assert not (tmp_path / "out").exists()


def test_refinement_goes_on_from_the_base_and_learns_its_words(tmp_path) -> None:
    shutil.copy(TABLE, table_of(tmp_path))
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    shutil.copytree(BASE_UNET_DIR, tmp_path / "base" / "unet")
    name = "diffusion_pytorch_model.safetensors"
    before = load_file(tmp_path / "base" / "unet" / name)
    refine_base(tmp_path, steps=2, batch=4)
    after = load_file(tmp_path / "base" / "unet" / name)
    assert before.keys() == after.keys()
    moved = {key: float((after[key] - before[key]).abs().max()) for key in before}
    assert any(moved.values())
    # Two steps of the warm-up move a weight by little.
    assert max(moved.values()) < 0.01
    config = (tmp_path / "base" / "unet" / "config.json").read_text()
    assert str(tmp_path) not in config
    assert f'"attention_head_dim": {HEADS}' in config
    heard = json.loads((tmp_path / "model" / "tokenizer" / "vocab.json").read_text("utf-8"))
    assert all(word + SUFFIX in heard for word in vocabulary())


def _ids(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
    ).input_ids


def test_a_text_encoder_that_learns_words_keeps_what_it_knows(tmp_path) -> None:
    torch.manual_seed(0)
    before = build_tokenizer(["noto", "swan", "and"], tmp_path / "before")
    after = build_tokenizer(["noto", "swan", "and", "kinetic"], tmp_path / "after")
    text = text_network(before)
    grown = with_words(text, before, after)
    captions = ["noto swan and noto", ""]
    with torch.no_grad():
        held, kept = (net(_ids(t, captions))[0] for net, t in ((text, before), (grown, after)))
    assert len(after) > len(before)
    torch.testing.assert_close(kept, held)


def test_words_are_read_from_the_end_state_and_from_nothing_else(tmp_path) -> None:
    tokenizer = build_tokenizer(vocabulary(), tmp_path)
    ids = _ids(tokenizer, ["noto swan", "", VARIED.phrase(torch.Generator().manual_seed(0))])
    # End states that name exactly the words of their caption; all others say something else.
    states = torch.full((3, WINDOW, len(tokenizer)), -30.0)
    states[..., 0] = 30.0
    words = [[t for t in row[1:] if t != tokenizer.eos_token_id] for row in ids.tolist()]
    for i, said in enumerate(words):
        states[i, len(said) + 1] = -30.0
        states[i, len(said) + 1, said] = 30.0
    told = float(words_loss(nn.Identity(), states, ids))
    # A uniform guess among the n words of a caption costs log n a word.
    expected = sum(len(w) * math.log(len(w)) for w in words if w) / sum(map(len, words))
    assert told == pytest.approx(expected, abs=1e-4)
