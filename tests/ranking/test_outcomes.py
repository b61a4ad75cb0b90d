"""Outcomes: metrics by hand, intervals that cover, changes that are paired."""

import numpy as np
import pytest

from mnemoscope.ranking.outcomes import AVERAGED, Outcome, compare, front

RNG = np.random.default_rng(3)


def outcome(name="", **values):
    shape = next(iter(values.values())).shape
    filled = {metric: np.full(shape, np.nan) for metric in AVERAGED} | values
    return Outcome(name, name or "plain", np.nan, "", False, filled)


def rows_of(outcomes, plain, here):
    found = compare(outcomes, plain, {"memorized": here})
    return {(row.outcome.setting, row.metric): row for row in found}


def test_metrics_are_means_and_quantiles_over_samples_that_are_there():
    severity = np.array([[0.1, 0.3], [0.5, np.nan], [9.0, 9.0]])
    rows = rows_of([], outcome(severity=severity), np.array([True, True, False]))
    assert rows["", "severity"].value.value == pytest.approx(0.3)
    assert rows["", "severity_95"].value.value == pytest.approx(np.quantile([0.1, 0.3, 0.5], 0.95))
    assert rows["", "severity"].value.n == 2
    assert "right" not in {metric for _, metric in rows}
    assert rows["", "severity"].value.reason.startswith("2 prompts")


def test_intervals_cover_the_truth_and_are_wide_where_prompts_differ():
    hits = 0
    for _ in range(40):
        share = RNG.random(12)[:, None]
        reproduced = (RNG.random((12, 4)) < share).astype(float)
        found = rows_of([], outcome(reproduced=reproduced), np.ones(12, dtype=bool))
        value = found["", "reproduced"].value
        hits += value.low <= 0.5 <= value.high
    # 95 % of 40 is 38; a percentile bootstrap of twelve prompts is a little short.
    assert hits >= 32


def test_a_change_is_paired():
    base = np.repeat(RNG.random((30, 1)), 4, axis=1)
    less = base - 0.1
    found = rows_of([outcome("a", severity=less)], outcome(severity=base), np.ones(30, dtype=bool))
    change, value = found["a", "severity"].change, found["a", "severity"].value
    assert change.value == pytest.approx(-0.1)
    assert (change.low, change.high) == pytest.approx((-0.1, -0.1))
    assert value.high - value.low > 0.1


def test_behind_a_detector_only_the_suspicious_change():
    plain = outcome(copies=np.ones((3, 2)), severity=np.ones((3, 2)))
    mine = outcome("a", copies=np.zeros((3, 2)), severity=np.zeros((3, 2)))
    mixed = mine.behind(plain, np.array([True, False, True]))
    assert mixed.gated
    assert mixed.values["copies"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert np.isnan(mixed.values["right"]).all()


def test_the_front_is_what_nothing_beats():
    x = [0.5, 0.1, 0.3, 0.3, 0.9]
    y = [0.5, 0.2, 0.6, 0.4, 0.6]
    assert front(x, y) == [1, 2]
    assert front([1.0, 1.0], [2.0, 2.0]) == [0]
