"""Figures: data arrives, colours follow the role, no label becomes markup."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from mnemoscope.core.panels import Bar, BarPanel, CurvePanel, Panel, Points, ScatterPanel, Series
from mnemoscope.reporting import figures

X = np.arange(5.0)


def curve(label: str = "memorized", role: str = "memorized") -> CurvePanel:
    series = Series(label, role, X, X + 1, X, X + 2, X)
    return CurvePanel("title", "x", "y", "caption", (series,), log_y=True)


PANELS = (
    curve(),
    ScatterPanel(
        "points", "x", "y", "c", (Points("p", "not memorized", X, X, tuple("abcde")),), "r = 1"
    ),
    BarPanel("bars", "x", "y", "c", (Bar("a", "control", 0.5, 0.2, 0.7), Bar("b", "other", 1.0,
             float("nan"), float("nan")))),
)  # fmt: skip


@pytest.mark.parametrize(
    ("panel", "colour"), list(zip(PANELS, ("memorized", "plain", "control"), strict=True))
)
def test_role_fixes_the_colour(panel: Panel, colour: str) -> None:
    drawn = figures.svg(panel, "a")
    assert f"var(--{colour})" in drawn
    assert 'style="' not in drawn
    assert drawn == figures.svg(panel, "a")


def test_named_dots_are_written_beside_them_and_no_others() -> None:
    points = Points("p", "memorized", np.array([0.0, 1, 10, 400, 9]), X, tuple("vwxyz"))
    panel = ScatterPanel("t", "calls", "AUC", "c", (points,), named=("w", "y"), log_x=True)
    root = ElementTree.fromstring(figures.svg(panel, "a"))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert {"w", "y"} <= set(texts)
    assert not {"v", "x", "z"} & set(texts)


def test_an_axis_of_prices_within_a_decade_is_ticked() -> None:
    prices = np.array([40.0, 45, 48, 52, 60])
    panel = ScatterPanel(
        "t",
        "calls",
        "share",
        "c",
        (Points("p", "memorized", prices, X, tuple("vwxyz")),),
        log_x=True,
    )
    root = ElementTree.fromstring(figures.svg(panel, "a"))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert len([text for text in texts if text.isdecimal() and 30 < int(text) < 80]) >= 2


def test_labels_stay_text() -> None:
    label = "<script>alert(1)</script> $x^2$ & \"quoted\" 'too'"
    root = ElementTree.fromstring(figures.svg(curve(label), "a"))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert label in texts
    assert "script" not in {element.tag for element in root.iter()}


def test_names_keep_identifiers_apart() -> None:
    ids = [
        {e.get("id") for e in ElementTree.fromstring(figures.svg(PANELS[0], name)).iter()} - {None}
        for name in ("a", "b")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_drawing_says_no_more_than_a_page_can_show() -> None:
    for panel in PANELS:
        root = ElementTree.fromstring(figures.svg(panel, "a"))
        places = [element.get(key, "") for element in root.iter() for key in ("d", "transform")]
        assert any(re.search(r"\d\.\d\d\b", place) for place in places)
        assert not re.search(r"\.\d{3}|\s\s", "".join(places))
        assert all(len(group) for group in root.iter("g"))


def test_references_within_a_drawing_resolve() -> None:
    for panel in PANELS:
        root = ElementTree.fromstring(figures.svg(panel, "a"))
        ids = {element.get("id") for element in root.iter()}
        for element in root.iter():
            for target in (element.get("href"), element.get("clip-path")):
                if target is not None:
                    assert target.removeprefix("url(").rstrip(")").removeprefix("#") in ids


def test_print_files_are_written(tmp_path: Path) -> None:
    def saved(name: str) -> tuple[Path, ...]:
        (tmp_path / name).mkdir()
        sheets = {"all": PANELS, "none": [], "one": PANELS[:1]}
        return figures.save(sheets, tmp_path / name / "figures.pdf")

    made = saved("a")
    assert [path.name for path in made] == ["all.png", "one.png", "figures.pdf"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made[:2])
    pdf = made[2].read_bytes()
    assert pdf.startswith(b"%PDF")
    assert re.findall(rb"/Type /Page\b", pdf) == [b"/Type /Page"] * 2
    assert [path.read_bytes() for path in saved("b")] == [path.read_bytes() for path in made]


def test_nothing_to_print_leaves_nothing(tmp_path: Path) -> None:
    assert figures.save({"none": []}, tmp_path / "figures.pdf") == ()
    assert not list(tmp_path.iterdir())
