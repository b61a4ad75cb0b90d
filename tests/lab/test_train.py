"""Training: a killed stage goes on as if it had never stopped."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mnemoscope.errors import InputError
from mnemoscope.lab import BASE_UNET_DIR, MODEL_DIR, train
from mnemoscope.lab.planted import load_table
from mnemoscope.lab.train import Stage, plant, refine_base


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


def test_the_shipped_table_is_no_second_ground_truth(tmp_path, monkeypatch) -> None:
    # That seed 7 draws it is told by test_planted.py; drawing takes eight seconds.
    monkeypatch.setattr(train, "make_table", {7: list(load_table())}.__getitem__)
    with pytest.raises(InputError, match="seed 7 draws the table that ships"):
        plant(tmp_path / "out", seed=7)
    assert not (tmp_path / "out").exists()


def test_refinement_goes_on_from_the_base(tmp_path) -> None:
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
    assert str(tmp_path) not in (tmp_path / "base" / "unet" / "config.json").read_text()
