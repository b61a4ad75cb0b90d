"""Dataset inference: how often it errs on sets that are alike, and finds those that are not."""

import numpy as np
import pytest

from mnemoscope.errors import InputError
from mnemoscope.ranking.inference import inferred


def draw(rng, count, shift=0.0):
    """Draw features that hang together, as membership scores do."""
    common = rng.normal(size=(count, 1))
    return 0.7 * common + rng.normal(size=(count, 4)) + shift


def test_sets_that_are_alike_are_rarely_taken_for_trained_on():
    rng = np.random.default_rng(0)
    repetitions, level = 60, 0.05
    pairs = [(draw(rng, 30), draw(rng, 24)) for _ in range(repetitions)]
    wrong = sum(inferred(*pair, seed=k, draws=19).p <= level for k, pair in enumerate(pairs))
    # Above the level by no more than three standard errors.
    assert wrong <= repetitions * level + 3 * (repetitions * level * (1 - level)) ** 0.5


def test_welchs_distribution_is_too_narrow_for_cross_fitted_scores():
    """The test above can fail: it would, were the statistic of sets that are alike trusted."""
    rng = np.random.default_rng(0)
    found = [inferred(draw(rng, 40), draw(rng, 40), seed=k, draws=0).t for k in range(120)]
    assert np.std(found) > 1.2


def test_a_set_that_was_trained_on_is_found_though_no_item_tells():
    rng = np.random.default_rng(0)
    found = inferred(draw(rng, 200, shift=0.6), draw(rng, 200), draws=99)
    assert found.p == 0.01
    assert found.t > 0


def test_the_test_has_one_side():
    """Held-out items that differ in a way that was not learnt are not taken for members."""
    rng = np.random.default_rng(0)
    ours = draw(rng, 60)
    assert inferred(ours, ours + 1e-9, draws=39).p > 0.05


def test_too_few_items_give_no_answer():
    rng = np.random.default_rng(0)
    rows = draw(rng, 30)
    rows[:15] = np.nan
    found = inferred(rows, draw(rng, 30))
    assert np.isnan(found.p)
    assert "15 items" in found.reason
    with pytest.raises(InputError, match="score"):
        inferred(np.empty((30, 0)), np.empty((30, 0)))
