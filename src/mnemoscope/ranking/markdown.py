"""A ranking in Markdown: the tables of a leaderboard, each a string.

Contents: `leaderboard`, `populations`, `held`, `likeness` of a ranking; `table` and `shown`, which
they are written with.
"""

import math
from collections.abc import Sequence

from mnemoscope.core.stats import Estimate
from mnemoscope.ranking.rank import Ranking
from mnemoscope.ranking.thresholds import HELD


def leaderboard(ranking: Ranking) -> str:
    """Return the leaderboard, best AUC first, as a Markdown table."""
    kinds = {entry.detector: entry.kind for entry in ranking.entries}
    head = ["detector", "kind", "AUC", "TPR at 1 % FPR", "AUC, like length", "r with severity"]
    rows = [
        [
            f"`{name}`",
            kinds[name],
            *(shown(ranking.get(name, m)) for m in ("auc", "tpr", "auc_matched", "severity")),
            f"{ranking.price.get(name, math.nan):.0f}",
            f"{ranking.seconds.get(name, math.nan):.3g}",
        ]
        for name in ranking.names
    ]
    return table([*head, "network calls", "seconds"], rows)


def populations(ranking: Ranking) -> str:
    """Return the AUC of every detector over every population but all, as a Markdown table."""
    found = dict.fromkeys(
        entry.population
        for entry in ranking.entries
        if entry.metric == "auc" and entry.population not in ("all", "judging half")
    )
    counts = {
        entry.population: f"{entry.population} ({entry.memorized} / {entry.others})"
        for entry in ranking.entries
        if entry.metric == "auc"
    }
    rows = [
        [f"`{name}`", *(shown(ranking.get(name, "auc", part)) for part in found)]
        for name in ranking.names
    ]
    return table(["detector", *(counts[part] for part in found)], rows)


def held(ranking: Ranking) -> str:
    """Return what thresholds of one half do on the other, as a Markdown table.

    Where nothing can be told of any detector, one line says why.
    """
    found = [[ranking.get(name, m, "judging half") for m in HELD] for name in ranking.names]
    every = [estimate for pair in found for estimate in pair if estimate is not None]
    reasons = {estimate.reason for estimate in every} - {None}
    if len(reasons) == 1 and not any(math.isfinite(estimate.value) for estimate in every):
        return f"Withheld for all: {reasons.pop()}."
    rows = [
        [f"`{name}`", *map(shown, pair)] for name, pair in zip(ranking.names, found, strict=True)
    ]
    return table(["detector", "true positive rate", "false positive rate"], rows)


def likeness(ranking: Ranking) -> str:
    """Return the detector that ranks prompts most alike, for each, as a Markdown table."""
    both = {**ranking.agreement, **{(b, a): rho for (a, b), rho in ranking.agreement.items()}}
    rows: list[list[str]] = []
    for name in ranking.names:
        others = {b: rho for (a, b), rho in both.items() if a == name and math.isfinite(rho)}
        if others:
            near = max(others, key=lambda other: others[other])
            rows.append([f"`{name}`", f"`{near}`", f"{others[near]:.3f}"])
    return table(["detector", "ranks most like", "Spearman's rho"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    written = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in written)


def shown(estimate: Estimate | None) -> str:
    """Write a number with its interval, or a dash."""
    if estimate is None or not math.isfinite(estimate.value):
        return "–"
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
