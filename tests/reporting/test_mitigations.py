"""The page of a comparison of mitigations: says what the table says, and nothing else."""

import hashlib
import io
import re

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mnemoscope.cli import app
from mnemoscope.errors import RunError
from mnemoscope.mitigations import all_mitigations
from mnemoscope.reporting.fronts import FACTS, ROWS, fronts
from mnemoscope.reporting.mitigations import page, read, sentences
from mnemoscope.runs.records import sealed
from mnemoscope.runs.tables import TABLES

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


def written(folder, rows, **more):
    sink = io.BytesIO()
    pq.write_table(TABLES["mitigations"].of_rows(rows), sink)
    (folder / ROWS).write_bytes(sink.getvalue())
    facts = {
        "model": {"name": "oracle:memorizer", "digest": "0" * 64},
        "memorized": 12, "others": 12, "cut": 0.5, "measure": "l2", "seeds": 2, "steps": 20,
        "guidance": 7.5, "thresholds": {"threshold": 0.45}, "alignment": "",
        "origins": dict.fromkeys((r["setting"] for r in rows if "picture" in r["setting"]), "ours"),
        "files": {ROWS: hashlib.sha256(sink.getvalue()).hexdigest()},
    } | more  # fmt: skip
    (folder / FACTS).write_bytes(sealed(facts))
    return folder


@pytest.fixture
def folder(tmp_path):
    names = [("", None), (HOSTILE, 2.0), ("picture_repulsion(strength=3)", 3.0)]
    return written(tmp_path, rows_of(names))


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


@pytest.mark.parametrize("damage", ["rows", "facts", "origins"])
def test_a_damaged_comparison_is_refused(folder, damage):
    match damage:
        case "rows":
            (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:-1] + b"x")
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
