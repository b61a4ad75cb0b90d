"""Nulls against numpy and scipy, and pairs that are related or not."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from mnemoscope.severity import null as module
from mnemoscope.severity.null import (
    Kin,
    Null,
    fit_nulls,
    generated_null,
    generated_pairs,
    kindred,
    measured_nulls,
    unrelated,
)
from mnemoscope.similarity import Reference, get_similarity


def test_quantiles_are_numpys_and_the_threshold_is_an_order_statistic():
    values = np.random.default_rng(0).normal(size=4321)
    got = Null.fit("l2", values, rate=1e-2)
    for name, level in (("q50", 0.5), ("q95", 0.95), ("q99", 0.99), ("q999", 0.999), ("max", 1)):
        assert getattr(got, name) == np.quantile(values, level)
    above = (values > got.threshold).sum()
    # (n + 1)·rate = 43.22, so the threshold is the 43rd from above: 42 pairs exceed it.
    assert above == 42
    assert (got.n, got.method, got.reason) == (4321, "order statistic", "")


def test_a_new_pair_exceeds_the_threshold_at_the_rate_promised():
    rng = np.random.default_rng(1)
    exceeded = 0
    trials = 4000
    for _ in range(trials):
        values = rng.gamma(2, size=120)
        exceeded += values[-1] > Null.fit("l2", values[:-1], rate=0.05).threshold
    # (n + 1)·rate = 6 is whole, so the rate is exactly 5 %.
    assert stats.binomtest(exceeded, trials, 0.05).pvalue > 1e-3


@pytest.mark.parametrize(
    ("n", "method"),
    [
        (0, "withheld"),
        (18, "withheld"),
        (19, "maximum"),
        (998, "maximum"),
        (999, "order statistic"),
    ],
)
def test_too_few_pairs_say_so(n, method):
    values = np.random.default_rng(2).random(n)
    got = Null.fit("l2", values)
    assert got.method == method
    assert bool(got.reason) == (method != "order statistic")
    if method == "withheld":
        assert math.isnan(got.threshold)
        assert math.isnan(got.rate)
    else:
        assert got.threshold == values.max()
        assert got.rate == pytest.approx(1e-3 if n == 999 else 1 / (n + 1))


def test_what_is_not_finite_is_left_out():
    values = np.array([0.1, np.nan, 0.3, np.inf, -np.inf] * 10)
    assert Null.fit("l2", values).n == 20


def test_related_pairs():
    kin = [
        Kin("a", frozenset({"p"})),
        Kin("b", frozenset({"p", "q"})),
        Kin("c", frozenset({"r"}), template=True),
        Kin("d", frozenset({"s"}), template=True),
        Kin("a", frozenset({"t"})),
    ]
    got = unrelated(kin)
    related = {(0, 1), (2, 3), (0, 4)}
    for i, j in itertools.product(range(5), repeat=2):
        assert got[i, j] == (i != j and (i, j) not in related and (j, i) not in related)
    assert unrelated([]).shape == (0, 0)


def test_nulls_use_unrelated_pairs_once():
    rng = np.random.default_rng(3)
    values = rng.random((30, 30))
    values = (values + values.T) / 2
    kin = [Kin(f"r{i}", frozenset({f"p{i // 2}"})) for i in range(30)]
    own, nearest = fit_nulls("l2", values, unrelated(kin))
    pairs = [values[i, j] for i in range(30) for j in range(i) if i // 2 != j // 2]
    best = [max(values[i, j] for j in range(30) if j // 2 != i // 2) for i in range(30)]
    assert (own.n, own.q50, own.max) == (len(pairs), np.median(pairs), max(pairs))
    assert (nearest.n, nearest.q50) == (30, np.median(best))
    assert (own.relation, nearest.relation) == ("own", "nearest")


def test_nulls_of_masked_references_count_each_direction():
    values = np.random.default_rng(4).random((6, 6))
    values[:, 2:] = np.nan  # only the first two have masks
    kin = [Kin(f"r{i}", template=i < 2) for i in range(6)]
    own, nearest = fit_nulls("masked_l2", values, unrelated(kin))
    assert own.n == 8
    assert own.max == values[2:, :2].max()
    assert nearest.n == 4


def test_nulls_of_nothing():
    for n in (0, 1):
        own, nearest = fit_nulls("l2", np.ones((n, n)), np.zeros((n, n), bool))
        assert own.method == nearest.method == "withheld"


def test_rows_of_some_are_rows_of_all():
    rng = np.random.default_rng(5)
    prompts = [frozenset(f"p{p}" for p in rng.integers(15, size=3)) for _ in range(40)]
    kin = [Kin(f"r{rng.integers(20)}", mine, at % 7 == 0) for at, mine in enumerate(prompts)]
    slow = [
        [
            a.reference_id != b.reference_id
            and not a.prompt_ids & b.prompt_ids
            and not (a.template and b.template)
            for b in kin
        ]
        for a in kin
    ]
    np.testing.assert_array_equal(unrelated(kin), slow)
    np.testing.assert_array_equal(unrelated(kin, [3, 30, 7]), np.array(slow)[[3, 30, 7]])


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(8, 8, generator=generator) > 0.5).float()
    return [
        Reference(f"r{i}", torch.rand(3, 8, 8, generator=generator), mask if i % 5 == 0 else None)
        for i in range(50)
    ]


@pytest.mark.parametrize("measure", ["l2", "masked_l2"])
def test_nulls_of_images_are_those_of_the_whole_matrix(noise, measure, monkeypatch):
    kin = [Kin(r.reference_id, frozenset({f"p{i // 2}"})) for i, r in enumerate(noise)]
    images = torch.stack([r.pixels for r in noise])
    values = get_similarity(measure).index(noise).compare(images).numpy()
    whole = fit_nulls(measure, values, unrelated(kin))
    monkeypatch.setattr(module, "COMPARED", 7 * 4 * 3 * 8 * 8)
    index = get_similarity(measure).index(noise)
    found = measured_nulls(index, noise, kin, (8, 8), measure=measure)
    assert repr(found) == repr(whole)


def test_of_many_images_some_are_compared_with_all(noise, monkeypatch):
    kin = [Kin(r.reference_id) for r in noise]
    monkeypatch.setattr(module, "MOST", 10)
    index = get_similarity("l2").index(noise)
    own, nearest = measured_nulls(index, noise, kin, (8, 8), measure="l2")
    assert (own.n, nearest.n) == (45, 10)
    images = torch.stack([r.pixels for r in noise])
    values = get_similarity("l2").index(noise).compare(images).numpy()
    np.fill_diagonal(values, -1)
    chosen = np.linspace(0, 49, 10).round().astype(int)
    assert nearest.max == values[chosen].max()


def test_an_image_like_a_prompts_own_says_nothing_of_chance(noise):
    kin = [Kin(r.reference_id, frozenset({f"p{i}"})) for i, r in enumerate(noise)]
    # The last two are of no prompt; one of them shows what the first does.
    twin = replace(noise[-1], pixels=(noise[0].pixels + 0.02).clamp(0, 1))
    references = [*noise[:-1], twin]
    kin[-2:] = [Kin("x"), Kin("y")]
    index = get_similarity("l2").index(references)
    trained = measured_nulls(index, references, kin, (8, 8), measure="l2")[0]
    # A copy of the own image is as near to its twin, which is beyond any two others.
    trained = replace(trained, threshold=trained.q95)
    own = {"p0": [noise[0].pixels], "p1": [noise[1].pixels], "elsewhere": []}
    related = kindred(index, own, kin, (), (8, 8), trained)
    near = index.compare(torch.stack([noise[0].pixels, noise[1].pixels])).numpy()
    assert related["p0"].tolist() == (near[0] > trained.threshold).tolist()
    assert related["p0"][[0, -1]].all()
    assert not related["p1"][[0, -1]].any()
    assert not related["elsewhere"].any()
    samples = torch.stack([noise[0].pixels, noise[1].pixels])
    pairs = generated_pairs(
        index, ["p0", "p1"], lambda rows: samples[rows.start : rows.stop], (8, 8), related
    )
    assert np.array_equal(np.isnan(pairs), [related["p0"], related["p1"]])
    assert np.nanmax(pairs) < near[0, -1]


def test_templates_have_to_do_with_one_another(noise):
    kin = [Kin(r.reference_id, template=i < 3) for i, r in enumerate(noise)]
    index = get_similarity("l2").index(noise)
    trained = measured_nulls(index, noise, kin, (8, 8), measure="l2")[0]
    related = kindred(index, {"t": [], "v": []}, kin, {"t"}, (8, 8), trained)
    assert related["t"].nonzero()[0].tolist() == [0, 1, 2]
    assert not related["v"].any()


def unrelated_values(seed=0, samples=100, images=50):
    """Return similarities in which images differ: some are nearer to everything."""
    rng = np.random.default_rng(seed)
    return 0.5 + 0.05 * rng.normal(size=images) + 0.05 * rng.normal(size=(samples, images))


def test_the_generated_threshold_is_the_upper_limit_over_images():
    values = unrelated_values()
    trained = replace(Null.fit("l2", np.linspace(0, 0.9, 2000)), typical=0.6)
    found = generated_null(values, trained, "g", rate=0.01)
    plain = Null.fit("l2", values.ravel(), rate=0.01)
    assert (found.relation, found.recipe, found.method) == ("generated", "g", "upper limit")
    # Drawn by hand: 95 % of the quantiles of as many images, with replacement.
    rng = np.random.default_rng(7)
    drawn = [
        np.quantile(values[:, rng.integers(50, size=50)], 0.99, method="higher") for _ in range(400)
    ]
    assert found.threshold > plain.threshold
    assert found.threshold == pytest.approx(np.quantile(drawn, 0.95), abs=0.01)


def test_a_copy_of_another_image_is_left_out_of_the_null():
    values = unrelated_values()
    values[3, 4] = values[5, 4] = 0.95
    trained = replace(Null.fit("l2", np.linspace(0, 0.9, 2000)), typical=0.6)
    found = generated_null(values, trained, "g", rate=0.01)
    assert found.copies == 2
    assert found.max < 0.9
    # All samples nearer to everything by as much as they exceed training images: no null at all.
    near = generated_null(values + 0.2, trained, "g", rate=0.01)
    assert near.max < found.max + 0.11
    assert generated_null(values[:, :0], trained, "g").method == "withheld"
