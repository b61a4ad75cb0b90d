"""Pruning: scores by an independent pass, the original untouched, the copy without the weights."""

import pytest
import torch

from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.prune import LAYER, pruned
from mnemoscope.models import load_model
from mnemoscope.sampling.loop import generators_of, initial_noise
from mnemoscope.sampling.recipe import seed_of
from tests.tiny import tiny_pipeline

OPTIONS = {"strength": 0.1, "calls": 1, "steps": 4, "guidance": 3.0}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


@pytest.fixture(scope="module")
def found(model):
    return pruned(model, ["a cat"], **OPTIONS)


def inputs(model, text):
    """Show the network one prompt at the first call, and return what its layers are given."""
    layers = {n: m for n, m in model.denoiser.network.named_modules() if n.endswith(LAYER)}
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
        for name, layer in layers.items()
    ]
    noise = initial_noise(generators_of([seed_of(0, text, 0)]), model.latent_shape)
    time = model.make_scheduler("auto", 4).timesteps[0]
    with torch.no_grad():
        model.denoiser(noise, time, model.encode_prompts([text]))
    for hook in hooks:
        hook.remove()
    return layers, seen


def test_what_goes_is_what_the_prompt_uses_more_than_none(model, found):
    layers, mine = inputs(model, "a cat")
    _, empty = inputs(model, "")
    assert set(found.masks) == set(layers)
    for name, layer in layers.items():
        size = layer.weight.abs()
        score = size * mine[name].flatten(0, -2).norm(dim=0)
        other = size * empty[name].flatten(0, -2).norm(dim=0)
        most = round(0.1 * size.shape[1])
        for row in range(size.shape[0]):
            order = score[row].argsort(descending=True)
            wanted = {int(j) for j in order[:most] if score[row, j] > other[row, j]}
            assert set(found.masks[name][row].nonzero()[:, 0].tolist()) == wanted


def test_the_copy_lacks_them_and_the_original_does_not(model, found):
    kept = dict(model.denoiser.network.named_modules())
    made = dict(found.model.denoiser.network.named_modules())
    # A tenth of a row, rounded, and never a row whole.
    assert 0 < found.share <= 0.11
    for name, mask in found.masks.items():
        assert not made[name].weight[mask].any()
        assert torch.equal(made[name].weight[~mask], kept[name].weight[~mask])
        assert bool(kept[name].weight[mask].any()) == bool(mask.any())
    assert found.model.digest != model.digest
    assert not any(m._forward_pre_hooks for m in kept.values())


def test_strength_nothing_takes_nothing(model):
    still = pruned(model, ["a cat"], **OPTIONS | {"strength": 0.0})
    assert still.share == 0
    assert still.model.digest == model.digest


def test_what_cannot_be_pruned_is_refused(model):
    with pytest.raises(InputError, match="0 prompts"):
        pruned(model, [])
    with pytest.raises(InputError, match=r"strength of 1\.5"):
        pruned(model, ["a"], strength=1.5)
    with pytest.raises(ModelError, match="no layer"):
        pruned(load_model("oracle:mixture"), ["a"])
