"""Panels of severity: how often prompts of each kind reproduce an image, and how the bar was set.

Contents: `level_panel`, `similarity_panel`, `null_panel`; each None where the run lacks its data.
"""

from collections.abc import Sequence

import numpy as np

from mnemoscope.core.panels import Bar, BarPanel, CurvePanel, Role, Series
from mnemoscope.reporting.text import number
from mnemoscope.reporting.verdict import Row, Verdict
from mnemoscope.severity.truth import NOT_JUDGED

NOT_JUDGED_LABEL = "not judged"
ROLES: dict[str, Role] = {
    "memorized": "memorized", "not memorized": "not memorized", "control": "control"
}  # fmt: skip
"""Looks of the groups; the others have none of their own."""

BINS = 24
"""Bins of the histogram of similarities: fine enough to show two humps in a few hundred samples."""


def level_panel(found: Verdict) -> BarPanel | None:
    """Show the share of memorized prompts by how often their image was planted."""
    if not found.levels or found.guidance is None:
        return None
    controls = [tally for tally in found.tallies if tally.label == "controls"]
    tallies = [("control", tally, "never") for tally in controls] + [
        ("memorized", tally, tally.label) for tally in found.levels
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
        "Prompts that reproduce their image, by repetition level",
        "repetition level",
        "share of prompts that reproduce it",
        f"Share of prompts at least half of whose samples reproduce their image, by "
        f"{found.measure} above {number(found.threshold)}, g = {found.guidance:g}. "
        "Interval: 95 % Wilson over prompts.",
        bars,
    )


def similarity_panel(
    prompts: Sequence[Row], similarities: Sequence[Row], found: Verdict
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
    controls = {row["prompt_id"] for row in prompts if row["group"] == "control"}
    groups: dict[str, list[float]] = {
        name: [] for name in ("memorized", "not memorized", "control", NOT_JUDGED_LABEL)
    }
    for (prompt, _), value in values.items():
        memorized = found.judged.get(prompt, NOT_JUDGED).memorized
        if memorized is None:
            groups[NOT_JUDGED_LABEL].append(value)
        elif memorized:
            groups["memorized"].append(value)
        else:
            groups["control" if prompt in controls else "not memorized"].append(value)
    edges = np.histogram_bin_edges(list(values.values()), BINS)
    corners = np.repeat(edges, 2)
    series: list[Series] = []
    for label, members in groups.items():
        if members:
            role: Role = ROLES.get(label, "other")
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
        "share of unrelated pairs above it",
        f"Quantiles of {row['n']:,} pairs of unrelated training images, by {found.measure}; the "
        f"last point is the closest pair. Dashed: threshold {number(row['threshold'])}.",
        tuple(series),
        log_y=True,
    )
