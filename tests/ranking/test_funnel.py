"""Which captions a funnel samples in full."""

import numpy as np
import pytest

from mnemoscope.ranking.funnel import plan, tails


def test_the_tail_is_that_of_the_most_suspicious_detector():
    scores = np.array([[9.0, 0.0], [1.0, 0.1], [2.0, 8.0], [3.0, 0.2], [np.nan, np.nan]])
    assert tails(scores)[:4].tolist() == [0.25, 0.75, 0.25, 0.5]
    assert np.isnan(tails(scores)[4])


def test_equal_scores_have_equal_tails():
    assert tails(np.array([[1.0], [1.0], [0.0]])).tolist() == [2 / 3, 2 / 3, 1.0]


def chosen(n=1000, finalists=10, drawn=40, repeats=None, seed=0):
    tail = np.random.default_rng(1).permutation(n) / n + 1 / n
    counts = np.ones(n, dtype=int) if repeats is None else repeats
    return tail, plan(tail, counts, finalists, drawn, seed)


def test_every_caption_has_one_place():
    tail, found = chosen()
    every = np.concatenate([found.finalists, *found.strata])
    assert sorted(every) == list(range(1000))
    assert set(tail[found.finalists].round(6)) == {k / 1000 for k in range(1, 11)}
    assert tail[found.strata[0]].max() < tail[found.strata[1]].min()
    assert [len(some) for some in found.strata] == [99, 891]
    assert [len(some) for some in found.drawn] == [10, 30]
    for some, stratum in zip(found.drawn, found.strata, strict=True):
        assert len(set(some)) == len(some)
        assert set(some) <= set(stratum)
    assert found.sampled == 50


def test_repeats_are_suspicious_whatever_their_score():
    repeats = np.ones(1000, dtype=int)
    repeats[:3] = 5
    tail, found = chosen(repeats=repeats)
    extra = {at for at in range(3) if tail[at] > 0.01}
    assert found.repeated == extra
    assert {0, 1, 2} <= set(found.finalists.tolist())


def test_what_has_no_score_lies_in_the_nearest_stratum():
    tail = np.linspace(0.01, 1, 100)
    tail[50] = np.nan
    found = plan(tail, np.ones(100, dtype=int), 5, 10, 0)
    assert 50 in found.strata[0]


def test_draws_depend_on_the_seed_alone():
    a, b, c = chosen()[1], chosen()[1], chosen(seed=1)[1]
    assert np.array_equal(a.drawn[1], b.drawn[1])
    assert not np.array_equal(a.drawn[1], c.drawn[1])


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_few_captions_are_all_sampled(n):
    found = chosen(n, finalists=n, drawn=0)[1]
    assert found.sampled == n
