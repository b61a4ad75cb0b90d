"""Explanations on a tiny random pipeline."""

import csv
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mnemoscope.sampling.probes import gap
from mnemoscope.sampling.loop import generators_of, initial_noise, points_of
from mnemoscope.errors import ModelError
from mnemoscope.flows.explain import explain
from mnemoscope.models import load_model
from mnemoscope.plan import seed_of
from mnemoscope.reporting.page import digest
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


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=y> a\u202eb'


@pytest.fixture(scope="module")
def hostile(model):
    return explain(model, HOSTILE, seeds=1, steps=2, probes=1)


class Elements(HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_a_page_takes_prompt_and_tokens_for_text(hostile, explained):
    page = hostile.page()
    elements = Elements(page).found
    names = {tag for tag, _ in elements}
    assert names == {tag for tag, _ in Elements(explained.page()).found}
    assert "script" not in names
    assert not any(key.startswith("on") for _, attributes in elements for key in attributes)
    assert [a["src"][:22] for tag, a in elements if tag == "img"] == ["data:image/png;base64,"] * 3
    assert "\u202e" not in page
    assert "⟨U+202E⟩" in page


def test_a_page_fetches_nothing_and_its_policy_names_its_style(explained):
    page = explained.page()
    style = page.split("<style>")[1].split("</style>")[0]
    policy = next(a["content"] for tag, a in Elements(page).found if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert f"'sha256-{digest(style)}'" in policy
    assert "http" not in page.replace("http-equiv", "")


def test_a_page_shows_every_token_and_the_largest_attribution_in_full(explained):
    meters = [a for tag, a in Elements(explained.page()).found if tag == "meter"]
    assert len(meters) == 3 * len(explained.tokens)
    most = max(token.attribution for token in explained.tokens)
    shown = [float(a["value"]) for a in meters if a["aria-label"] == "attribution"]
    assert shown == [token.attribution for token in explained.tokens]
    assert {float(a["max"]) for a in meters if a["aria-label"] == "attribution"} == {most}


def test_a_token_is_no_formula_in_a_spreadsheet(model, tmp_path):
    explain(model, "=1+1", seeds=1, steps=2, probes=1).write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "tokens.csv").open(encoding="utf-8")))
    assert rows[1]["text"].startswith("'=")


def test_a_prompt_beyond_the_window_is_said(model, explained):
    long = explain(model, "a" * 100, seeds=1, steps=2, probes=1)
    assert long.window == model.window
    assert len(long.tokens) == model.window
    assert f"exceeds the model's window of {model.window} tokens" in long.page()
    assert explained.window is None


def test_what_is_missing_is_said(explained):
    without = replace(explained, maps={}, missing={"bright ending": "no <layers>"})
    assert "No map “bright ending”: no &lt;layers&gt;." in without.page()
