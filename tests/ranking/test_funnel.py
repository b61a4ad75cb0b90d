"""Which captions a funnel samples in full."""

import numpy as np
import pytest

from mnemoscope.ranking.funnel import nearest, plan, refined, tails, widens

WORDS, BOTH = np.array([False]), np.array([False, False])


def test_scores_come_to_one_scale_before_they_are_joined():
    rng = np.random.default_rng(0)
    ordinary = np.column_stack([rng.normal(5, 1, 999), rng.normal(-800, 300, 999)])
    # Six spreads out by the first alone, and four out by both.
    scores = np.vstack([[11.0, -800.0], [9.0, 400.0], ordinary])
    found = tails(scores, BOTH)
    assert found[1] == pytest.approx(1 / 1001)
    assert found[0] < 20 / 1001
    # Neither the unit of a score nor where it begins matters.
    assert np.array_equal(found, tails(scores * [1e-6, 30.0] + [3.0, -7.0], BOTH))


def test_one_detector_far_out_does_not_outweigh_two():
    scores = np.column_stack([np.linspace(-1, 1, 101)] * 2)
    scores[7] = [1e9, -1e9]
    scores[8] = [40.0, 40.0]
    assert tails(scores, BOTH)[8] == pytest.approx(1 / 101)


def test_the_own_image_only_adds():
    scores = np.column_stack([np.linspace(-1, 1, 101)] * 2)
    own = np.array([False, True])
    # What gives another image back is far from its own, and as suspicious as by its words.
    scores[3] = [9.0, -1e6]
    assert tails(scores, own)[3] == pytest.approx(1 / 101)
    scores[4] = [0.0, 50.0]
    assert tails(scores, own)[4] == pytest.approx(1 / 101)
    # Alone it is the score, on both sides.
    assert np.array_equal(tails(scores[:, 1:], own[1:]), tails(scores[:, 1:], WORDS))


def test_a_score_that_is_missing_leaves_the_other():
    scores = np.array([[9.0, np.nan], [1.0, 0.1], [2.0, 0.3], [3.0, 0.2], [np.nan, np.nan]])
    for own in (BOTH, np.array([False, True])):
        found = tails(scores, own)
        assert found[0] == 0.25
        assert np.isnan(found[4])
        assert sorted(found[1:4].tolist()) == [0.5, 0.75, 1.0]


def test_equal_scores_have_equal_tails():
    assert tails(np.array([[1.0], [1.0], [0.0]]), WORDS).tolist() == [2 / 3, 2 / 3, 1.0]
    assert tails(np.ones((4, 1)), WORDS).tolist() == [1.0] * 4


NONE = np.array([], dtype=int)


def chosen(n=1000, finalists=10, drawn=40, repeated=NONE, seed=0, lone=NONE):
    tail = np.random.default_rng(1).permutation(n) / n + 1 / n
    return tail, plan(tail, repeated, lone, finalists, finalists, drawn, seed)


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
    tail, found = chosen(repeated=np.arange(3))
    extra = {at for at in range(3) if tail[at] > 0.01}
    reasons = dict(zip(found.finalists.tolist(), found.why, strict=True))
    assert {at for at, why in reasons.items() if why == "repeats"} == extra
    assert {0, 1, 2} <= set(found.finalists.tolist())


def test_some_of_those_that_lie_alone_are_suspicious():
    lone = np.array([400, 401, 402, 403, 404])
    found = chosen(finalists=20, lone=lone)[1]
    reasons = dict(zip(found.finalists.tolist(), found.why, strict=True))
    assert [at for at, why in reasons.items() if why == "alone"] == [400, 401]
    # What repeats comes first, and all that is added is at most what has the least tail.
    crowded = chosen(finalists=20, lone=lone, repeated=np.arange(500, 560))[1]
    assert len(crowded.finalists) == 40
    assert "alone" not in crowded.why


def test_what_has_no_score_lies_in_the_nearest_stratum():
    tail = np.linspace(0.01, 1, 100)
    tail[50] = np.nan
    found = plan(tail, NONE, NONE, 5, 5, 10, 0)
    assert 50 in found.strata[0]


def test_draws_depend_on_the_seed_alone():
    a, b, c = chosen()[1], chosen()[1], chosen(seed=1)[1]
    assert np.array_equal(a.drawn[1], b.drawn[1])
    assert not np.array_equal(a.drawn[1], c.drawn[1])


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_few_captions_are_all_sampled(n):
    found = chosen(n, finalists=n, drawn=0)[1]
    assert found.sampled == n


def test_a_round_whose_second_half_gives_something_back_calls_for_another():
    assert widens([True] * 2 + [False] * 18)
    assert not widens([True] + [False] * 19)
    assert not widens([])


def test_a_closer_look_orders_the_least_tails_anew_and_no_others():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(100, 2))
    own = np.array([False, True])
    before = tails(scores, own)
    some = nearest(before, 0.2)
    assert len(some) == 20
    more = rng.normal(size=(20, 1))
    # The last of them looks worst of all, the first has no image.
    last, first = np.argmax(before[some]), np.argmin(before[some])
    more[last], more[first] = 1e6, np.nan
    after = refined(scores, own, some, more)
    rest = np.setdiff1d(np.arange(100), some)
    assert (after[rest] == before[rest]).all()
    assert sorted(after[some]) == pytest.approx(np.arange(1, 21) / 100)
    assert after[some[last]] == 0.01
    # What looks no worse than the middle of them is not held against a caption.
    plain = refined(scores, own, some, np.full((20, 1), np.nan))
    assert plain == pytest.approx(before)


def test_a_caption_without_a_score_is_not_looked_at_closer():
    tail = tails(np.array([[np.nan], [3.0], [2.0], [1.0]]), WORDS)
    assert nearest(tail, 0.34).tolist() == [1]
