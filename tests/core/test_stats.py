"""Statistics against scipy, counting, and known coverage."""

from math import isnan

import numpy as np
import pytest
from scipy import stats as reference

from mnemoscope.core import stats
from mnemoscope.errors import InputError


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    return x, 0.6 * x + rng.normal(size=60)


def test_correlations_equal_scipys(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    tied = np.round(x, 1)
    assert float(stats.pearson(x, y)) == pytest.approx(reference.pearsonr(x, y)[0], abs=1e-12)
    assert float(stats.spearman(tied, y)) == pytest.approx(
        reference.spearmanr(tied, y)[0], abs=1e-12
    )


def test_ranks_of_resamples_equal_scipys_row_by_row() -> None:
    rng = np.random.default_rng(2)
    table = rng.integers(6, size=(7, 20)).astype(np.float64)
    np.testing.assert_array_equal(stats.ranks(table), reference.rankdata(table, axis=-1))


def test_partial_correlation_is_the_correlation_of_regression_residuals(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = pair
    z = x + np.random.default_rng(3).normal(size=60)

    def residual(of: np.ndarray) -> np.ndarray:
        fit = reference.linregress(z, of)
        return of - fit.intercept - fit.slope * z

    expected = reference.pearsonr(residual(x), residual(y))[0]
    assert float(stats.partial(x, y, z)) == pytest.approx(expected, abs=1e-12)
    assert isnan(float(stats.partial(x, y, 2 * x + 1)))


def test_bootstrap_of_a_correlation_is_near_fishers_interval(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = pair
    estimate = stats.bootstrap(stats.pearson, x, y, draws=4000)
    exact = reference.pearsonr(x, y).confidence_interval(0.95)
    assert estimate.n == 60
    # Two constructions of one interval: they differ by a fraction of its half width, 0.15.
    assert estimate.low == pytest.approx(exact.low, abs=0.08)
    assert estimate.high == pytest.approx(exact.high, abs=0.08)
    assert estimate == stats.bootstrap(stats.pearson, x, y, draws=4000)


def test_clusters_widen_the_interval_of_copied_rows() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=30)
    copied, labels = np.repeat(x, 10), np.repeat(np.arange(30), 10)
    alone = stats.bootstrap(stats.median, x)
    clustered = stats.bootstrap(stats.median, copied, clusters=labels)
    naive = stats.bootstrap(stats.median, copied)
    assert clustered.n == 30
    width = alone.high - alone.low
    assert clustered.high - clustered.low == pytest.approx(width, rel=0.25)
    assert naive.high - naive.low < 0.7 * width


def test_rows_that_are_not_finite_are_left_out(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    broken = np.append(x, np.nan)
    estimate = stats.bootstrap(stats.pearson, broken, np.append(y, 0.0))
    assert estimate.n == 60
    assert estimate.value == pytest.approx(float(stats.pearson(x, y)))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.array([]), "no finite data"),
        (np.array([1.0, 2.0]), "fewer than 3"),
        (np.full(20, 0.1), "constant"),
        (np.full(8, np.nan), "no finite data"),
    ],
)
def test_what_cannot_be_told_is_nan_with_a_reason(x: np.ndarray, reason: str) -> None:
    estimate = stats.bootstrap(stats.pearson, x, np.arange(len(x)) * 0.3)
    assert isnan(estimate.value)
    assert isnan(estimate.low)
    assert reason in estimate.reason


def test_four_units_give_a_value_but_no_interval() -> None:
    estimate = stats.bootstrap(stats.median, np.array([1.0, 2.0, 3.0, 4.0]))
    assert estimate.value == 2.5
    assert isnan(estimate.low)
    assert "needs 5" in estimate.reason


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="lengths"):
        stats.bootstrap(stats.pearson, np.zeros(3), np.zeros(4))


@pytest.mark.parametrize(("k", "n"), [(0, 12), (3, 40), (40, 40)])
def test_wilson_equals_scipys(k: int, n: int) -> None:
    estimate = stats.wilson(k, n)
    exact = reference.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert estimate.low == pytest.approx(exact.low, abs=1e-9)
    assert estimate.high == pytest.approx(exact.high, abs=1e-9)
    assert isnan(stats.wilson(0, 0).value)


def test_auc_equals_mann_whitney_with_ties() -> None:
    rng = np.random.default_rng(5)
    scores = rng.integers(8, size=80).astype(np.float64)
    positive = rng.random(80) < 0.3
    u = reference.mannwhitneyu(scores[positive], scores[~positive]).statistic
    expected = u / (positive.sum() * (~positive).sum())
    assert stats.roc_auc(scores, positive).value == pytest.approx(expected, abs=1e-12)
    assert stats.roc_auc(scores, np.zeros(80, bool)).reason == "0 positives and 80 negatives"


def test_tpr_is_read_at_or_below_the_rate_never_above_it() -> None:
    negatives = np.arange(100, dtype=np.float64)
    positives = np.array([98.5, 97.5, 97.0, 50.0])
    scores = np.concatenate([negatives, positives])
    labels = np.arange(104) >= 100
    # At 2 % two false positives (99, 98) may stand above the cut at 97: 98.5 and 97.5 pass it,
    # 97 ties with a negative beyond the allowance and is missed.
    assert stats.tpr_at_fpr(scores, labels, 0.02).value == 0.5
    assert stats.tpr_at_fpr(scores, labels, 0.029).value == 0.5
    assert stats.tpr_at_fpr(scores, labels, 0.01).value == 0.25
    assert stats.tpr_at_fpr(scores, labels, 1.0).value == 1.0


def test_tpr_is_withheld_where_too_few_negatives_could_tell() -> None:
    scores, labels = np.arange(60, dtype=np.float64), np.arange(60) >= 50
    estimate = stats.tpr_at_fpr(scores, labels, 0.01)
    assert isnan(estimate.value)
    assert "needs at least 100" in estimate.reason
    with pytest.raises(InputError, match="false positive rate"):
        stats.tpr_at_fpr(scores, labels, 0.0)


def test_length_alone_scores_a_half_once_lengths_are_matched() -> None:
    rng = np.random.default_rng(6)
    lengths = rng.integers(5, 12, size=300).astype(np.float64)
    positive = rng.random(300) < lengths / 14
    assert stats.roc_auc(lengths, positive).value > 0.6
    assert stats.matched_auc(lengths, positive, lengths).value == 0.5
    far = stats.matched_auc(lengths, positive, np.where(positive, 0.0, 50.0))
    assert isnan(far.value)


def test_matched_auc_is_the_weighted_auc_of_each_length() -> None:
    rng = np.random.default_rng(7)
    lengths = rng.integers(3, size=90).astype(np.float64)
    positive, scores = rng.random(90) < 0.4, rng.normal(size=90)
    parts, pairs = [], []
    for length in range(3):
        here = lengths == length
        parts.append(stats.roc_auc(scores[here], positive[here]).value)
        pairs.append((positive & here).sum() * (~positive & here).sum())
    matched = stats.matched_auc(scores, positive, lengths)
    assert matched.value == pytest.approx(np.average(parts, weights=pairs), abs=1e-12)
    assert matched.n == sum(pairs)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_medians_are_numpys(n):
    x = np.random.default_rng(n).normal(size=(7, 3, n))
    x[2, 1, 0] = np.nan
    x[3, 0, -1] = np.inf
    assert np.array_equal(stats.median(x), np.median(x, axis=-1), equal_nan=True)
    assert np.isnan(stats.median(np.empty((4, 0)))).all()
