"""The ranking against brute force, and what it withholds."""

import numpy as np
import pytest

from mnemoscope.core.stats import bootstrap, roc_auc
from mnemoscope.errors import InputError
from mnemoscope.ranking import markdown
from mnemoscope.ranking.metrics import auc, difference, tpr
from mnemoscope.ranking.rank import rank
from mnemoscope.ranking.thresholds import calibrated, fit_logistic, held_out
from mnemoscope.severity.truth import Truth


def truth(memorized, **changes):
    n = len(memorized)
    values = {
        "prompt_id": tuple(f"p{i}" for i in range(n)),
        "memorized": np.array(memorized, dtype=bool),
        "judged": np.ones(n, dtype=bool),
        "severity": np.linspace(0, 1, n),
        "tokens": np.full(n, 5.0),
        "level": np.where(memorized, 6.0, np.nan),
        "kind": ("describing",) * n,
        "family": ("verbatim",) * n,
        "cut": 0.5,
        "guidance": 7.5,
        "measure": "l2",
    }
    return Truth(**(values | changes))


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    memorized = np.arange(300) < 60
    good = memorized * 2.0 + rng.normal(size=300)
    weak = memorized * 0.5 + rng.normal(size=300)
    return truth(memorized), good, weak


def test_auc_counts_pairs(world):
    known, good, _ = world
    yes, no = good[known.memorized], good[~known.memorized]
    found = auc(good, known.memorized)
    assert found.value == pytest.approx((yes[:, None] > no[None]).mean())
    assert found.low < found.value < found.high


def test_difference_is_that_of_the_two_and_tells_better_from_worse(world):
    known, good, weak = world
    found = difference(good, weak, known.memorized)
    apart = auc(good, known.memorized).value - auc(weak, known.memorized).value
    assert found.value == pytest.approx(apart)
    assert found.low > 0
    assert difference(good, good, known.memorized).value == 0


def test_interval_is_that_of_a_plain_bootstrap(world):
    known, good, _ = world
    plain = bootstrap(
        lambda s, y: (
            np.array([roc_auc(a, b > 0.5).value for a, b in zip(s, y, strict=True)])
            if s.ndim > 1
            else roc_auc(s, y > 0.5).value
        ),
        good,
        known.memorized.astype(float),
        draws=1000,
    )
    found = auc(good, known.memorized)
    # The same resamples, so the same interval.
    np.testing.assert_allclose([found.low, found.high], [plain.low, plain.high], atol=1e-12)


def test_banks_of_noise_count(world):
    known, good, _ = world
    rng = np.random.default_rng(1)
    banks = good + rng.normal(size=(6, 1)) * known.memorized + 0.3 * rng.normal(size=(6, 300))
    each = [auc(bank, known.memorized) for bank in banks]
    found = auc(banks, known.memorized)
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    # Resampled by hand: six banks and all prompts, with replacement.
    drawn = []
    for _ in range(1000):
        some, who = rng.integers(6, size=6), rng.integers(300, size=300)
        yes, no = who[known.memorized[who]], who[~known.memorized[who]]
        pairs = banks[some][:, yes][:, :, None] > banks[some][:, no][:, None]
        drawn.append(pairs.mean())
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=0.015
    )
    assert found.high - found.low > 1.5 * np.median([one.high - one.low for one in each])
    entries = rank(
        {"good": banks}, known, kinds={"good": "prompt"}, price={"good": 1.0}, seconds={"good": 1.0}
    )
    assert entries.get("good").value == found.value
    assert "6 banks" in entries.get("good").method
    assert entries.get("good", "tpr").value == tpr(banks[0], known.memorized).value


def test_tpr_needs_a_hundred_negatives():
    labels = np.arange(60) < 10
    assert "at least 100" in tpr(np.arange(60.0), labels).reason


def test_tpr_ties_count_against(world):
    known, _, _ = world
    assert tpr(np.zeros(300), known.memorized).value == 0


def test_logistic_weights_are_stationary():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2))
    y = rng.random(200) < 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.5)))
    weights = fit_logistic(x, y, ridge=1.0)
    p = 1 / (1 + np.exp(-(x @ weights[:2] + weights[2])))
    np.testing.assert_allclose(x.T @ (p - y) + weights[:2], 0, atol=1e-8)
    assert weights[0] > 1


def test_combination_is_not_judged_on_what_it_was_fitted_on(world):
    known, good, weak = world
    half = known.half()
    found = calibrated([good, weak], known, half)
    assert np.isnan(found[half]).all()
    assert np.isfinite(found[~half]).all()
    assert auc(found[~half], known.memorized[~half]).value > 0.85


def test_threshold_of_one_half_holds_on_the_other(world):
    known, good, _ = world
    found = held_out(good, known, known.half())
    assert 0 <= found[1].value < 0.06
    assert found[0].value < 1
    few = truth(np.arange(60) < 20)
    assert "a threshold" in held_out(np.arange(60.0), few, few.half())[0].reason


def test_half_does_not_depend_on_other_prompts(world):
    known, _, _ = world
    fewer = truth(known.memorized[:50])
    assert (fewer.half() == known.half()[:50]).all()
    assert 100 < known.half().sum() < 200


def ranked(known, scores, **options):
    names = list(scores)
    one = dict.fromkeys(names, 1.0)
    return rank(
        scores, known, kinds=dict.fromkeys(names, "prompt"), price=one, seconds=one, **options
    )


def test_rank_tells_populations_and_leaves_out_the_unjudged(world):
    known, good, weak = world
    judged = np.ones(300, dtype=bool)
    judged[250:] = False
    found = ranked(truth(known.memorized, judged=judged), {"good": good, "weak": weak},
                   combine={"both": ("good", "weak"), "absent": ("nobody",)})  # fmt: skip
    everyone = next(entry for entry in found.entries if entry.population == "all")
    assert (everyone.memorized, everyone.others) == (60, 190)
    assert found.get("good", "auc", "level 6 against others") is not None
    assert found.get("both", "auc", "judging half") is not None
    assert found.get("absent", "auc", "judging half") is None
    board = markdown.leaderboard(found)
    assert board.index("`good`") < board.index("`weak`")
    assert -1 <= found.agreement["good", "weak"] <= 1
    assert "level 6 against others (60 / 190)" in markdown.populations(found).splitlines()[0]
    assert "describing captions (60 / 190)" in markdown.populations(found).splitlines()[0]
    assert markdown.held(found).startswith("Withheld for all: ")
    whole = markdown.held(ranked(known, {"good": good, "weak": weak}))
    assert whole.count("`good`") == whole.count("`weak`") == 1
    rho = f"{found.agreement['good', 'weak']:.3f}"
    assert f"| `good` | `weak` | {rho} |" in markdown.likeness(found)
    assert f"| `weak` | `good` | {rho} |" in markdown.likeness(found)
    assert [row["rho"] for row in found.agreement_rows()] == [found.agreement["good", "weak"]]
    assert all(row["value"] is None or np.isfinite(row["value"]) for row in found.rows())


def test_what_is_withheld_is_named_with_its_reason():
    found = ranked(truth(np.arange(60) < 20), {"few": np.arange(60.0)})
    reasons = found.withheld()
    assert ["tpr of few, all"] in reasons.values()
    assert any("at least 100" in reason for reason in reasons)
    assert not any("auc of few, all" in names for names in reasons.values())


def test_one_class_is_refused():
    with pytest.raises(InputError, match="both classes"):
        ranked(truth(np.zeros(20)), {"a": np.arange(20.0)})
