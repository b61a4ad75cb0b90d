"""Two runs on one page: pairs, differences and intervals against numpy; text stays text."""

from pathlib import Path

import numpy as np
import pytest

from mnemoscope.core.stats import bootstrap
from mnemoscope.errors import RunError
from mnemoscope.reporting import compare
from mnemoscope.reporting.compare import OURS, _differences, _side
from mnemoscope.reporting.text import visible
from mnemoscope.runs.folder import Run
from tests.reporting import world


def test_differences_are_paired(whole_run: Run, mended_run: Run) -> None:
    a, b = (_side(run, label, 7.5, "l2") for run, label in ((whole_run, "A"), (mended_run, "B")))
    shared = list(world.STRENGTHS)
    ours = [name for name in shared if name[0] != "c"]
    found = {(row.name, row.population): row for row in _differences(a, b, shared)}
    tables = [run.table("severity").to_pylist() for run in (whole_run, mended_run)]
    before, after = (
        {row["prompt_id"]: row["mean"] for row in table if row["guidance"] == 7.5}
        for table in tables
    )
    change = np.array([after[name] - before[name] for name in ours])
    row = found["severity", OURS]
    assert row.estimate.value == pytest.approx(change.mean(), rel=1e-12)
    # The page of a run counts prompts with a training image as well, and controls apart.
    assert row.estimate.n == 12
    assert found["severity", "controls"].estimate.n == 4
    other = bootstrap(lambda x: np.asarray(np.mean(x, axis=-1)), change)
    assert (row.estimate.low, row.estimate.high) == (other.low, other.high)
    # Three prompts of twelve changed: a resample without any of them is no rarity.
    assert row.told == "no difference told"
    assert found["severity", "reproduced in A"].estimate.n == 6
    assert found["severity", "reproduced in A"].told == "lower in B"
    # The deviation falls as well where the image is forgotten, and nowhere else.
    assert found["D1", "reproduced in A"].estimate.value < 0
    assert found["D1", "not reproduced in A"].estimate.value == pytest.approx(0, abs=1e-9)
    assert found["D1", "not reproduced in A"].told == "no difference told"


def test_page_says_what_changed(both: Path) -> None:
    text = both.read_text("utf-8")
    assert "Of 12 with a training image 3 reproduce it in A only, 0 in B only" in text
    assert "6 of 12 judged prompts with a training image reproduce it" in text
    assert "Nothing: the same study, prompts and weights." in text
    assert "<script>document.title" not in text
    assert visible(world.HOSTILE[3], 200) in text


def test_same_runs_same_bytes(whole_run: Run, mended_run: Run, both: Path, tmp_path: Path) -> None:
    assert compare(whole_run, mended_run, tmp_path).read_bytes() == both.read_bytes()


def test_runs_that_share_nothing_are_refused(whole_run: Run, tmp_path: Path) -> None:
    tables = {name: rows for name, rows in world.rows().items() if name != "gram"}
    for table in ("prompts", "samples"):
        tables[table] = [row | {"prompt_id": "z" + row["prompt_id"]} for row in tables[table]]
    other = world.write(tmp_path / "other", tables)
    with pytest.raises(RunError, match="share no prompt"):
        compare(whole_run, other, tmp_path)
    tables["recipes"] = [row | {"guidance": 3.0 + row["guidance"]} for row in tables["recipes"]]
    third = world.write(tmp_path / "third", tables)
    with pytest.raises(RunError, match="share no guidance scale"):
        compare(whole_run, third, tmp_path)


def test_prompts_that_copy_another_image_are_told_apart(whole_run: Run, tmp_path: Path) -> None:
    tables = world.rows()
    for row in tables["severity"]:
        if row["prompt_id"] == "p2" and row["recipe"] == world.recipe_of(7.5):
            row |= {"mean": 0.3, "own_seeds": [], "elsewhere_seeds": [0, 1, 2]}
    other = world.write(tmp_path / "other", tables)
    b = _side(other, "B", 7.5, "l2")
    assert b.states == _side(whole_run, "A", 7.5, "l2").states | {"p2": "another"}
    assert b.told("p2") == "copies another image, 3 of 4 samples"
    text = compare(other, whole_run, tmp_path / "page").read_text("utf-8")
    assert "1 copy another training image in A, 0 in B." in text
    assert '<span class="another">A: <strong>copies another image, 3 of 4 samples</strong>' in text
    assert '<span class="plain">B: <strong>not memorized</strong>' in text
    # The dots of the figure have the colour that they have on the page of a run.
    figure = text[text.index("Severity of each prompt in both runs") :]
    assert "copies another in A (n = 1)" in text
    assert "var(--another)" in figure[: figure.index("</svg>")]
