"""The page: what it says is the run's, text stays text, nothing is fetched, bytes repeat."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mnemoscope.images import decode, decode_mask, thumbnail
from mnemoscope.report import explorer, figures, report
from mnemoscope.report.text import visible
from mnemoscope.report.verdict import verdict
from mnemoscope.runs import Run
from mnemoscope.stats import wilson
from tests.report import world


class Reader(HTMLParser):
    """Collect the elements, attributes and texts of a page as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] = {}
        self._last = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._last = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._open = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._last, []).append(data)
        if self._last == "script" and data.strip():
            self.scripts.append((self._open, data))

    @classmethod
    def of(cls, path: Path) -> "Reader":
        reader = cls()
        reader.feed(path.read_text("utf-8"))
        return reader


@pytest.fixture(scope="module")
def seen(page: Path) -> Reader:
    return Reader.of(page)


@pytest.fixture(scope="module")
def data(seen: Reader) -> dict:
    return json.loads(next(text for tag, text in seen.scripts if tag.get("id") == "data"))


def test_headline_counts_prompts_with_their_interval(page: Path) -> None:
    text = page.read_text("utf-8")
    # 6 of 12 planted prompts copy, none of 4 controls does: known from how the run was made.
    assert "<h1>6 of 12 prompts reproduce a training image</h1>" in text
    for count, n in ((6, 12), (0, 4)):
        share = wilson(count, n)
        ends = f"{100 * share.low:.0f}\u00a0% to {100 * share.high:.0f}\u00a0%"
        assert f"{count} of {n} ({100 * count / n:.0f}\u00a0%, 95\u00a0% interval {ends})" in text
    assert "0.850, fitted on 12,000 pairs of unrelated images" in text


def test_texts_arrive_as_they_are(data: dict) -> None:
    sent = {entry["id"]: entry["text"] for entry in data["prompts"]}
    assert sent == {name: visible(text) for name, text in world.texts().items()}


def test_no_text_becomes_markup(seen: Reader) -> None:
    # The page's own: one block of data and one script. A prompt that broke out would add to these.
    assert seen.tags.count("script") == 2
    assert [tag.get("type") for tag, _ in seen.scripts] == ["application/json", None]
    assert "link" not in seen.tags
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    assert not [name for _, name, _ in seen.attributes if name == "style"]
    prompts = [text for text in seen.text["bdi"] if "script" in text or "{{" in text]
    assert all(text.strip() in map(visible, world.HOSTILE) for text in prompts)


def test_nothing_is_fetched(page: Path, seen: Reader) -> None:
    for tag, name, value in seen.attributes:
        if name in ("src", "srcset", "poster", "data", "action", "xlink:href"):
            assert value.startswith("data:image/webp;base64,"), (tag, name)
        if name == "href":
            assert value.startswith("#"), (tag, value)
    style = re.search(r"<style>(.*?)</style>", page.read_text("utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_policy_lets_in_only_what_the_page_holds(page: Path, seen: Reader) -> None:
    policy = next(v for t, n, v in seen.attributes if (t, n) == ("meta", "content") and "src" in v)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    text = page.read_text("utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    script = next(code for tag, code in seen.scripts if not tag)
    for rule, code in (("style-src", style[1]), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "innerHTML" not in script


@pytest.fixture
def unprinted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures for print, which cost most of the time and have their own test."""
    monkeypatch.setattr(figures, "save", lambda *_: None)


def test_figures_for_print_are_beside_the_page(page: Path) -> None:
    made = {path.name for path in (page.parent / "figures").iterdir()}
    assert {"1-loss.png", "1-loss.pdf", "8-deviation.png", "0-null.pdf"} <= made
    assert {Path(name).stem for name in made if name.endswith("png")} == {
        Path(name).stem for name in made if name.endswith("pdf")
    }


@pytest.mark.usefixtures("unprinted")
def test_same_run_same_bytes(whole_run: Run, page: Path, tmp_path: Path) -> None:
    assert report(whole_run, tmp_path / "again").read_bytes() == page.read_bytes()


def test_pictures_are_those_of_the_tables(whole_run: Run, data: dict) -> None:
    stored = {
        (row["prompt_id"], row["seed"], row["guidance"]): row["image"]
        for row in whole_run.table("samples").to_pylist()
    }
    for entry in data["prompts"]:
        for scale, here in entry["at"].items():
            for sample in here["samples"]:
                image = stored[entry["id"], sample["seed"], float(scale)]
                if image is None:
                    assert sample["image"] is None
                    assert sample["status"] == "nonfinite"
                else:
                    assert base64.b64decode(data["images"][sample["image"]]) == image


def test_order_is_by_severity(data: dict) -> None:
    shares = [entry["at"]["7.5"]["share"] for entry in data["prompts"]]
    assert shares == sorted(shares, reverse=True)
    assert data["prompts"][0]["id"] == "m5"


@pytest.mark.usefixtures("unprinted")
def test_what_the_run_lacks_is_said(tmp_path: Path) -> None:
    tables = world.rows()
    kept = {name: tables[name] for name in ("prompts", "references", "samples", "gram")}
    # Without severity nothing is memorized, and without spread nothing can collapse.
    bare = world.write(tmp_path / "bare", kept)
    text = report(bare).read_text("utf-8")
    assert "Nothing can be said about reproduction" in text
    assert "Left out: the run holds no null distribution" in text
    assert "was not measured" in text
    # Similarities without a threshold are another thing than no similarities.
    unjudged = [
        row | {"share": None, "threshold": None, "grade": None} for row in tables["severity"]
    ]
    few = world.write(tmp_path / "few", kept | {"severity": unjudged})
    assert "no threshold to judge them by" in report(few).read_text("utf-8")
    empty = world.write(tmp_path / "empty", {})
    assert "Left out: the run holds no prompts." in report(empty).read_text("utf-8")


@pytest.mark.usefixtures("unprinted")
def test_images_beyond_the_budget_are_counted(
    whole_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "BUDGET", 20_000)
    path = report(whole_run, tmp_path)
    seen = Reader.of(path)
    held = json.loads(next(text for tag, text in seen.scripts if tag.get("id") == "data"))
    assert sum(map(len, held["images"])) <= 20_000
    assert re.search(r"[1-9]\d* images are left out", path.read_text("utf-8"))


def test_a_mask_does_not_hide_part_of_a_training_image(tmp_path: Path) -> None:
    pixels = torch.rand(3, 16, 16)
    mask = torch.zeros(16, 16)
    tables = {name: world.rows()[name][:1] for name in ("prompts", "references")}
    tables["references"][0] |= {"image": thumbnail(pixels, mask), "masked": True}
    data = explorer.explorer(
        tables["prompts"], tables["references"], [], [], [],
        verdict(tables["prompts"], [], [], [], [], "l2"),
    ).data  # fmt: skip
    shown = base64.b64decode(data["images"][0])
    assert decode_mask(shown) is None
    assert torch.equal(decode(shown), decode(thumbnail(pixels)))
