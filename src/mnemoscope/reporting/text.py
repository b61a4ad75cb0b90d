r"""Words and numbers of a report, made safe to show.

Text of a run (prompts above all) is hostile. Markup is neutralised where it is written into the
page, by autoescape; what remains is characters that no escape touches: controls, which HTML changes
silently, and bidirectional or invisible marks, which make text look like other text::

    visible("a\u202eb") = "a⟨U+202E⟩b"

Contents: visible, known, number, short, percent, interval.
"""

import math
import re
import unicodedata

LONGEST = 2000
"""Characters of one text a page shows; the rest is counted, and stays in the tables."""

_KEPT_FORMAT = "\u200d"
"""The zero-width joiner, which glues emoji together and hides nothing by itself."""

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories without a shape of their own: controls, formats, surrogates, separators."""


def visible(text: str, limit: int = LONGEST) -> str:
    """Spell out every character of a text that cannot be seen or that changes how others look.

    Args:
        text: Any text, taken as hostile.
        limit: Characters kept before spelling out.

    Returns:
        Text in which tabs and line ends are spaces, other controls are ⟨U+XXXX⟩, and a cut is told.

    Source: ours, after Boucher and Anderson, 2021 (Trojan Source).
    """
    kept = "".join(_spell(character) for character in text[:limit])
    left = len(text) - limit
    return f"{kept} … ({left:,} more characters)" if left > 0 else kept


def _spell(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if character == _KEPT_FORMAT or unicodedata.category(character) not in _HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"


_NAN = re.compile(r"(?<![\w])[-−]?nan(?!\w)", re.IGNORECASE)


def known(text: str) -> str:
    """Say in words that a number does not exist, where a text written elsewhere says NaN.

    >>> known("r = nan, n = 2")
    'r = not measured, n = 2'
    """
    return _NAN.sub("not measured", text)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for a reader.

    Args:
        value: The number; None and NaN mean that it was not measured.
        digits: Significant digits.

    Returns:
        The number with a true minus sign, or "not measured".
    """
    if value is None or math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10^{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def short(value: float | None) -> float | None:
    """Round to five digits, which no reader needs more of; None where there is no number.

    JSON has no NaN, and a page that cannot be parsed shows nothing.
    """
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def percent(share: float | None) -> str:
    """Write a share as per cent, with a digit after the point only near 0 and 100."""
    if share is None or math.isnan(share):
        return "not measured"
    value = 100 * share
    # A no-break space: a line that ends before its unit is read twice.
    return f"{value:.{int(0 < value < 10 or 90 < value < 100)}f}\u00a0%"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Write an interval, or nothing where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"{number(low, digits)} to {number(high, digits)}"
