r"""A ranking says how well each detector tells memorized prompts from others, and at what price.

Ground truth is measured severity at the guidance scale in question, never a list (see
`severity.truth`). Metrics, each with a percentile bootstrap interval over prompts::

    auc            P(score of a memorized prompt > that of another), ties half; the mean over banks
                   of noise, with an interval over them as well, where there are several
    tpr            true positive rate at the last ROC point with a false positive rate <= 1 %
    auc_matched    auc over pairs of like prompt length
    severity       Spearman correlation of score and mean severity, over all prompts
    held_tpr       tpr on one half of the prompts at the threshold that the other half's negatives
    held_fpr       set for a rate of 1 %; and the rate of false positives it then has

All but the AUC are of the first bank.

Contents: `rank`, `Ranking`, `Entry`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mnemoscope.core.stats import Estimate, bootstrap, matched_auc, spearman
from mnemoscope.ranking.metrics import DRAWS, auc, tpr
from mnemoscope.ranking.thresholds import HELD, calibrated, held_out
from mnemoscope.severity.truth import Truth, require_both


@dataclass(frozen=True)
class Entry:
    """One number of a ranking.

    Attributes:
        detector: The detector.
        kind: "prompt", "pair" or "calibrated".
        metric: The metric (see the module).
        population: The prompts it is over.
        estimate: The number.
        memorized: Memorized prompts among them.
        others: Other prompts among them.
    """

    detector: str
    kind: str
    metric: str
    population: str
    estimate: Estimate
    memorized: int
    others: int


@dataclass(frozen=True)
class Ranking:
    """How detectors compare.

    Attributes:
        entries: Every number.
        price: Network calls a prompt of each detector alone.
        seconds: Seconds a prompt of each detector alone.
        truth: Ground truth.
        agreement: Spearman correlation between the scores of two detectors.
    """

    entries: tuple[Entry, ...]
    price: Mapping[str, float]
    seconds: Mapping[str, float]
    truth: Truth
    agreement: Mapping[tuple[str, str], float]

    def get(self, detector: str, metric: str = "auc", population: str = "all") -> Estimate | None:
        """Return one number; None where there is none."""
        for entry in self.entries:
            if (entry.detector, entry.metric, entry.population) == (detector, metric, population):
                return entry.estimate
        return None

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of table `ranking`."""
        return [
            {
                "detector": entry.detector,
                "kind": entry.kind,
                "metric": entry.metric,
                "population": entry.population,
                "value": _null(entry.estimate.value),
                "low": _null(entry.estimate.low),
                "high": _null(entry.estimate.high),
                "memorized": entry.memorized,
                "others": entry.others,
                "method": entry.estimate.method,
                "reason": entry.estimate.reason or None,
                "network_calls": self.price.get(entry.detector),
                "seconds": self.seconds.get(entry.detector),
            }
            for entry in self.entries
        ]

    @property
    def names(self) -> list[str]:
        """Return the detectors, best AUC first; combinations, judged on one half, are not here."""
        names = dict.fromkeys(entry.detector for entry in self.entries if entry.population == "all")
        return sorted(names, key=lambda name: -_order(self.get(name)))

    def withheld(self) -> dict[str, list[str]]:
        """Return why numbers are missing: the metrics and detectors, by reason."""
        found: dict[str, list[str]] = {}
        for entry in self.entries:
            if not math.isfinite(entry.estimate.value):
                what = f"{entry.metric} of {entry.detector}, {entry.population}"
                found.setdefault(entry.estimate.reason or "not defined", []).append(what)
        return found

    def agreement_rows(self) -> list[dict[str, Any]]:
        """Return the rows of table `agreement`."""
        return [
            {"detector": a, "other": b, "rho": _null(rho)} for (a, b), rho in self.agreement.items()
        ]


def _order(estimate: Estimate | None) -> float:
    return estimate.value if estimate is not None and math.isfinite(estimate.value) else -1.0


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rank(
    scores: Mapping[str, Float[np.ndarray, "... prompt"]],
    truth: Truth,
    *,
    kinds: Mapping[str, str],
    price: Mapping[str, float],
    seconds: Mapping[str, float],
    combine: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Ranking:
    """Rank detectors.

    Args:
        scores: Scores by detector, in the order of the truth; a row a bank where there are several.
        truth: Ground truth.
        kinds: "prompt" or "pair" by detector.
        price: Network calls a prompt by detector.
        seconds: Seconds a prompt by detector.
        combine: Detectors whose scores are combined by weights fitted on one half, by the name of
            the combination; it is judged on the other half alone.
        seed: Seed of the split.

    Returns:
        The ranking.

    Raises:
        InputError: If all judged prompts are of one class.
    """
    require_both(truth)
    half = truth.half(seed)
    entries: list[Entry] = []
    first = {name: np.atleast_2d(values)[0] for name, values in scores.items()}
    for name, values in first.items():
        for population, here in _populations(truth, half):
            every = scores[name]
            entries.append(_entry(name, kinds[name], "auc", population, every, truth, here))
        everyone = truth.judged
        for metric in ("tpr", "auc_matched", "severity"):
            entries.append(_entry(name, kinds[name], metric, "all", values, truth, everyone))
        found = held_out(values, truth, half)
        for metric, estimate in zip(HELD, found, strict=True):
            rest = everyone & ~half
            entries.append(
                Entry(name, kinds[name], metric, "judging half", estimate, *truth.count(rest))
            )
    prices, times = dict(price), dict(seconds)
    for name, parts in (combine or {}).items():
        if not all(part in scores for part in parts):
            continue
        values = calibrated([first[part] for part in parts], truth, half)
        here = truth.judged & ~half
        entries.append(_entry(name, "calibrated", "auc", "judging half", values, truth, here))
        prices[name] = max(price[part] for part in parts)
        times[name] = max(seconds[part] for part in parts)
    agreement = {
        (a, b): _agreement(first[a], first[b])
        for at, a in enumerate(scores)
        for b in list(scores)[at + 1 :]
    }
    return Ranking(tuple(entries), prices, times, truth, agreement)


def _agreement(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(spearman(a[both], b[both]))


def _populations(
    truth: Truth, half: Bool[np.ndarray, " prompt"]
) -> list[tuple[str, Bool[np.ndarray, " prompt"]]]:
    """Return name and members of every population a detector is judged on."""
    judged, negative = truth.judged, truth.judged & ~truth.memorized
    found = [("all", judged), ("judging half", judged & ~half)]
    for level in np.unique(truth.level[np.isfinite(truth.level)]):
        positives = judged & truth.memorized & (truth.level == level)
        if positives.any():
            found.append((f"level {level:.0f} against others", positives | negative))
    kind, family = np.array(truth.kind), np.array(truth.family)
    for name in sorted(set(truth.kind) - {""}):
        found.append((f"{name} captions", judged & (kind == name)))
    for name in sorted(set(truth.family) - {""}):
        positives = judged & truth.memorized & (family == name)
        if positives.any():
            found.append((f"{name} against others", positives | negative))
    return found


def _entry(
    name: str,
    kind: str,
    metric: str,
    population: str,
    values: Float[np.ndarray, "*bank prompt"],
    truth: Truth,
    here: Bool[np.ndarray, " prompt"],
) -> Entry:
    use = here & np.isfinite(np.atleast_2d(values)).all(axis=0)
    memorized = truth.memorized[use]
    match metric:
        case "auc":
            estimate = auc(values[..., use], memorized)
        case "tpr":
            estimate = tpr(values[use], memorized)
        case "auc_matched":
            estimate = matched_auc(values[use], memorized, truth.tokens[use], within=1.0)
        case _:
            estimate = bootstrap(
                spearman, values[use], truth.severity[use], draws=DRAWS, name="Spearman's rho"
            )
    return Entry(name, kind, metric, population, estimate, *truth.count(use))
