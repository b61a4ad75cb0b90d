r"""A ranking says how well each detector tells memorized prompts from others, and at what price.

Ground truth is measured severity at the guidance scale in question, never a list::

    memorized       share of a prompt's samples above the threshold of an unrelated pair >= cut
    not memorized   share < cut, and no sample is a copy of any other known training image
    left out        prompts that reproduce somebody else's image, or whose severity is unknown

A detector that flags the last kind would be right, so they count neither way. Metrics, each with a
percentile bootstrap interval over prompts::

    auc            P(score of a memorized prompt > that of another), ties half
    tpr            true positive rate at the last ROC point with a false positive rate <= 1 %
    auc_matched    auc over pairs of like prompt length
    severity       Spearman correlation of score and mean severity, over all prompts
    held_tpr       tpr on one half of the prompts at the threshold that the other half's negatives
    held_fpr       set for a rate of 1 %; and the rate of false positives it then has

Contents: `Truth`, `truth_of`, `rank`, `calibrated`, `difference`, `Ranking`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mnemoscope.errors import InputError
from mnemoscope.severity.grade import MASKED, Tables
from mnemoscope.core.stats import (
    MINIMUM,
    Estimate,
    bootstrap,
    matched_auc,
    spearman,
    tpr_at_fpr,
    wilson,
)

FPR = 0.01
"""False positive rate that true positive rates are quoted at."""

HELD = ("held_tpr", "held_fpr")
"""Metrics of a threshold that was set on the other half."""

DRAWS = 1000
"""Bootstrap resamples; the ends of an interval are then good to about a tenth of its width."""


@dataclass(frozen=True)
class Truth:
    """What is known of each prompt, in the order of the scores.

    Attributes:
        prompt_id: The prompts.
        memorized: Whether each is memorized.
        judged: Whether it counts; the others are left out.
        severity: Mean severity; NaN where unknown.
        tokens: Length in tokens.
        level: Repetition level of a planted prompt; NaN elsewhere.
        kind: Kind of caption, "" where unknown.
        family: Family, "" where unknown.
        cut: Share of samples above threshold from which a prompt counts as memorized.
        guidance: Guidance scale of the samples.
        measure: Similarity measure.
    """

    prompt_id: tuple[str, ...]
    memorized: Bool[np.ndarray, " prompt"]
    judged: Bool[np.ndarray, " prompt"]
    severity: Float[np.ndarray, " prompt"]
    tokens: Float[np.ndarray, " prompt"]
    level: Float[np.ndarray, " prompt"]
    kind: tuple[str, ...]
    family: tuple[str, ...]
    cut: float
    guidance: float
    measure: str

    def half(self, seed: int = 0) -> Bool[np.ndarray, " prompt"]:
        """Return which prompts set thresholds and weights; the others judge.

        The half follows from the prompt's name and the seed alone, so that it is the same whatever
        other prompts there are.
        """
        digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in self.prompt_id]
        return np.array([digest[0] % 2 == 0 for digest in digests], dtype=bool)


def truth_of(run: Tables, *, guidance: float, measure: str, cut: float = 0.5) -> Truth:
    """Read the ground truth from a run's severity.

    Args:
        run: A run with the tables prompts and severity.
        guidance: Guidance scale.
        measure: The primary similarity measure; a template counts by its masked form as well.
        cut: Share of samples above threshold from which a prompt counts as memorized.

    Returns:
        The truth about the run's prompts, in their order.

    Raises:
        InputError: If the cut is not in (0, 1], or the run has no such severity.
    """
    if not 0 < cut <= 1:
        raise InputError(f"cut {cut} given; expected a share of samples in (0, 1]")
    rows = {
        (row["prompt_id"], row["measure"]): row
        for row in run.table("severity").to_pylist()
        if row["guidance"] == guidance
    }
    prompts = run.table("prompts").to_pylist()
    if not any((p["prompt_id"], measure) in rows for p in prompts):
        held = sorted({row["guidance"] for row in run.table("severity").to_pylist()})
        raise InputError(
            f"the run holds no severity by {measure!r} at guidance {guidance:g}; "
            f"of guidance it holds {held}"
        )
    memorized: list[bool] = []
    judged: list[bool] = []
    severity: list[float] = []
    for prompt in prompts:
        own = rows.get((prompt["prompt_id"], measure), {})
        masked = rows.get((prompt["prompt_id"], MASKED), {})
        shares = [r["share"] for r in (own, masked) if r.get("share") is not None]
        yes = max(shares, default=0.0) >= cut
        elsewhere = own.get("grade") == "retrieved verbatim"
        memorized.append(yes)
        judged.append(yes or (bool(shares) and not elsewhere))
        severity.append(_float(own.get("mean")))
    return Truth(
        tuple(p["prompt_id"] for p in prompts),
        np.array(memorized, dtype=bool),
        np.array(judged, dtype=bool),
        np.array(severity),
        np.array([float(p["tokens"]) for p in prompts]),
        np.array([_float(p["level"]) for p in prompts]),
        tuple(p["kind"] or "" for p in prompts),
        tuple(p["family"] or "" for p in prompts),
        cut,
        guidance,
        measure,
    )


def require_both(truth: Truth) -> None:
    """Check that there are memorized prompts and others.

    Raises:
        InputError: If all judged prompts are of one class.
    """
    yes, no = _count(truth, truth.judged)
    if not yes or not no:
        raise InputError(
            f"{yes} memorized prompts and {no} others at a cut of {truth.cut:g}; "
            "a ranking needs both classes: add prompts, or another cut"
        )


def _float(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _above(
    scores: Float[np.ndarray, " n"], memorized: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "positive negative"]:
    """Return 1 where a memorized prompt scores above another, 1/2 where they tie, else 0."""
    apart = scores[memorized][:, None] - scores[~memorized][None]
    return (np.sign(apart) + 1) / 2


def _over_pairs(
    pairs: Float[np.ndarray, "positive negative"], memorized: Bool[np.ndarray, " n"], name: str
) -> Estimate:
    """Average over pairs of memorized and other prompts, with a bootstrap interval over prompts.

    A resample draws prompts, so it weighs a pair by how often both of its prompts were drawn.
    """
    n = len(memorized)
    method = f"{name}, percentile bootstrap over prompts, 95%, {DRAWS} draws"
    if not pairs.size:
        yes = int(memorized.sum())
        return Estimate(
            math.nan, math.nan, math.nan, n, method, f"{yes} positives and {n - yes} negatives"
        )
    value = float(pairs.mean())
    if n < MINIMUM:
        reason = f"{n} prompts; an interval needs {MINIMUM}"
        return Estimate(value, math.nan, math.nan, n, method, reason)
    picks = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    drawn = np.stack([np.bincount(pick, minlength=n) for pick in picks]).astype(np.float64)
    yes, no = drawn[:, memorized], drawn[:, ~memorized]
    weight = yes.sum(1) * no.sum(1)
    sample = (((yes @ pairs) * no).sum(1) / np.where(weight > 0, weight, 1))[weight > 0]
    if len(sample) < DRAWS / 2:
        reason = "most resamples hold one class only"
        return Estimate(value, math.nan, math.nan, n, method, reason)
    low, high = np.quantile(sample, (0.025, 0.975))
    return Estimate(value, float(low), float(high), n, method)


def auc(scores: Float[np.ndarray, " n"], memorized: Bool[np.ndarray, " n"]) -> Estimate:
    """Measure the AUC with its interval over prompts.

    Source: Hanley & McNeil 1982; Efron 1979.
    """
    return _over_pairs(_above(scores, memorized), memorized, "AUC, ties half")


def difference(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    memorized: Bool[np.ndarray, " n"],
) -> Estimate:
    """Measure by how much the AUC of one detector exceeds another's, on the same prompts.

    Prompts that either detector does not score are left out.

    Source: paired bootstrap over prompts.
    """
    use = np.isfinite(a) & np.isfinite(b)
    apart = _above(a[use], memorized[use]) - _above(b[use], memorized[use])
    return _over_pairs(apart, memorized[use], "AUC difference")


def tpr(scores: Float[np.ndarray, " n"], memorized: Bool[np.ndarray, " n"]) -> Estimate:
    """Measure the true positive rate at a false positive rate of 1 %, with interval over prompts.

    Returns:
        Withheld, with the reason, where there are fewer than 100 negatives.

    Source: `mnemoscope.core.stats.tpr_at_fpr` with `bootstrap`.
    """
    point = tpr_at_fpr(scores, memorized, FPR)
    if not math.isfinite(point.value):
        return point

    def each(
        values: Float[np.ndarray, "*batch n"], labels: Float[np.ndarray, "*batch n"]
    ) -> Float[np.ndarray, "*batch"]:
        rows = zip(np.atleast_2d(values), np.atleast_2d(labels), strict=True)
        found = np.array([_tpr_one(v, y > 0.5) for v, y in rows])
        return found if values.ndim > 1 else np.asarray(found[0])

    return bootstrap(each, scores, memorized.astype(np.float64), draws=DRAWS, name="TPR at 1 % FPR")


def _tpr_one(values: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    negatives = np.sort(values[~labels])[::-1]
    if not labels.any() or not len(negatives):
        return math.nan
    allowed = int(np.floor(FPR * len(negatives) + 1e-9))
    return float((values[labels] > negatives[allowed]).mean())


def fit_logistic(
    features: Float[np.ndarray, "n feature"], labels: Bool[np.ndarray, " n"], ridge: float = 1.0
) -> Float[np.ndarray, " weight"]:
    """Fit a logistic regression by Newton's method.

    Args:
        features: Standardised features.
        labels: Classes.
        ridge: Penalty on the squared weights, the intercept excepted; in units of one prompt.

    Returns:
        Weights, the intercept last.

    Source: iteratively reweighted least squares.
    """
    x = np.column_stack([features, np.ones(len(features))])
    penalty = np.diag([ridge] * features.shape[1] + [1e-9])
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (p - labels) + penalty @ weights
        bend = (x * (p * (1 - p))[:, None]).T @ x + penalty
        step = np.linalg.solve(bend, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def calibrated(
    scores: Sequence[Float[np.ndarray, " prompt"]],
    truth: Truth,
    fit_on: Bool[np.ndarray, " prompt"],
) -> Float[np.ndarray, " prompt"]:
    """Combine scores with weights fitted on one half of the prompts.

    Args:
        scores: The scores to combine.
        truth: Ground truth.
        fit_on: Prompts whose labels may be looked at.

    Returns:
        The combined score of every prompt outside `fit_on`; NaN within it, for there it would be
        judged on what it was fitted on.

    Source: ours; logistic regression on standardised scores.
    """
    x = np.column_stack(scores)
    usable = fit_on & truth.judged & np.isfinite(x).all(axis=1)
    labels = truth.memorized[usable]
    if labels.sum() < 3 or (~labels).sum() < 3:
        return np.full(len(x), np.nan)
    middle, spread = x[usable].mean(axis=0), x[usable].std(axis=0)
    scaled = (x - middle) / np.where(spread > 0, spread, 1.0)
    weights = fit_logistic(scaled[usable], labels)
    return np.where(fit_on, np.nan, scaled @ weights[:-1] + weights[-1])


def held_out(
    scores: Float[np.ndarray, " prompt"], truth: Truth, fit_on: Bool[np.ndarray, " prompt"]
) -> tuple[Estimate, Estimate]:
    """Set a threshold on one half and judge it on the other.

    Returns:
        True and false positive rate on the other half, each with its Wilson interval; withheld
        where the first half has too few negatives for the rate.

    Source: split conformal calibration (Vovk et al. 2005).
    """
    use = truth.judged & np.isfinite(scores)
    negatives = np.sort(scores[use & fit_on & ~truth.memorized])
    rank = math.ceil((1 - FPR) * (len(negatives) + 1))
    if rank > len(negatives):
        reason = f"{len(negatives)} negatives; a threshold for {FPR:.0%} needs {1 / FPR - 1:.0f}"
        nothing = Estimate(math.nan, math.nan, math.nan, len(negatives), "held out", reason)
        return nothing, nothing
    threshold = negatives[rank - 1]
    found: list[Estimate] = []
    for wanted in (truth.memorized, ~truth.memorized):
        rest = scores[use & ~fit_on & wanted]
        found.append(wilson(int((rest > threshold).sum()), len(rest)))
    return found[0], found[1]


@dataclass(frozen=True)
class Line:
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
        lines: Every number.
        price: Network calls a prompt of each detector alone.
        seconds: Seconds a prompt of each detector alone.
        truth: Ground truth.
        agreement: Spearman correlation between the scores of two detectors.
    """

    lines: tuple[Line, ...]
    price: Mapping[str, float]
    seconds: Mapping[str, float]
    truth: Truth
    agreement: Mapping[tuple[str, str], float]

    def get(self, detector: str, metric: str = "auc", population: str = "all") -> Estimate | None:
        """Return one number; None where there is none."""
        for line in self.lines:
            if (line.detector, line.metric, line.population) == (detector, metric, population):
                return line.estimate
        return None

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of table `ranking`."""
        return [
            {
                "detector": line.detector,
                "kind": line.kind,
                "metric": line.metric,
                "population": line.population,
                "value": _null(line.estimate.value),
                "low": _null(line.estimate.low),
                "high": _null(line.estimate.high),
                "memorized": line.memorized,
                "others": line.others,
                "method": line.estimate.method,
                "reason": line.estimate.reason or None,
                "network_calls": self.price.get(line.detector),
                "seconds": self.seconds.get(line.detector),
            }
            for line in self.lines
        ]

    @property
    def names(self) -> list[str]:
        """Return the detectors, best AUC first; combinations, judged on one half, are not here."""
        names = dict.fromkeys(line.detector for line in self.lines if line.population == "all")
        return sorted(names, key=lambda name: -_order(self.get(name)))

    def markdown(self) -> str:
        """Return the leaderboard, best AUC first, as a Markdown table."""
        kinds = {line.detector: line.kind for line in self.lines}
        head = ["detector", "kind", "AUC", "TPR at 1 % FPR", "AUC, like length", "r with severity"]
        rows = [
            [
                f"`{name}`",
                kinds[name],
                *(shown(self.get(name, m)) for m in ("auc", "tpr", "auc_matched", "severity")),
                f"{self.price.get(name, math.nan):.0f}",
                f"{self.seconds.get(name, math.nan):.3g}",
            ]
            for name in self.names
        ]
        return table([*head, "network calls", "seconds"], rows)

    def populations(self) -> str:
        """Return the AUC of every detector over every population but all, as a Markdown table."""
        found = dict.fromkeys(
            line.population
            for line in self.lines
            if line.metric == "auc" and line.population not in ("all", "judging half")
        )
        counts = {
            line.population: f"{line.population} ({line.memorized} / {line.others})"
            for line in self.lines
            if line.metric == "auc"
        }
        rows = [
            [f"`{name}`", *(shown(self.get(name, "auc", part)) for part in found)]
            for name in self.names
        ]
        return table(["detector", *(counts[part] for part in found)], rows)

    def held(self) -> str:
        """Return what thresholds of one half do on the other, as a Markdown table.

        Where nothing can be told of any detector, one line says why.
        """
        found = [[self.get(name, m, "judging half") for m in HELD] for name in self.names]
        every = [estimate for pair in found for estimate in pair if estimate is not None]
        reasons = {estimate.reason for estimate in every} - {None}
        if len(reasons) == 1 and not any(math.isfinite(estimate.value) for estimate in every):
            return f"Withheld for all: {reasons.pop()}."
        rows = [
            [f"`{name}`", *map(shown, pair)] for name, pair in zip(self.names, found, strict=True)
        ]
        return table(["detector", "true positive rate", "false positive rate"], rows)

    def withheld(self) -> dict[str, list[str]]:
        """Return why numbers are missing: the metrics and detectors, by reason."""
        found: dict[str, list[str]] = {}
        for line in self.lines:
            if not math.isfinite(line.estimate.value):
                what = f"{line.metric} of {line.detector}, {line.population}"
                found.setdefault(line.estimate.reason or "not defined", []).append(what)
        return found

    def likeness(self) -> str:
        """Return the detector that ranks prompts most alike, for each, as a Markdown table."""
        both = {**self.agreement, **{(b, a): rho for (a, b), rho in self.agreement.items()}}
        rows: list[list[str]] = []
        for name in self.names:
            others = {b: rho for (a, b), rho in both.items() if a == name and math.isfinite(rho)}
            if others:
                near = max(others, key=lambda other: others[other])
                rows.append([f"`{name}`", f"`{near}`", f"{others[near]:.3f}"])
        return table(["detector", "ranks most like", "Spearman's rho"], rows)

    def agreement_rows(self) -> list[dict[str, Any]]:
        """Return the rows of table `agreement`."""
        return [
            {"detector": a, "other": b, "rho": _null(rho)} for (a, b), rho in self.agreement.items()
        ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _order(estimate: Estimate | None) -> float:
    return estimate.value if estimate is not None and math.isfinite(estimate.value) else -1.0


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown(estimate: Estimate | None) -> str:
    """Write a number with its interval, or a dash."""
    if estimate is None or not math.isfinite(estimate.value):
        return "–"
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def rank(
    scores: Mapping[str, Float[np.ndarray, " prompt"]],
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
        scores: Scores by detector, in the order of the truth.
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
    lines: list[Line] = []
    for name, values in scores.items():
        for population, here in _populations(truth, half):
            lines.append(_line(name, kinds[name], "auc", population, values, truth, here))
        everyone = truth.judged
        for metric in ("tpr", "auc_matched", "severity"):
            lines.append(_line(name, kinds[name], metric, "all", values, truth, everyone))
        found = held_out(values, truth, half)
        for metric, estimate in zip(HELD, found, strict=True):
            rest = everyone & ~half
            lines.append(
                Line(name, kinds[name], metric, "judging half", estimate, *_count(truth, rest))
            )
    prices, times = dict(price), dict(seconds)
    for name, parts in (combine or {}).items():
        if not all(part in scores for part in parts):
            continue
        values = calibrated([scores[part] for part in parts], truth, half)
        here = truth.judged & ~half
        lines.append(_line(name, "calibrated", "auc", "judging half", values, truth, here))
        prices[name] = max(price[part] for part in parts)
        times[name] = max(seconds[part] for part in parts)
    agreement = {
        (a, b): _agreement(scores[a], scores[b])
        for at, a in enumerate(scores)
        for b in list(scores)[at + 1 :]
    }
    return Ranking(tuple(lines), prices, times, truth, agreement)


def _agreement(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(spearman(a[both], b[both]))


def _count(truth: Truth, here: Bool[np.ndarray, " prompt"]) -> tuple[int, int]:
    return int((here & truth.memorized).sum()), int((here & ~truth.memorized).sum())


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


def _line(
    name: str,
    kind: str,
    metric: str,
    population: str,
    values: Float[np.ndarray, " prompt"],
    truth: Truth,
    here: Bool[np.ndarray, " prompt"],
) -> Line:
    use = here & np.isfinite(values)
    memorized = truth.memorized[use]
    match metric:
        case "auc":
            estimate = auc(values[use], memorized)
        case "tpr":
            estimate = tpr(values[use], memorized)
        case "auc_matched":
            estimate = matched_auc(values[use], memorized, truth.tokens[use], within=1.0)
        case _:
            estimate = bootstrap(
                spearman, values[use], truth.severity[use], draws=DRAWS, name="Spearman's rho"
            )
    return Line(name, kind, metric, population, estimate, *_count(truth, use))
