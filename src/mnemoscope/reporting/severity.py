"""Panels of severity: how often prompts of each kind reproduce an image, and how the bar was set.

Contents: `level_panel`, `similarity_panel`, `null_panel`; each None where the run lacks its data.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mnemoscope.core.panels import Bar, BarPanel, CurvePanel, Role, Series
from mnemoscope.reporting.explorer import State
from mnemoscope.reporting.quantities import Key
from mnemoscope.reporting.text import number
from mnemoscope.reporting.verdict import Row, Verdict

GROUPS: dict[State, tuple[str, Role]] = {
    "memorized": ("memorized", "memorized"),
    "another": ("copies another", "another"),
    "plain": ("not memorized", "not memorized"),
    "control": ("control", "control"),
    "unjudged": ("not judged", "other"),
}
"""Label and look of each state."""

BINS = 24
"""Bins of the histogram of similarities: fine enough to show two humps in a few hundred samples."""


def level_panel(prompts: Sequence[Row], found: Verdict) -> BarPanel | None:
    """Show the share of memorized prompts by how often their image was trained on."""
    if not found.levels or found.guidance is None:
        return None
    times = {
        f"level {row['level']}": f"seen {row['repetitions']:,} times"
        for row in prompts
        if row["level"] is not None and row["repetitions"] is not None
    }
    controls = [tally for tally in found.tallies if tally.label == "controls"]
    tallies = [("control", tally, "never") for tally in controls] + [
        ("memorized", tally, times.get(tally.label, tally.label)) for tally in found.levels
    ]
    bars = tuple(
        Bar(
            f"{label} (n\u00a0=\u00a0{tally.estimate.n})",
            "control" if role == "control" else "memorized",
            tally.estimate.value,
            tally.estimate.low,
            tally.estimate.high,
        )
        for role, tally, label in tallies
    )
    return BarPanel(
        "Prompts that reproduce their image, by how often it was seen",
        "times the image was seen in training, an ordinary image once",
        "share of prompts that reproduce it",
        f"Share of prompts at least half of whose samples reproduce their image, by "
        f"{found.measure} above {number(found.threshold)}, g = {found.guidance:g}. "
        "Interval: 95 % Wilson over prompts.",
        bars,
    )


def similarity_panel(
    similarities: Sequence[Row], states: Mapping[Key, State], found: Verdict
) -> CurvePanel | None:
    """Show the distribution of similarities of samples to their prompts' own images."""
    values: dict[tuple[str, int], float] = {}
    for row in similarities:
        if (
            row["relation"] == "own"
            and row["measure"] == found.measure
            and row["guidance"] == found.guidance
            and row["value"] is not None
            and np.isfinite(row["value"])
        ):
            key = row["prompt_id"], row["seed"]
            values[key] = max(values.get(key, -np.inf), row["value"])
    if not values:
        return None
    groups: dict[State, list[float]] = {state: [] for state in GROUPS}
    scale = found.guidance if found.guidance is not None else 0.0
    for (prompt, _), value in values.items():
        groups[states.get((prompt, scale), "unjudged")].append(value)
    edges = np.histogram_bin_edges(list(values.values()), BINS)
    corners = np.repeat(edges, 2)
    series: list[Series] = []
    for state, members in groups.items():
        if members:
            label, role = GROUPS[state]
            share = np.histogram(members, edges)[0] / len(members)
            heights = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
            series.append(
                Series(
                    f"{label} (n = {len(members)})", role, corners, heights,
                    np.zeros_like(heights), heights, corners,
                )
            )  # fmt: skip
    dashed = "There is no threshold to judge them by."
    if found.threshold is not None:
        dashed = f"Dashed: threshold {number(found.threshold)}."
        top = max(part.y.max() for part in series)
        at = np.full(2, found.threshold)
        series.append(Series("threshold", "schedule", at, np.array([0.0, top]), None, None, at))
    return CurvePanel(
        "Similarity of samples to their training image",
        f"similarity ({found.measure}), larger is closer",
        "share of samples",
        f"All ok samples at g = {found.guidance:g}, by the group of their prompt; n counts "
        f"samples. {dashed}",
        tuple(series),
    )


def null_panel(nulls: Sequence[Row], found: Verdict) -> CurvePanel | None:
    """Show the upper tail of the null distribution, and the threshold it gave."""
    for row in nulls:
        if row["measure"] == found.measure and row["n"] and row["q50"] is not None:
            break
    else:
        return None
    places = np.array([row[name] for name in ("q50", "q95", "q99", "q999", "max")])
    beyond = np.array([0.5, 0.05, 0.01, 0.001, 1 / row["n"]])
    order = np.argsort(places, kind="stable")
    series = [
        Series(
            f"unrelated pairs (n = {row['n']:,})", "not memorized", places[order], beyond[order],
            None, None, places[order],
        )
    ]  # fmt: skip
    if row["threshold"] is not None:
        at = np.full(2, row["threshold"])
        ends = np.array([beyond.min(), 0.5])
        series.append(Series("threshold", "schedule", at, ends, None, None, at))
    return CurvePanel(
        "How close unrelated images come",
        f"similarity ({found.measure}), larger is closer",
        "share of pairs above it",
        f"Quantiles of {row['n']:,} pairs of unrelated training images, by {found.measure}; the "
        f"last point is the closest pair. Dashed: threshold {number(row['threshold'])}.",
        tuple(series),
        log_y=True,
    )
