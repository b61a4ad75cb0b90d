"""Figures: data arrives, colours follow the role, no label becomes markup."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from mnemoscope.mechanism.base import Bar, BarPanel, CurvePanel, Panel, Points, ScatterPanel, Series
from mnemoscope.report import figures

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


def test_references_within_a_drawing_resolve() -> None:
    for panel in PANELS:
        root = ElementTree.fromstring(figures.svg(panel, "a"))
        ids = {element.get("id") for element in root.iter()}
        for element in root.iter():
            for target in (element.get("href"), element.get("clip-path")):
                if target is not None:
                    assert target.removeprefix("url(").rstrip(")").removeprefix("#") in ids


def test_print_files_are_written(tmp_path: Path) -> None:
    png, pdf = figures.save(PANELS, tmp_path / "figure")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    again = figures.save(PANELS, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), pdf.read_bytes()]
