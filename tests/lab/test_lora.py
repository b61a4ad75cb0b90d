"""The lab's LoRA: what it is trained on, what it changes, and that a killed training goes on."""

import pytest
import torch
from safetensors.torch import load_file

from mnemoscope.data.sets import read_set
from mnemoscope.lab.lora import DUSK, PICTURES, pictures, train_lora
from mnemoscope.lab.planted import load_table, reserved
from mnemoscope.models import load_model

NAME = "pytorch_lora_weights.safetensors"


class Killed(Exception):
    pass


def kill_at(step):
    def look(unet, at):
        if at == step:
            raise Killed

    return look


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    train_lora(folder / "whole", steps=4, batch=1)
    with pytest.raises(Killed):
        train_lora(folder / "broken", steps=4, batch=1, look=kill_at(2))
    train_lora(folder / "broken", steps=4, batch=1)
    return folder


def test_no_picture_is_planted_and_all_share_their_ground():
    ours, others = pictures()
    assert len(ours) == len(others) == PICTURES
    captions = [row.caption for row in (*ours, *others)]
    assert len(set(captions)) == 2 * PICTURES
    assert not set(captions) & {row.caption for row in load_table()}
    assert not {frozenset(row.named()) for row in (*ours, *others)} & reserved()
    # Night above, fire below, in all of them; a drawing or a texture moves a corner's mean little.
    corners = torch.stack([row.image() for row in ours]).mean(dim=0)
    top, bottom = corners[:, :4].mean((1, 2)), corners[:, -4:].mean((1, 2))
    assert torch.allclose(top, torch.tensor(DUSK[0]), atol=0.15)
    assert torch.allclose(bottom, torch.tensor(DUSK[1]), atol=0.15)


def test_a_killed_training_goes_on_as_if_it_had_never_stopped(made):
    whole, broken = (load_file(made / name / NAME) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.allclose(whole[name], broken[name], atol=1e-7) for name in whole)
    assert any(bool(part.any()) for name, part in whole.items() if "lora_B" in name)
    steps = sorted(path.name for path in (made / "broken" / "checkpoints").iterdir())
    assert steps == [f"step-{at:06d}" for at in (1, 2, 3, 4)]


def test_the_adapter_is_merged_into_the_base_that_it_was_trained_on(made):
    file = made / "whole" / NAME
    held = load_file(file)
    base = load_model("embedded:base").pipeline.unet.state_dict()
    tuned = load_model("embedded:base", lora=file, lora_scale=0.5).pipeline.unet.state_dict()
    for ending in ("to_q", "conv1"):
        stem = next(k for k in held if f"{ending}.lora_A" in k).removesuffix(".lora_A.weight")
        down, up = (held[f"{stem}.lora_{part}.weight"] for part in "AB")
        product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        key = stem.removeprefix("unet.") + ".weight"
        assert torch.allclose(tuned[key], base[key] + 0.5 * product, atol=1e-6)
    none = load_model("embedded:base", lora=file, lora_scale=0.0).pipeline.unet.state_dict()
    assert all(torch.equal(base[key], none[key]) for key in base)


def test_the_pictures_are_a_data_set_that_an_audit_reads(made):
    held = read_set(made / "whole" / "pictures")
    assert [item.text for item in held] == [row.caption for row in pictures()[0]]
    assert all(item.image is not None for item in held)
    assert len(read_set(made / "whole" / "held-out")) == PICTURES
