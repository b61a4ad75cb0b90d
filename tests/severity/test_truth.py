"""What memorized means, by severity."""

import math
from itertools import product

import pyarrow as pa
import pytest

from mnemoscope.errors import InputError
from mnemoscope.severity.truth import NOT_JUDGED, judge, pooled, truth_of, until_settled


class Tables:
    """A run with four prompts."""

    def __init__(self, **more):
        self.more = more

    def table(self, name):
        if name == "prompts":
            rows = [
                {"prompt_id": p, "tokens": 5, "level": level, "kind": None, "family": family}
                for p, level, family in (
                    ("copy", 6, "verbatim"), ("plain", 0, "control"),
                    ("other", 0, "control"), ("layout", 4, "template"),
                )
            ]  # fmt: skip
            return pa.Table.from_pylist(rows)
        return pa.Table.from_pylist([row | self.more for row in severity()])


def severity():
    rows = [
        ("copy", "l2", 0.9, 0.75, "matching verbatim"),
        ("plain", "l2", 0.3, 0.0, "none"),
        ("other", "l2", 0.3, 0.0, "retrieved verbatim"),
        ("layout", "l2", 0.6, 0.25, "template verbatim"),
        ("layout", "masked_l2", 0.9, 1.0, "template verbatim"),
    ]
    return [
        {"prompt_id": p, "guidance": 7.5, "measure": m, "mean": mean, "share": share, "grade": g}
        for p, m, mean, share, g in rows
    ]


def test_truth_is_severity_and_a_copy_of_another_image_is_left_out():
    found = truth_of(Tables(), guidance=7.5, measure="l2")
    assert found.memorized.tolist() == [True, False, False, True]
    assert found.judged.tolist() == [True, True, False, True]
    assert found.count(found.judged) == (2, 1)
    assert truth_of(Tables(), guidance=7.5, measure="l2", cut=0.8).memorized.tolist() == [
        False, False, False, True,
    ]  # fmt: skip


def test_truth_needs_the_guidance_and_a_sensible_cut():
    with pytest.raises(InputError, match=r"holds \[7.5\]"):
        truth_of(Tables(), guidance=1.0, measure="l2")
    with pytest.raises(InputError, match="cut"):
        truth_of(Tables(), guidance=7.5, measure="l2", cut=0.0)


def test_truth_is_about_one_recipe():
    run = Tables(recipe="guarded")
    assert truth_of(run, guidance=7.5, measure="l2", recipe="guarded").memorized.sum() == 2
    with pytest.raises(InputError, match="no severity"):
        truth_of(run, guidance=7.5, measure="l2", recipe="plain")

    class Two(Tables):
        def table(self, name):
            if name == "prompts":
                return super().table(name)
            rows = [row | {"recipe": recipe} for row in severity() for recipe in ("a", "b")]
            return pa.Table.from_pylist(rows)

    with pytest.raises(InputError, match="2 recipes"):
        truth_of(Two(), guidance=7.5, measure="l2")


@pytest.mark.parametrize(
    ("share", "masked", "grade", "memorized", "counts"),
    [
        (0.5, None, "matching verbatim", True, True),
        (0.4, None, "matching verbatim", False, True),
        (0.0, 0.5, "template verbatim", True, True),
        (None, 1.0, None, True, True),
        (0.0, None, "retrieved verbatim", False, False),
        # No image of its own: nothing known was copied, or another image was.
        (None, None, "none", False, False),
        (None, None, "retrieved verbatim", None, False),
        # Too few unrelated pairs: the four images.
        (None, None, None, None, False),
    ],
)
def test_judgements(share, masked, grade, memorized, counts):
    row = {"prompt_id": "p", "mean": 0.9, "share": share, "grade": grade, "measure": "l2"}
    rows = [row, row | {"measure": "masked_l2", "share": masked, "mean": None}]
    found = judge([*rows, row | {"measure": "tiled_l2", "share": 1.0}], "l2")["p"]
    assert found.memorized is memorized
    assert found.counts is counts
    assert found.elsewhere is (grade == "retrieved verbatim" and memorized is not True)
    assert found.severity == 0.9
    assert math.isnan(found.share) == (share is None and masked is None)


@pytest.mark.parametrize(
    ("own", "astray", "clear", "state", "counts", "borderline"),
    [
        (0.75, 0.25, 0.75, "memorized", True, False),
        (0.75, 0.0, 0.25, "memorized", True, True),
        (0.25, 0.5, 0.25, "copies another image", False, False),
        (0.0, 0.25, 0.0, "not memorized", False, False),
        (0.0, 0.0, 0.0, "not memorized", True, False),
        (None, 0.5, None, "copies another image", False, False),
        (None, None, None, "not judged", False, False),
    ],
)
def test_a_prompt_is_in_one_of_four_states(own, astray, clear, state, counts, borderline):
    row = {"prompt_id": "p", "mean": 0.9, "share": own, "grade": None, "measure": "l2"}
    found = judge([row | {"share_elsewhere": astray, "share_clear": clear}], "l2")["p"]
    assert (found.state, found.counts, found.borderline) == (state, counts, borderline)


def rows_of(samples):
    """Return the severity of one prompt whose samples copy its own image, another, or none."""
    own = [at for at, copied in enumerate(samples) if copied == "own"]
    astray = [at for at, copied in enumerate(samples) if copied == "other"]
    n = len(samples)
    return {
        "prompt_id": "p", "measure": "l2", "mean": 0.5 + n / 100, "max": 0.6 + n / 100,
        "share": len(own) / n, "share_elsewhere": len(astray) / n, "share_clear": 0.0,
        "own_seeds": own, "elsewhere_seeds": astray, "n": n, "grade": "none",
    }  # fmt: skip


@pytest.mark.parametrize("planned", [1, 2, 3, 4, 5])
def test_a_prompt_is_settled_when_no_further_sample_can_change_it(planned):
    """Every way in which all samples may come out is tried."""
    ways = list(product(("own", "other", "none"), repeat=planned))
    for taken in range(1, planned + 1):
        for first in {way[:taken] for way in ways}:
            of = judge([rows_of(first)], "l2")["p"]

            def states(seen):
                whole = [way for way in ways if way[: len(seen)] == seen]
                judged = [judge([rows_of(way)], "l2")["p"].state for way in whole]
                return {state == "not memorized" for state in judged}

            least = next(
                more
                for more in range(planned - taken + 1)
                if any(
                    len(states(way[: taken + more])) == 1 for way in ways if way[:taken] == first
                )
            )
            assert until_settled(of, planned - taken) == least


def test_at_first_half_of_the_samples_may_settle_it():
    assert [until_settled(NOT_JUDGED, planned) for planned in (1, 2, 3, 4, 10)] == [1, 1, 2, 2, 5]
    # Without a threshold no sample tells anything.
    blind = {**rows_of(("none",)), "share": None, "share_elsewhere": None}
    assert until_settled(judge([blind], "l2")["p"], 3) == 0


def test_samples_of_two_runs_count_together():
    parts = ("own", "none"), ("own", "other", "own")
    (found,) = pooled(map(rows_of, parts))
    whole = rows_of([copied for part in parts for copied in part])
    for name in ("n", "share", "share_elsewhere", "share_clear"):
        assert found[name] == pytest.approx(whole[name])
    assert found["mean"] == pytest.approx((2 * 0.52 + 3 * 0.53) / 5)
    assert found["max"] == 0.63
    assert found["own_seeds"] is None
    # What cannot be told of one run is taken from the other.
    (found,) = pooled([rows_of(parts[0]), {**rows_of(parts[1]), "share": None}])
    assert found["share"] == 0.5
