"""Explanations on a tiny random pipeline."""

import csv
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mnemoscope.data.prompts import load_prompts
from mnemoscope.errors import InputError, RunError
from mnemoscope.flows.explain import CONTROL, Explaining, ExplainWorker, explain, explain_all
from mnemoscope.flows.words import without
from mnemoscope.models import load_model
from mnemoscope.reporting.explanation import page as page_of
from mnemoscope.reporting.explanation import read, write
from mnemoscope.reporting.page import digest
from mnemoscope.runs.folder import open_run
from mnemoscope.sampling.loop import generators_of, initial_noise, points_of
from mnemoscope.sampling.probes import gap, predict
from mnemoscope.sampling.recipe import seed_of
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


@pytest.fixture(scope="module")
def explained(model):
    return explain(model, "a cat", seeds=2, steps=4, probes=2)


def test_every_position_of_the_window_is_there(model, explained):
    # One token a byte: the begin mark, "a", "c", "a", "t", the end mark, and padding.
    assert len(explained.tokens) == model.window
    assert [token.part for token in explained.tokens[:7]] == [
        "begin", "text", "text", "text", "text", "end", "padding",
    ]  # fmt: skip
    assert explained.tokens[0].text == "<|startoftext|>"
    assert explained.tokens[5].text == "<|endoftext|>"
    assert all(token.attribution > 0 for token in explained.tokens)
    assert sum(token.attention_first for token in explained.tokens) == pytest.approx(1, rel=1e-4)
    parts = ("begin", "text", "end", "padding")
    assert sum(explained.share(part) for part in parts) == pytest.approx(1)


def test_a_word_changes_what_leaving_it_out_changes(model, explained):
    point = points_of(model.make_scheduler("ddim", 4))[0]
    noise = initial_noise(
        generators_of([seed_of(0, "bank", s) for s in range(2)]), model.latent_shape
    )

    def estimate(text):
        condition = model.encode_prompts([text] * 2)
        with torch.no_grad():
            return predict(model.denoiser, noise, point, condition).eps.flatten(1)

    whole = (estimate("a cat") - estimate("")).norm(dim=1)
    assert [word.text for word in explained.words] == ["a", "cat"]
    for word, text in zip(explained.words, ("cat", "a"), strict=True):
        moved = (estimate(text) - estimate("a cat")).norm(dim=1) / whole
        assert word.change == pytest.approx(float(moved.mean()), rel=1e-3)
        assert word.low <= word.change <= word.high


def test_what_is_left_without_a_word_is_a_prompt():
    assert without("Lake,  cat!") == [", cat!", "Lake, !"]
    assert without("swan") == [""]
    assert without("...") == []


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


def test_maps_are_pictures(model, explained, tmp_path):
    assert set(explained.maps) == {"squared gap", "curvature", "bright ending"}
    assert not explained.missing
    assert explained.maps["squared gap"].shape == (2, 8, 8)
    write(explained, tmp_path)
    with Image.open(tmp_path / "squared-gap.png") as image:
        # Two seeds side by side, sample and map.
        assert image.size == (2 * 16, 2 * 16)
    rows = list(csv.DictReader((tmp_path / "tokens.csv").open(encoding="utf-8")))
    assert [row["position"] for row in rows] == [str(at) for at in range(model.window)]
    rows = list(csv.DictReader((tmp_path / "words.csv").open(encoding="utf-8")))
    assert [row["text"] for row in rows] == ["a", "cat"]


def test_what_a_model_cannot_give_is_left_out_with_a_reason():
    found = explain(load_model("oracle:memorizer"), "target 0", steps=4)
    assert not found.tokens
    assert "token" in found.missing["positions"]
    # An oracle knows its own prompts alone: any other word takes away all that the prompt does.
    assert [word.change for word in found.words] == pytest.approx([1, 1])
    assert "No positions: the model is not conditioned on tokens." in page_of(found)


def test_what_is_explained_is_not_explained_again(model, tmp_path, monkeypatch):
    def asked(*texts, **changed):
        options = {"seeds": 1, "steps": 2, "probes": 1, "out": tmp_path / "run"} | changed
        return Explaining(model=model.name, prompt=texts, **options)

    told: list[str] = []
    run, names, control = explain_all(asked("a cat"), model=model, notify=told.append)
    assert told == [f"explained {names[0]}", f"explained {control}"]
    first = run.commits()
    # Another prompt joins, and is interrupted once; what is there stays as it is.
    whole = ExplainWorker.reduce
    monkeypatch.setattr(ExplainWorker, "reduce", stopped)
    with pytest.raises(KeyboardInterrupt):
        explain_all(asked("a cat", "a dog"), model=model)
    assert open_run(tmp_path / "run").manifest.status == "interrupted"
    assert open_run(tmp_path / "run").commits() == first
    monkeypatch.setattr(ExplainWorker, "reduce", whole)
    told.clear()
    run, names, _ = explain_all(asked("a cat", "a dog"), model=model, notify=told.append)
    assert told == [
        "2 of 3 prompts are explained in there already", f"explained {names[1]}",
    ]  # fmt: skip
    assert {unit: run.commits()[unit] for unit in first} == first
    assert read(run, names[1]).prompt == "a dog"
    assert read(run, control).prompt == CONTROL
    with pytest.raises(RunError, match="steps: 2 there, 3 here"):
        explain_all(asked("a cat", steps=3), model=model)


def stopped(*_):
    raise KeyboardInterrupt


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
    # The sample, its three maps and their three scales.
    assert [a["src"][:22] for tag, a in elements if tag == "img"] == ["data:image/png;base64,"] * 7
    assert "\u202e" not in page
    assert "⟨U+202E⟩" in page


def test_a_page_fetches_nothing_and_its_policy_names_its_style(explained):
    page = page_of(explained)
    style = page.split("<style>")[1].split("</style>")[0]
    policy = next(a["content"] for tag, a in Elements(page).found if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert f"'sha256-{digest(style)}'" in policy
    assert "http" not in page.replace("http-equiv", "")


def test_a_page_shows_every_position_and_word_beside_a_control(model, explained):
    control = explain(model, "a sea", seeds=1, steps=2, probes=1)
    elements = Elements(page_of(explained, control)).found
    heights = [float(a["height"]) for tag, a in elements if tag == "rect" and "y" in a]
    assert len(heights) == 2 * model.window
    both = [token.attribution for one in (explained, control) for token in one.tokens]
    # The highest of both fills the height, so that both have the same scale.
    assert heights == pytest.approx([60 * value / max(both) for value in both], abs=0.006)
    most = max(word.high for one in (explained, control) for word in one.words)
    widths = [float(a["width"]) for tag, a in elements if tag == "rect" and "y" not in a]
    values = [word.change for one in (explained, control) for word in one.words]
    assert widths == pytest.approx([100 * value / most for value in values], abs=0.006)
    page = page_of(explained, control)
    assert "a sea" in page
    # The word that changes most is tinted most, and named in the answer.
    first = max(explained.words, key=lambda word: word.change)
    assert f'<mark class="tint10">{first.text}</mark>' in page
    assert f"hangs most on “{first.text}”" in page


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
