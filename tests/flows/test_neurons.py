"""Neurons: the search where the culprit is known, SSIM by another route, the copy without them."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.neurons import _found, _Probe, blocked, ms_ssim
from mnemoscope.models import load_model
from tests.tiny import tiny_pipeline


def drawn(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Known(_Probe):
    """Three layers of four neurons; neuron 6 alone makes seeds 0 to 2 alike, neuron 9 seed 3."""

    parts: ClassVar = (slice(0, 4), slice(4, 8), slice(8, 12))

    def __init__(self, culprit=6):
        self.culprit = culprit

    def activity(self, text):
        found = torch.ones(12, dtype=torch.float64)
        # 6 stands out, as do a bystander of its layer and one of another; the rest does not.
        found[[1, 5, 6]] = torch.tensor([9.0, 8.0, 5.0], dtype=torch.float64)
        return found

    def difference(self, text, neurons=None):
        alike = neurons is None or not neurons[self.culprit]
        picture = drawn(7, 1, 2, 16, 16)
        images = drawn(1, 4, 2, 16, 16)
        if alike:
            images[:3] = picture + 0.05 * drawn(2, 3, 2, 16, 16)
        return images

    def named(self, neurons):
        return {"all": tuple(neurons.nonzero()[:, 0].tolist())}


MEAN, SPREAD = torch.ones(12, dtype=torch.float64), torch.ones(12, dtype=torch.float64)


def test_the_culprit_is_found_and_bystanders_are_not():
    # Neuron 6 is flagged after a few rounds only, with bystanders, which are let go again.
    assert _found(Known(), "a", MEAN, SPREAD, 0.4) == {"all": (6,)}


def test_seeds_that_are_apart_have_no_neurons():
    class Apart(Known):
        def difference(self, text, neurons=None):
            return drawn(1, 4, 2, 16, 16)

    assert _found(Apart(), "a", MEAN, SPREAD, 0.4) == {}


def test_what_cannot_be_broken_up_ends_at_the_last_threshold():
    class Stubborn(Known):
        def difference(self, text, neurons=None):
            images = super().difference(text)
            # Every neuron takes a little off; none suffices.
            taken = 0.0 if neurons is None else float(neurons.sum()) / 24
            return (1 - taken) * images + taken * drawn(3, 4, 2, 16, 16)

    probe = Stubborn()
    found = _found(probe, "a", MEAN, SPREAD, 0.1)
    # All that stand out at z = 1 and the 16 largest of each layer, which is all; none is spared.
    assert found == {"all": tuple(range(12))}


@pytest.mark.parametrize("side", [16, 24, 44])
def test_ms_ssim_is_that_of_a_plain_convolution(side):
    a, b = drawn(1, 1, 1, side, side), drawn(2, 1, 1, side, side)
    b = 0.7 * a + 0.3 * b
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2

    def blur(x):
        return convolve2d(x, window, mode="valid")

    def halved(x):
        return x.reshape(len(x) // 2, 2, len(x) // 2, 2).mean(axis=(1, 3))

    x, y, wanted = a[0, 0].numpy(), b[0, 0].numpy(), 1.0
    scales = {16: 1, 24: 2, 44: 3}[side]
    for scale in range(scales):
        mx, my = blur(x), blur(y)
        cov, vx, vy = blur(x * y) - mx * my, blur(x * x) - mx**2, blur(y * y) - my**2
        part = (2 * cov + 0.0009) / (vx + vy + 0.0009)
        if scale == scales - 1:
            part = part * (2 * mx * my + 0.0001) / (mx**2 + my**2 + 0.0001)
        wanted *= part.mean() ** (0.99 / scales)
        if scale < scales - 1:
            x, y = halved(x), halved(y)
    assert float(ms_ssim(a, b)) == pytest.approx(wanted, abs=1e-10)
    assert float(ms_ssim(a, a)) == pytest.approx(1, abs=1e-10)


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(sample_size=16), device="cpu")


def test_the_copy_lacks_the_neurons_and_the_original_does_not(model):
    # No two seeds of a random network are alike, so all are asked for.
    found = blocked(model, ["a cat"], ["a dog", "b"], limit=-1.0, steps=4, seeds=2)
    assert found.layers
    before = dict(model.denoiser.network.named_modules())
    after = dict(found.model.denoiser.network.named_modules())
    for name, layer in before.items():
        if not name.endswith("attn2.to_v"):
            continue
        gone = list(found.layers.get(name, ()))
        assert name.startswith(("down_blocks", "mid_block")) or not gone
        kept = [j for j in range(len(layer.weight)) if j not in gone]
        assert not after[name].weight[gone].any()
        assert torch.equal(after[name].weight[kept], layer.weight[kept])
        assert layer.weight[gone].any() or not gone
        assert not layer._forward_hooks
    # Weights at 0 do what the search did with hooks.
    probe, copy = _Probe(model, 4, 2, 0), _Probe(found.model, 4, 2, 0)
    chosen = torch.zeros(probe.parts[-1].stop, dtype=torch.bool)
    for name, part in zip(probe.layers, probe.parts, strict=True):
        chosen[part][list(found.layers.get(name, ()))] = True
    torch.testing.assert_close(copy.difference("a cat"), probe.difference("a cat", chosen))
    assert not torch.allclose(copy.difference("a cat"), probe.difference("a cat"))


def test_activity_is_that_of_the_prompt_s_tokens(model):
    probe = _Probe(model, 4, 2, 0)
    words = model.encode_prompts(["a cat"]).embedding
    wanted = [layer(words)[0].abs().mean(dim=0) for layer in probe.layers.values()]
    torch.testing.assert_close(
        probe.activity("a cat").float(), torch.cat(wanted), atol=1e-6, rtol=1e-5
    )


def test_what_cannot_be_done_is_refused(model):
    with pytest.raises(InputError, match="1 ordinary"):
        blocked(model, ["a"], ["b"])
    with pytest.raises(ModelError, match="no pipeline"):
        blocked(load_model("oracle:mixture"), ["a"], ["b", "c"])
    with pytest.raises(InputError, match="8 pixels"):
        ms_ssim(drawn(1, 1, 1, 8, 8), drawn(2, 1, 1, 8, 8))
