"""Copies: whose image a sample shows, how many do, and which of them an unrelated pair equals."""

from dataclasses import replace

import pytest

from mnemoscope.reporting.copies import HAIR, Copy, Counts, copies, counted
from mnemoscope.reporting.explorer import State, state_of
from mnemoscope.severity.truth import NOT_JUDGED

PROMPTS = [{"prompt_id": "a", "references": ["A"]}, {"prompt_id": "c", "references": []}]
NULLS = [
    {"measure": "l2", "threshold": 0.80, "q50": 0.5, "max": 0.82},
    {"measure": "l2:nearest", "threshold": 0.85, "q50": 0.6, "max": 0.86},
    {"measure": "masked_l2", "threshold": 0.90, "q50": 0.5, "max": 0.91},
]


def row(prompt: str, seed: int, reference: str, value: float, measure: str = "l2") -> dict:
    relation = "own" if reference == "A" and prompt == "a" else "nearest"
    return {
        "prompt_id": prompt, "seed": seed, "guidance": 7.5, "measure": measure,
        "reference_id": reference, "relation": relation, "value": value,
    }  # fmt: skip


def found(*rows: dict) -> Copy:
    (copy,) = copies(PROMPTS, rows, [], NULLS, "l2").values()
    return copy


def test_whose_image_it_is() -> None:
    assert found(row("a", 0, "A", 0.95)) == Copy("own", 0.95)
    assert found(row("a", 0, "A", 0.5), row("a", 0, "B", 0.9)) == Copy("another", 0.5, 0.9, "B")
    # The bar for the nearest of many images is the higher one.
    assert found(row("a", 0, "B", 0.83)).whose == "none"
    # A sample that shows its own image is no copy of another, however close that is.
    assert found(row("a", 0, "A", 0.9), row("a", 0, "B", 0.99)).whose == "own"
    # A template counts by its mask.
    assert found(row("a", 0, "A", 0.5), row("a", 0, "A", 0.95, "masked_l2")).whose == "own"
    # An own image that is named the nearest is still the prompt's own.
    nearest = row("a", 0, "A", 0.95) | {"relation": "nearest"}
    assert found(nearest) == Copy("own", 0.95)


@pytest.mark.parametrize(
    ("value", "borderline"),
    [(0.81, True), (0.82, True), (0.82 + HAIR * 0.32, True), (0.8233, False), (0.79, False)],
)
def test_borderline_is_what_an_unrelated_pair_equals(value: float, borderline: bool) -> None:
    assert found(row("a", 0, "A", value)).borderline is borderline


def test_the_run_says_which_seeds_copy() -> None:
    severity = [
        {
            "prompt_id": "a", "guidance": 7.5, "measure": "l2", "own_seeds": [1],
            "elsewhere_seeds": [0],
        }
    ]  # fmt: skip
    rows = [row("a", 0, "A", 0.95), row("a", 0, "B", 0.5), row("a", 1, "A", 0.3)]
    found = copies(PROMPTS, rows, severity, NULLS, "l2")
    assert [copy.whose for copy in found.values()] == ["another", "own"]


def test_without_a_threshold_nothing_is_a_copy() -> None:
    nulls = [NULLS[0] | {"threshold": None}]
    (copy,) = copies(PROMPTS, [row("a", 0, "A", 0.99)], [], nulls, "l2").values()
    assert copy == Copy("none", 0.99)


def test_copies_are_counted_and_the_image_copied_most_is_named() -> None:
    rows = [row("c", 0, "A", 0.9), row("c", 1, "B", 0.95), row("c", 2, "A", 0.858)]
    rows += [row("c", 3, "B", 0.7)]
    counts = counted(copies(PROMPTS, rows, [], NULLS, "l2"))["c", 7.5]
    assert counts == Counts(4, 0, 3, 1, "A", 0.9)


@pytest.mark.parametrize(
    ("memorized", "counts", "control", "state"),
    [
        (True, Counts(4, 4, 0), False, "memorized"),
        (False, Counts(4, 0, 2), False, "another"),
        # One of four copies its own, one another's: half reproduce a training image.
        (False, Counts(4, 1, 1), False, "another"),
        (False, Counts(4, 0, 1), False, "plain"),
        (False, Counts(4, 0, 4), True, "another"),
        (False, Counts(4, 0, 0), True, "control"),
        (None, Counts(), False, "unjudged"),
        (None, Counts(), True, "unjudged"),
    ],
)
def test_state_of_a_prompt(
    memorized: bool | None, counts: Counts, control: bool, state: State
) -> None:
    judged = replace(NOT_JUDGED, memorized=memorized)
    assert state_of(judged, counts, control=control) == state
