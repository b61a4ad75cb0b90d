"""Intervals of a prevalence: against scipy, against brute force, and by simulation."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import beta, binom

from mnemoscope.errors import InputError
from mnemoscope.ranking.prevalence import (
    Stratum,
    allotted,
    drawn_for,
    exact,
    prevalence,
    stratified,
)


@pytest.mark.parametrize(("found", "tried"), [(0, 10), (3, 50), (50, 50), (7, 400)])
def test_one_stratum_is_clopper_and_pearsons(found, tried):
    low = 0.0 if found == 0 else beta.ppf(0.025, found, tried - found + 1)
    high = 1.0 if found == tried else beta.ppf(0.975, found + 1, tried - found)
    ours = stratified([Stratum(10**9, tried, found)])
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-7)
    alone = exact(found, tried)
    assert (alone.low, alone.high) == pytest.approx((low, high), abs=1e-9)
    assert ours.value == pytest.approx(found / tried)


def by_grid(sizes, drawn, found, tail=0.025, points=81):
    """Return the ends of the interval by trying all shares of a grid."""
    weights = np.array(sizes) / sum(sizes)
    t = sum(w * x / n for w, x, n in zip(weights, found, drawn, strict=True))
    first, second = (np.arange(n + 1) for n in drawn)
    outcomes = weights[0] * first[:, None] / drawn[0] + weights[1] * second / drawn[1]
    shares = np.linspace(0, 1, points)
    a, b = (binom.pmf(np.arange(n + 1), n, shares[:, None]) for n in drawn)
    least = np.einsum("px,xy,qy->pq", a, outcomes <= t + 1e-9, b)
    most = np.einsum("px,xy,qy->pq", a, outcomes >= t - 1e-9, b)
    total = weights[0] * shares[:, None] + weights[1] * shares
    return total[most >= tail].min(), total[least >= tail].max()


@pytest.mark.parametrize(
    ("sizes", "drawn", "found"),
    [
        ((1000, 9000), (6, 9), (0, 0)),
        ((1000, 9000), (6, 9), (2, 1)),
        ((5000, 5000), (8, 4), (0, 3)),
    ],
)  # fmt: skip
def test_two_strata_agree_with_a_grid(sizes, drawn, found):
    low, high = by_grid(sizes, drawn, found)
    ours = stratified([Stratum(*part) for part in zip(sizes, drawn, found, strict=True)])
    # The grid misses the extreme by a cell at most, and never goes beyond it.
    assert high <= ours.high + 1e-6
    assert ours.high - high < 1 / 80
    assert ours.low - 1e-6 <= low
    assert low - ours.low < 1 / 80


@cache
def known(*strata):
    """Estimate; a simulation meets the same counts again and again."""
    return stratified(strata)


def drawn_from(rng, members, count):
    some = rng.choice(members, size=count, replace=False)
    return Stratum(len(members), count, int(some.sum()))


@pytest.mark.parametrize(
    ("truth", "counts"),
    [((0, 0), (10, 30)), ((2, 3), (10, 30)), ((20, 4), (15, 45)), ((60, 60), (10, 30))],
)
def test_the_interval_covers_the_truth_in_95_of_100(truth, counts):
    rng = np.random.default_rng(0)
    strata = [np.arange(size) < yes for size, yes in zip((120, 1080), truth, strict=True)]
    share = sum(truth) / 1200
    held, repetitions = 0, 200
    for _ in range(repetitions):
        parts = [drawn_from(rng, some, n) for some, n in zip(strata, counts, strict=True)]
        found = known(*parts)
        held += found.low <= share <= found.high
    # Below 0.95 by no more than three standard errors of 200 repetitions.
    assert held / repetitions >= 0.95 - 3 * (0.05 * 0.95 / repetitions) ** 0.5


def test_an_interval_of_half_the_width_does_not():
    """The simulation above can fail: it does for an interval that claims too much."""
    rng = np.random.default_rng(0)
    members, held = np.arange(1200) < 60, 0
    for _ in range(200):
        found = known(drawn_from(rng, members, 60))
        middle = found.value
        low, high = (middle + (end - middle) / 2 for end in (found.low, found.high))
        held += low <= 60 / 1200 <= high
    assert held < 180


def test_a_census_adds_no_uncertainty():
    found = prevalence(Stratum(20, 20, 5), [Stratum(10, 10, 1), Stratum(70, 70, 0)])
    assert found.share.value == found.share.low == found.share.high == pytest.approx(0.06)
    assert found.recall.value == pytest.approx(5 / 6)
    with pytest.raises(InputError, match="census"):
        prevalence(Stratum(20, 19, 5), [])


def test_what_cannot_be_judged_counts_either_way():
    judged = prevalence(Stratum(20, 20, 5), [Stratum(10, 10, 0), Stratum(70, 70, 0)])
    blind = prevalence(Stratum(20, 20, 5, 3), [Stratum(10, 10, 0), Stratum(70, 70, 0, 7)])
    assert (blind.share.low, blind.share.high) == pytest.approx((0.05, 0.15))
    assert judged.share.high == pytest.approx(0.05)


def test_a_stratum_nobody_was_drawn_from_may_be_anything():
    found = stratified([Stratum(50, 10, 0), Stratum(50, 0, 0)])
    assert np.isnan(found.value)
    assert found.low == 0
    assert found.high > 0.5


def test_no_more_are_drawn_than_a_width_takes():
    count = drawn_for(0.01, (1000, 9000), 0.25)
    sizes = (1000, 9000)

    def high(drawn):
        parts = allotted(drawn, sizes, 0.25)
        return stratified([Stratum(size, n, 0) for size, n in zip(sizes, parts, strict=True)]).high

    assert high(count) <= 0.01 < high(count - 4)


@pytest.mark.parametrize("count", [1, 2, 7, 50, 110])
def test_draws_fit_their_strata(count):
    sizes = (10, 100)
    parts = allotted(count, sizes, 0.25)
    assert all(0 < part <= size for part, size in zip(parts, sizes, strict=True))
    assert sum(parts) == max(count, 2)
