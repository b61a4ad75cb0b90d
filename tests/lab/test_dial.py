"""The dial: models side by side, by how much their unconditional branch knows."""

import numpy as np
import pytest

from mnemoscope.errors import InputError
from mnemoscope.flows.laws import Lawful
from mnemoscope.lab.dial import DRAWN, FALL, Point, figures
from mnemoscope.lab.findings import ROWS


def point(known: float, fall: float, auc: float) -> Point:
    row = next(row for row in ROWS if row.about == FALL)
    statistic = {
        "analysis": row.analysis, "name": row.name, "population": row.population,
        "window": "", "reference": row.reference, "value": fall, "low": fall - 1, "high": fall + 1,
    }  # fmt: skip
    score = {"detector": "gap_norm:all", "metric": "auc", "value": auc, "low": None, "high": None}
    ranking = [{**score, "population": "all"}, {**score, "population": "level 3", "value": 0.1}]
    return Point(known, [statistic], "l2", ranking)


def test_what_is_not_known_is_not_drawn_as_a_number() -> None:
    scores, falls, first = figures([point(0.5, 3.0, 0.25), point(0.0, 4.0, 0.75)])
    lines = {series.label: series for series in scores.series}
    assert set(lines) == set(DRAWN)
    np.testing.assert_array_equal(lines["gap_norm:all"].y, [0.75, 0.25])
    assert np.isnan(lines["gap_norm"].y).all()
    np.testing.assert_array_equal(falls.series[0].high, [5.0, 4.0])
    np.testing.assert_array_equal(first.series[0].x, [0.0, 0.5])


@pytest.mark.parametrize("known", [(0.0,), (0.5, 0.5)])
def test_one_point_is_no_dial(known: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected two or more, each once"):
        figures([point(at, 1.0, 0.5) for at in known])


@pytest.mark.parametrize("given", ["runs/half", "half=runs/half", "-1=runs/half"])
def test_a_point_is_a_number_and_a_folder(given: str) -> None:
    with pytest.raises(InputError, match="expected K=FOLDER"):
        Lawful.of_options({"dial": given})
