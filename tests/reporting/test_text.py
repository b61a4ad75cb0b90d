"""Words and numbers."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemoscope.reporting.text import interval, number, percent, visible


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    shown = visible(text)
    assert not [
        c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\u200d"
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>&amp;\"'", "<b>&amp;\"'"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\x00b", "a⟨U+0000⟩b"),
        ("two\r\nlines", "two  lines"),
        ("família 日本 ‰", "família 日本 ‰"),
    ],
)
def test_text_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_text_is_cut_and_counted() -> None:
    assert visible("a" * 1_000_000, 10) == "a" * 10 + " … (999,990 more characters)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measured"),
        (math.nan, "not measured"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (-3.0, "−3"),
        (0.91734, "0.917"),
        (12345.678, "12,346"),
        (0.000123, "1.23·10^−4"),
        (99.96, "100.0"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_and_intervals() -> None:
    assert percent(0.5) == "50\u00a0%"
    assert percent(0.014) == "1.4\u00a0%"
    assert percent(1.0) == "100\u00a0%"
    assert percent(None) == "not measured"
    assert interval(0.1, 0.25, 2) == "0.10 to 0.25"
    assert interval(None, 1.0) == ""
