"""The page of a comparison of mitigations: says what the table says, and nothing else."""

import hashlib
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mnemoscope.cli import app
from mnemoscope.data.images import thumbnail
from mnemoscope.errors import RunError
from mnemoscope.mitigations import all_mitigations
from mnemoscope.reporting.fronts import FACTS, PAIRS, ROWS, fronts
from mnemoscope.reporting.mitigations import Held, page, pairs, read, sentences
from mnemoscope.runs.records import sealed
from mnemoscope.runs.tables import TABLES
from tests.reporting.browser import Window

HOSTILE = "guard(factor=<img src=x onerror=alert(1)>)"


def row(setting, metric, value, *, gated=False, population="memorized", strength=None):
    return {
        "setting": setting,
        "method": setting.split("(")[0] or "plain",
        "strength": strength,
        "gated": gated,
        "population": population,
        "metric": metric,
        "value": value,
        "low": None if value is None else value - 0.05,
        "high": None if value is None else value + 0.05,
        "prompts": 12,
        "method_of_interval": "",
        "reason": None,
    }


def rows_of(names):
    """Return rows in which the later a setting comes the fewer it copies, and the dearer it is."""
    made = []
    for at, (setting, strength) in enumerate(names):
        share = 1 - at / len(names)
        for gated in (False, True) if setting else (False,):
            told = {"strength": strength, "gated": gated}
            made += [
                row(setting, "copies", share, **told),
                row(setting, "right", 0.5 + share / 2, **told),
                row(setting, "right_new", 1 - share, **told),
                row(setting, "network_calls", 40.0 + at, **told),
                row(setting, "changed", at / len(names), population="others", **told),
                row(setting, "network_calls", 40.0 + at, population="others", **told),
            ]
    return made


def shade(grey):
    return thumbnail(torch.full((3, 16, 16), grey))


def pair(setting, prompt, *, copies=False, right=None):
    return {
        "prompt_id": prompt, "prompt": prompt, "seed": 0, "setting": setting,
        "before": shade(0.0), "after": shade(1.0), "copied": True, "copies": copies, "right": right,
    }  # fmt: skip


def written(folder, rows, pairs=(), **more):
    digests = {}
    for file, name, told in ((ROWS, "mitigations", rows), (PAIRS, "pairs", list(pairs))):
        sink = io.BytesIO()
        pq.write_table(TABLES[name].of_rows(told), sink)
        (folder / file).write_bytes(sink.getvalue())
        digests[file] = hashlib.sha256(sink.getvalue()).hexdigest()
    facts = {
        "model": {"name": "oracle:memorizer", "digest": "0" * 64},
        "memorized": 12, "others": 12, "cut": 0.5, "measure": "l2", "seeds": 2, "steps": 20,
        "guidance": 7.5, "thresholds": {"threshold": 0.45}, "alignment": "",
        "origins": dict.fromkeys((r["setting"] for r in rows if "picture" in r["setting"]), "ours"),
        "files": digests,
    } | more  # fmt: skip
    (folder / FACTS).write_bytes(sealed(facts))
    return folder


@pytest.fixture
def folder(tmp_path):
    names = [("", None), (HOSTILE, 2.0), ("picture_repulsion(strength=3)", 3.0)]
    pairs = [
        pair("picture_repulsion(strength=3)", "noto swan", right=True),
        pair("picture_repulsion(strength=3)", "<b>bold</b>", right=False),
        pair("picture_repulsion(strength=3)", "a third"),
        pair(HOSTILE, "noto swan", copies=True, right=True),
    ]
    return written(tmp_path, rows_of(names), pairs)


def test_the_command_writes_the_page_of_a_comparison(folder):
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    text = (folder / "index.html").read_text()
    assert done.output.strip() == str(folder / "index.html")
    assert "What is right, and new" in text
    assert "On suspicious prompts alone" in text
    assert re.search(r"picture_repulsion:3</code></th><td>ours</td><td class=\"num\">0\.33", text)
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text
    # No judge by CLIP, no column of it.
    assert ">CLIP<" not in text


def test_the_words_are_of_the_best_setting(folder):
    said = sentences(read(folder))
    assert said[0].startswith("Without mitigation 100")
    assert said[1].startswith("picture_repulsion:3, on ")
    assert "leaves 33" in said[1]
    assert "67\u00a0% are right and new" in said[1]


def test_a_front_names_what_nothing_beats_and_no_more_than_has_room():
    rows = rows_of([("", None), *((f"guard(strength={s})", float(s)) for s in range(1, 20))])
    panel = fronts(rows, {})["right-new"]
    # Fewer copies and more that is right and new: the last alone.
    assert panel.named == ("guard:19",)
    # To copy less shows less, so that all lie on the front.
    panel = fronts(rows, {})["alignment"]
    assert len(panel.named) == 6
    assert {"none", "guard:19"} <= set(panel.named)
    assert all(f"guard:{s}" in panel.caption for s in range(1, 20))


def test_pairs_are_told_by_setting(folder):
    held = read(folder)
    (setting, short, mine), (_, _, other) = pairs(held)
    assert (setting, short) == ("picture_repulsion(strength=3)", "picture_repulsion:3")
    assert [one.became for one in mine] == [
        "right and new", "no copy, and not what is named", "no copy"
    ]  # fmt: skip
    assert [one.became for one in other] == ["still a copy"]
    text = page(held)
    assert "<b>bold" not in text
    assert text.count('type="radio"') == 4 * 11
    assert text.count('<details class="wipes" open>') == 1
    # A folder from before there were pairs has none, and says nothing of them.
    assert "Before and after" not in page(Held(held.rows, held.facts))


def seen(web, place):
    """Return which share of a wiped picture's width is white, the sample with the mitigation."""
    shot = web.page.locator(".wipe").nth(place).screenshot()
    row = np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=float)[10]
    return float((row > 200).mean())


@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_is_wiped_by_key_click_and_pointer(chromium, tmp_path, folder, width):
    (folder / "index.html").write_text(page(read(folder)))
    web = Window(chromium, tmp_path)
    try:
        web.size(width, 900)
        web.open(folder / "index.html")
        assert seen(web, 0) == pytest.approx(0.5, abs=0.03)
        stops = web.page.locator(".wipe").nth(0).locator("input")
        stops.nth(5).focus()
        for _ in range(2):
            web.page.keyboard.press("ArrowRight")
        assert seen(web, 0) == pytest.approx(0.3, abs=0.03)
        # Its neighbour has not moved.
        assert seen(web, 1) == pytest.approx(0.5, abs=0.03)
        box = web.page.locator(".wipe").nth(1).bounding_box()
        web.page.mouse.click(box["x"] + 0.05 * box["width"], box["y"] + 20)
        web.page.mouse.move(2, 2)
        assert seen(web, 1) == pytest.approx(1.0, abs=0.03)
        assert stops.count() == 11
        assert web.complaints == []
        assert web.run("return document.documentElement.scrollWidth") <= width
    finally:
        web.close()


@pytest.mark.parametrize("damage", ["rows", "facts", "origins", "pairs"])
def test_a_damaged_comparison_is_refused(folder, damage):
    match damage:
        case "rows":
            (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:-1] + b"x")
        case "pairs":
            (folder / PAIRS).write_bytes(b"")
        case "facts":
            (folder / FACTS).write_text("{}")
        case _:
            written(folder, rows_of([("", None)]), origins=3)
    with pytest.raises(RunError, match="damaged"):
        read(folder)


def test_every_mitigation_has_its_place(tmp_path):
    names = [("", None), *((str(kind()), kind().strength) for kind in all_mitigations().values())]
    text = page(read(written(tmp_path, rows_of(names))))
    assert all(name in text for name in all_mitigations())
