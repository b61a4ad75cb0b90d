"""Adapters as channels: they add up, lie where they were put, and go in the order they should."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from mnemoscope.errors import InputError, ModelError, RunError
from mnemoscope.flows.lora import Filtering, filter_lora
from mnemoscope.models.adapter import channels_of, filtered, folded
from mnemoscope.models.load import load_adapted, load_model
from mnemoscope.models.source import Source
from tests.tiny import tiny_folder, tiny_pipeline

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def plain(folder):
    return load_model(str(folder)).pipeline


def weight(pipeline, name):
    part, _, layer = name.partition(".")
    return pipeline.components[part].get_submodule(layer).weight.detach()


def layers(plain):
    """Return a linear layer and a convolution of the denoiser, and a layer of the text encoder."""
    names = (name for name, _ in plain.text_encoder.named_modules())
    return LINEAR, CONV, "text_encoder." + next(name for name in names if name.endswith("q_proj"))


def adapter(plain, path, names=None, rank=3):
    """Write a random LoRA of some layers."""
    torch.manual_seed(0)
    names = names or layers(plain)
    held = {}
    for name in names:
        out, into, *kernel = weight(plain, name).shape
        held[f"{name}.lora_A.weight"] = torch.randn(rank, into, *kernel)
        held[f"{name}.lora_B.weight"] = torch.randn(out, rank, *[1] * len(kernel))
    save_file(held, path)
    return path


def update(base, tuned, name):
    return weight(tuned, name) - weight(base, name)


def test_what_is_filtered_by_nothing_is_the_same_adapter(folder, plain, tmp_path):
    file, out = adapter(plain, tmp_path / "lora.safetensors"), tmp_path / "out.safetensors"
    said = filter_lora(Filtering(str(folder), str(file), strength=0.0, out=out))
    assert said.startswith("3 layers, 9 channels")
    one, other = (load_model(str(folder), lora=path).pipeline for path in (file, out))
    for name in layers(plain):
        assert torch.allclose(weight(one, name), weight(other, name), atol=1e-5)
        assert not torch.equal(weight(one, name), weight(plain, name))


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_a_filter_takes_out_as_much_as_it_says(folder, plain, tmp_path, strength):
    file, out = adapter(plain, tmp_path / "lora.safetensors"), tmp_path / "out.safetensors"
    filter_lora(Filtering(str(folder), str(file), strength=strength, out=out))
    # Of what is merged, which is another route than the factors.
    before, after = (load_model(str(folder), lora=path).pipeline for path in (file, out))
    norms = [
        sum(float(update(plain, tuned, name).square().sum()) for name in layers(plain))
        for tuned in (before, after)
    ]
    assert norms[1] / norms[0] == pytest.approx(1 - strength, abs=1e-4)


def test_what_lies_along_the_base_stays(folder, plain, tmp_path):
    file = tmp_path / "lora.safetensors"
    held = {}
    for name in (LINEAR, CONV):
        base = weight(plain, name)
        u, _, v = torch.linalg.svd(base.flatten(1), full_matrices=False)
        # The base's first directions as one channel, its last ones as the other, which is stronger.
        up, down = u[:, [0, -1]] * torch.tensor([1.0, 1.2]), v[[0, -1]]
        held[f"{name}.lora_A.weight"] = down.unflatten(1, base.shape[1:]).contiguous()
        held[f"{name}.lora_B.weight"] = up.reshape(*up.shape, *[1] * (base.ndim - 2)).contiguous()
    save_file(held, file)
    channels = channels_of(load_adapted(Source(model=str(folder), lora=str(file))))
    assert {one.name for one in channels} == {LINEAR, CONV}
    for one in channels:
        best = one.anchored.max()
        assert float(best) == pytest.approx(1.0, abs=1e-4)
        assert float(one.anchored.min()) < 0
    # Without the stronger channels the weaker ones are left, for they are anchored.
    left = filtered(channels, 1.44 / 2.44)
    save_file(left, tmp_path / "out.safetensors")
    tuned = load_model(str(folder), lora=tmp_path / "out.safetensors").pipeline
    for name in (LINEAR, CONV):
        u, _, v = torch.linalg.svd(weight(plain, name).flatten(1), full_matrices=False)
        first = u[:, :1] @ v[:1]
        assert torch.allclose(update(plain, tuned, name).flatten(1), first, atol=1e-4)


def test_random_directions_are_anchored_as_by_chance(folder, plain, tmp_path):
    file = adapter(plain, tmp_path / "lora.safetensors", (LINEAR, CONV), rank=24)
    for one in channels_of(load_adapted(Source(model=str(folder), lora=str(file)))):
        # Twenty-four channels of at least thirty-two dimensions: 0.03 is three standard errors.
        assert abs(float(one.anchored.mean())) < 0.1


def test_the_scale_of_a_layer_counts(folder, plain, tmp_path):
    file = adapter(plain, tmp_path / "lora.safetensors", (LINEAR,))
    pipeline = load_adapted(Source(model=str(folder), lora=str(file)))
    whole = channels_of(pipeline)[0]
    layer = pipeline.unet.get_submodule(LINEAR.removeprefix("unet."))
    # As peft keeps the alpha of a file, over its rank.
    layer.scaling = {name: value / 2 for name, value in layer.scaling.items()}
    assert torch.allclose(channels_of(pipeline)[0].values, whole.values / 2)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"strength": 1.5}, InputError, r"strength 1\.5"),
        ({"principal": -1.0}, InputError, "principal"),
        ({"out": "x.bin"}, InputError, "safetensors"),
        ({"lora": None}, ModelError, "no adapter given; name one by --lora"),
        ({"lora": "gone.safetensors"}, ModelError, "is not there"),
        ({"lora": "x.pt"}, ModelError, "pickle"),
        ({"model": "oracle:memorizer"}, ModelError, "closed form"),
    ],
)
def test_what_cannot_be_filtered_is_refused(folder, plain, tmp_path, changes, error, word):
    file = adapter(plain, tmp_path / "lora.safetensors", (LINEAR,))
    given = {"model": str(folder), "lora": str(file), "out": tmp_path / "out.safetensors"}
    with pytest.raises(error, match=word):
        filter_lora(Filtering(**(given | changes)))
    assert not (tmp_path / "out.safetensors").exists()


def test_an_adapter_of_another_architecture_is_refused(folder, tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 3)}, file)
    with pytest.raises(ModelError, match="another family"):
        filter_lora(Filtering(str(folder), str(file), out=tmp_path / "out.safetensors"))


def test_a_place_that_cannot_be_written_is_told_of(folder, plain, tmp_path):
    file = adapter(plain, tmp_path / "lora.safetensors", (LINEAR,))
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        filter_lora(Filtering(str(folder), str(file), out=tmp_path / "taken" / "x.safetensors"))


@pytest.fixture
def adapted():
    """Return a denoiser with a random LoRA, and its adapted layers."""
    unet = tiny_pipeline().unet.eval()
    unet.add_adapter(LoraConfig(target_modules=["to_k", "conv2"], init_lora_weights=False))
    return unet, [each for each in unet.modules() if isinstance(each, BaseTunerLayer)]


def called(unet):
    size, wide = unet.config.sample_size, unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, unet.config.in_channels, size, size, generator=generator)
    with torch.no_grad():
        return unet(x, 500, torch.randn(2, 5, wide, generator=generator)).sample


def test_what_is_folded_says_the_same_and_is_put_back_bit_for_bit(adapted):
    unet, layers = adapted
    before, said = {k: v.clone() for k, v in unet.state_dict().items()}, called(unet)

    def interrupted():
        with folded([unet]):
            assert all(layer.merged for layer in layers)
            torch.testing.assert_close(called(unet), said, rtol=1e-4, atol=1e-5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(layer.merged for layer in layers)
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in before.items())
    assert torch.equal(called(unet), said)


def test_what_is_folded_already_or_switched_off_is_left_alone(adapted):
    unet, layers = adapted
    layers[0].merge()
    for layer in layers[1:]:
        layer.enable_adapters(False)
    before, said = {k: v.clone() for k, v in unet.state_dict().items()}, called(unet)
    with folded([unet]):
        assert [layer.merged for layer in layers] == [True] + [False] * (len(layers) - 1)
        assert torch.equal(called(unet), said)
    assert layers[0].merged
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in before.items())
