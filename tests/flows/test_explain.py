"""Explanations on a tiny random pipeline."""

import csv
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mnemoscope.data.prompts import load_prompts
from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.explain import Explaining, explain
from mnemoscope.models import load_model
from mnemoscope.reporting.explanation import page as page_of
from mnemoscope.reporting.explanation import write
from mnemoscope.reporting.page import digest
from mnemoscope.sampling.loop import generators_of, initial_noise, points_of
from mnemoscope.sampling.probes import gap
from mnemoscope.sampling.recipe import seed_of
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


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

    states = cond.embedding
    slopes = torch.zeros(2, states.shape[2])
    for feature in range(states.shape[2]):
        step = torch.zeros_like(states)
        step[:, at, feature] = 0.05
        with torch.no_grad():
            ahead, behind = (sizes(cond.embedded(states + s)) for s in (step, -step))
            slopes[:, feature] = (ahead - behind) / 0.1
    wanted = float(slopes.norm(dim=1).mean())
    assert explained.tokens[at].attribution == pytest.approx(wanted, rel=0.02)


def test_maps_are_pictures(explained, tmp_path):
    assert set(explained.maps) == {"squared gap", "curvature", "bright ending"}
    assert not explained.missing
    assert explained.maps["squared gap"].shape == (2, 8, 8)
    write(explained, tmp_path)
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
    page = page_of(hostile)
    elements = Elements(page).found
    names = {tag for tag, _ in elements}
    assert names == {tag for tag, _ in Elements(page_of(explained)).found}
    assert "script" not in names
    assert not any(key.startswith("on") for _, attributes in elements for key in attributes)
    assert [a["src"][:22] for tag, a in elements if tag == "img"] == ["data:image/png;base64,"] * 3
    assert "\u202e" not in page
    assert "⟨U+202E⟩" in page


def test_a_page_fetches_nothing_and_its_policy_names_its_style(explained):
    page = page_of(explained)
    style = page.split("<style>")[1].split("</style>")[0]
    policy = next(a["content"] for tag, a in Elements(page).found if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert f"'sha256-{digest(style)}'" in policy
    assert "http" not in page.replace("http-equiv", "")


def test_a_page_shows_every_token_and_the_largest_attribution_in_full(explained):
    meters = [a for tag, a in Elements(page_of(explained)).found if tag == "meter"]
    assert len(meters) == 3 * len(explained.tokens)
    most = max(token.attribution for token in explained.tokens)
    shown = [float(a["value"]) for a in meters if a["aria-label"] == "attribution"]
    assert shown == [token.attribution for token in explained.tokens]
    assert {float(a["max"]) for a in meters if a["aria-label"] == "attribution"} == {most}


def test_a_token_is_no_formula_in_a_spreadsheet(model, tmp_path):
    write(explain(model, "=1+1", seeds=1, steps=2, probes=1), tmp_path)
    rows = list(csv.DictReader((tmp_path / "tokens.csv").open(encoding="utf-8")))
    assert rows[1]["text"].startswith("'=")


def test_a_prompt_beyond_the_window_is_said(model, explained):
    long = explain(model, "a" * 100, seeds=1, steps=2, probes=1)
    assert long.window == model.window
    assert len(long.tokens) == model.window
    assert f"exceeds the model's window of {model.window} tokens" in page_of(long)
    assert explained.window is None


def test_what_is_missing_is_said(explained):
    without = replace(explained, maps={}, missing={"bright ending": "no <layers>"})
    assert "No map “bright ending”: no &lt;layers&gt;." in page_of(without)


def test_a_batch_cuts_through_seeds_without_changing_anything(model, explained):
    cut = explain(model, "a cat", seeds=2, steps=4, probes=2, batch=1)
    for one, other in zip(cut.tokens, explained.tokens, strict=True):
        assert one.attribution == pytest.approx(other.attribution, rel=1e-3)
    for name, values in explained.maps.items():
        size = float(values.abs().max())
        torch.testing.assert_close(cut.maps[name], values, rtol=0, atol=1e-3 * size)


def test_options_say_which_prompts_are_meant(tmp_path):
    (tmp_path / "list.jsonl").write_text(
        '{"prompt": "a cat", "prompt_id": "cat"}\n{"prompt": "a dog", "prompt_id": "dog"}\n'
    )
    asked = Explaining(model="x", prompts=tmp_path / "list.jsonl", ids=("dog", "cat"))
    assert [one.text for one in asked.chosen()] == ["a dog", "a cat"]
    (tmp_path / "list.txt").write_text("b\na\n")
    # A text has the name it has in a file, wherever it stands.
    assert Explaining(prompt=("a", "b")).chosen() == [*load_prompts(tmp_path / "list.txt")][::-1]
    with pytest.raises(InputError, match="Did you mean 'cat'"):
        Explaining(model="x", prompts=tmp_path / "list.jsonl", ids=("cot",)).chosen()
    with pytest.raises(InputError, match="no prompt was named"):
        Explaining().chosen()
    with pytest.raises(InputError, match="probes 0"):
        Explaining(probes=0)
