"""What memorized means, by severity."""

import math

import pyarrow as pa
import pytest

from mnemoscope.errors import InputError
from mnemoscope.severity.truth import judge, truth_of


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
