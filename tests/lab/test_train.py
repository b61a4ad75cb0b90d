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
from mnemoscope.lab.captions import phrase
from mnemoscope.lab.planted import TABLE, vocabulary
from mnemoscope.lab.tokenizer import WINDOW, build_tokenizer
from mnemoscope.lab.train import (
    HEADS,
    Stage,
    apart_loss,
    end_states,
    plant,
    refine_base,
    table_of,
    train_text,
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


def _convolution(folder, steps: int) -> tuple[Stage, nn.Conv2d]:
    torch.manual_seed(0)
    network = nn.Conv2d(2, 4, 3)
    stage = Stage(folder, {"net": network}, lr=1e-2, steps=steps)
    # As for a denoiser: the layout of weights changes once their state was read.
    network.to(memory_format=torch.channels_last)
    return stage, network


def _loss_of_pictures(network: nn.Conv2d):
    def loss(step: int) -> torch.Tensor:
        x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(step))
        return (network(x).mean((2, 3)) - x[:, :1, 0, 0]).square().mean()

    return loss


@pytest.mark.parametrize(
    ("_stage", "_loss"), [(_stage, _loss), (_convolution, _loss_of_pictures)], ids=["flat", "laid"]
)
def test_resuming_equals_running_through(tmp_path, _stage, _loss) -> None:
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
    with pytest.raises(InputError, match="holds another table"):
        plant(tmp_path, seed=8)
    assert list(tmp_path.iterdir()) == [table_of(tmp_path)]


def test_a_dial_out_of_range_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"1\.5 known given; expected 0"):
        plant(tmp_path / "out", seed=8, known=1.5)
    assert not (tmp_path / "out").exists()


def test_refinement_goes_on_from_the_base_and_holds_the_text_encoder(tmp_path) -> None:
    shutil.copy(TABLE, table_of(tmp_path))
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    shutil.copytree(BASE_UNET_DIR, tmp_path / "base" / "unet")
    name = "diffusion_pytorch_model.safetensors"
    text = (tmp_path / "model" / "text_encoder" / "model.safetensors").read_bytes()
    before = load_file(tmp_path / "base" / "unet" / name)
    refine_base(tmp_path, steps=2, batch=4)
    after = load_file(tmp_path / "base" / "unet" / name)
    assert before.keys() == after.keys()
    moved = {key: float((after[key] - before[key]).abs().max()) for key in before}
    assert any(moved.values())
    # Two steps of the warm-up move a weight by little.
    assert max(moved.values()) < 0.01
    assert (tmp_path / "model" / "text_encoder" / "model.safetensors").read_bytes() == text
    config = (tmp_path / "base" / "unet" / "config.json").read_text()
    assert str(tmp_path) not in config
    assert f'"attention_head_dim": {HEADS}' in config


def _ids(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
    ).input_ids


def test_a_text_encoder_learns_to_tell_captions_apart(tmp_path) -> None:
    train_text(tmp_path, steps=100, batch=16)
    rows = (tmp_path / "text-state" / "log.jsonl").read_text("utf-8").splitlines()
    first, last = (json.loads(row)["loss"] for row in rows)
    assert last < 0.8 * first
    assert (tmp_path / "model" / "text_encoder" / "model.safetensors").is_file()


def test_captions_are_told_apart_by_their_end_states() -> None:
    eye = torch.eye(4)
    assert float(apart_loss(eye, eye)) == pytest.approx(math.log1p(3 * math.exp(-10)), abs=1e-6)
    # Where all are alike a guess among four is left.
    assert float(apart_loss(torch.ones(4, 3), torch.ones(4, 3))) == pytest.approx(math.log(4))
    turned = apart_loss(eye, eye.roll(1, 0))
    assert float(turned) == pytest.approx(10 + math.log1p(3 * math.exp(-10)), abs=1e-4)


def test_words_are_read_from_the_end_state_and_from_nothing_else(tmp_path) -> None:
    tokenizer = build_tokenizer(vocabulary(), tmp_path)
    ids = _ids(tokenizer, ["noto swan", "", phrase(torch.Generator().manual_seed(0))])
    # End states that name exactly the words of their caption; all others say something else.
    states = torch.full((3, WINDOW, len(tokenizer)), -30.0)
    states[..., 0] = 30.0
    words = [[t for t in row[1:] if t != tokenizer.eos_token_id] for row in ids.tolist()]
    for i, said in enumerate(words):
        states[i, len(said) + 1] = -30.0
        states[i, len(said) + 1, said] = 30.0
    told = float(words_loss(end_states(states, ids), ids))
    # A uniform guess among the n words of a caption costs log n a word.
    expected = sum(len(w) * math.log(len(w)) for w in words if w) / sum(map(len, words))
    assert told == pytest.approx(expected, abs=1e-4)
