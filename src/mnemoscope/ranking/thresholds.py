r"""A threshold or a weight is set on one half of the prompts and judged on the other.

Formulas::

    combination   Σ w_i·z_i + w_0, w by logistic regression on standardised scores z
    threshold     the k-th smallest score of n negatives, k = ceil((1 - FPR)·(n + 1))
    held_tpr      true positive rate at that threshold on the other half
    held_fpr      false positive rate there

Contents: `fit_logistic`, `calibrated`, `conformal`, `fewest`, `held_out`.

Source: split conformal calibration (Vovk et al. 2005).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from mnemoscope.core.stats import Estimate, wilson
from mnemoscope.ranking.metrics import FPR
from mnemoscope.severity.truth import Truth

HELD = ("held_tpr", "held_fpr")
"""Metrics of a threshold that was set on the other half."""


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
    middle, scale = x[usable].mean(axis=0), x[usable].std(axis=0)
    scaled = (x - middle) / np.where(scale > 0, scale, 1.0)
    weights = fit_logistic(scaled[usable], labels)
    return np.where(fit_on, np.nan, scaled @ weights[:-1] + weights[-1])


def conformal(
    negatives: Float[np.ndarray, "*batch n"], fpr: float = FPR
) -> Float[np.ndarray, "*batch"]:
    """Return the score that a further negative exceeds with a chance of at most `fpr`.

    Args:
        negatives: Scores of the negatives, along the last axis.
        fpr: Wanted false positive rate.

    Returns:
        The k-th smallest score, k = ceil((1 - fpr)·(n + 1)); NaN where n is too small for the rate.

    Source: split conformal calibration (Vovk et al. 2005).
    """
    # What rounding adds must not cost a rank.
    rank = math.ceil((1 - fpr) * (negatives.shape[-1] + 1) - 1e-9)
    if rank > negatives.shape[-1]:
        return np.full(negatives.shape[:-1], math.nan)
    return np.sort(negatives, axis=-1)[..., rank - 1]


def fewest(fpr: float) -> int:
    """Return how many negatives a threshold of that false positive rate needs."""
    return math.ceil(1 / fpr - 1 - 1e-9)


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
    negatives = scores[use & fit_on & ~truth.memorized]
    threshold = float(conformal(negatives))
    if math.isnan(threshold):
        reason = f"{len(negatives)} negatives; a threshold for {FPR:.0%} needs {fewest(FPR)}"
        nothing = Estimate(math.nan, math.nan, math.nan, len(negatives), "held out", reason)
        return nothing, nothing
    found: list[Estimate] = []
    for wanted in (truth.memorized, ~truth.memorized):
        rest = scores[use & ~fit_on & wanted]
        found.append(wilson(int((rest > threshold).sum()), len(rest)))
    return found[0], found[1]
