"""Explanations on a tiny random pipeline."""

import csv

import pytest
import torch
from PIL import Image

from mnemoscope.core.probes import gap
from mnemoscope.core.sample import generators_of, initial_noise, points_of
from mnemoscope.errors import ModelError
from mnemoscope.explain import explain
from mnemoscope.models import load_model
from mnemoscope.plan import seed_of
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(tiny_folder(tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def explained(model):
    return explain(model, "a cat", seeds=2, steps=4, probes=2)


def test_every_token_up_to_the_end_is_there(explained):
    # One token a byte: the begin mark, "a", "c", "a", "t", the end mark.
    assert len(explained.tokens) == 6
    assert explained.tokens[0].text == "<|startoftext|>"
    assert explained.tokens[-1].text == "<|endoftext|>"
    assert all(token.attribution > 0 for token in explained.tokens)
    assert explained.rest > 0
    assert 0 < sum(token.attention_first for token in explained.tokens) < 1


def test_attribution_is_the_slope_of_the_gap_norm(model, explained):
    point = points_of(model.make_scheduler("ddim", 4))[0]
    noise = initial_noise(
        generators_of([seed_of(0, "bank", s) for s in range(2)]), model.latent_shape
    )
    cond, uncond = model.encode_prompts(["a cat"] * 2), model.encode_prompts([""] * 2)
    at = 2

    def sizes(condition):
        return gap(model.denoiser, noise, point, condition, uncond).flatten(1).norm(dim=1)

    slopes = torch.zeros(2, cond.shape[2])
    for feature in range(cond.shape[2]):
        step = torch.zeros_like(cond)
        step[:, at, feature] = 0.05
        with torch.no_grad():
            slopes[:, feature] = (sizes(cond + step) - sizes(cond - step)) / 0.1
    wanted = float(slopes.norm(dim=1).mean())
    assert explained.tokens[at].attribution == pytest.approx(wanted, rel=0.02)


def test_maps_are_pictures(explained, tmp_path):
    assert set(explained.maps) == {"squared gap", "curvature", "bright ending"}
    assert not explained.missing
    assert explained.maps["squared gap"].shape == (2, 8, 8)
    explained.write(tmp_path)
    with Image.open(tmp_path / "squared-gap.png") as image:
        # Two seeds side by side, three rows.
        assert image.size == (2 * 16, 3 * 16)
    rows = list(csv.DictReader((tmp_path / "tokens.csv").open(encoding="utf-8")))
    assert [row["position"] for row in rows] == [str(at) for at in range(6)]


def test_a_model_without_tokens_is_refused():
    with pytest.raises(ModelError, match="token"):
        explain(load_model("oracle:memorizer"), "target 0", steps=4)
