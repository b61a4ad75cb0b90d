"""Watching cross-attention: same output, right reductions, always removed."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from mnemoscope.sampling.attention import cross_attentions, watch
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def unet():
    return tiny_pipeline().unet.eval()


@pytest.fixture
def batch():
    return torch.randn(3, 4, 8, 8), torch.tensor(500), torch.randn(3, 77, 32)


def call(unet, batch):
    x, time, text = batch
    with torch.no_grad():
        return unet(x, time, encoder_hidden_states=text, return_dict=False)[0]


def test_a_watched_network_answers_bit_for_bit_the_same(unet, batch):
    plain = call(unet, batch)
    with watch(unet) as seen:
        seen.rows = slice(1, 3)
        assert torch.equal(call(unet, batch), plain)


def plain_attention(unet, batch):
    """Return the attention of every cross-attention layer by the plain processor."""
    whole = []

    class Spy(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
            if encoder_hidden_states is not None:
                query = attn.head_to_batch_dim(attn.to_q(hidden_states))
                key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
                scores = attn.get_attention_scores(query, key)
                whole.append(scores.unflatten(0, (len(hidden_states), attn.heads)))
            return super().__call__(attn, hidden_states, encoder_hidden_states, **options)

    layers = cross_attentions(unet)
    before = [layer.processor for _, layer in layers]
    for _, layer in layers:
        layer.set_processor(Spy())
    call(unet, batch)
    for (_, layer), processor in zip(layers, before, strict=True):
        layer.set_processor(processor)
    return whole


def reduced(unet, batch):
    with watch(unet) as seen:
        seen.rows, seen.end = slice(1, 3), torch.tensor([5, 9])
        call(unet, batch)
        seen.finish()
    return seen


def test_layers_with_other_head_counts_are_reduced_alike(batch):
    torch.manual_seed(0)
    uneven = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 8),
        norm_num_groups=8,
    ).eval()
    assert {layer.heads for _, layer in cross_attentions(uneven)} == {2, 8}
    whole, seen = plain_attention(uneven, batch), reduced(uneven, batch)
    wanted = torch.stack([p[1:].mean(dim=(1, 2)) for p in whole], dim=1)
    torch.testing.assert_close(seen.tokens[0], wanted, rtol=1e-4, atol=1e-6)
    down = whole[0][1:].mean(dim=1)
    ends = torch.stack([down[0, :, 5], down[1, :, 9]]).unflatten(1, (8, 8))
    torch.testing.assert_close(seen.maps, ends, rtol=1e-4, atol=1e-6)


def test_reductions_equal_the_attention_of_the_plain_processor(unet, batch):
    layers = cross_attentions(unet)
    whole, seen = plain_attention(unet, batch), reduced(unet, batch)
    assert [name.split("_")[0] for name, _ in layers] == ["down", "mid", "up", "up"]
    wanted = torch.stack([p[1:].mean(dim=(1, 2)) for p in whole], dim=1)
    torch.testing.assert_close(seen.tokens[0], wanted, rtol=1e-4, atol=1e-6)
    down = whole[0][1:].mean(dim=1)
    ends = torch.stack([down[0, :, 5], down[1, :, 9]]).unflatten(1, (4, 4))
    torch.testing.assert_close(seen.maps, ends, rtol=1e-4, atol=1e-6)


def test_processors_are_put_back_after_an_error(unet):
    before = [layer.processor for _, layer in cross_attentions(unet)]
    with pytest.raises(ZeroDivisionError), watch(unet):
        _ = 1 / 0
    assert [layer.processor for _, layer in cross_attentions(unet)] == before


def test_something_without_layers_has_none():
    assert cross_attentions(None) == []
    assert cross_attentions(torch.nn.Linear(2, 2)) == []
