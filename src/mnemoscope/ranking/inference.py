r"""Dataset inference asks whether a set of items as a whole was trained on.

Formulas, for features of n items in question and of m held-out ones that were not trained on::

    s_i   = score of item i by a logistic regression fitted on the other folds alone
    t     = (mean s - mean s') / sqrt(var s / n + var s' / m)      s' of the held-out
    p     = (1 + #{t of permuted labels >= t}) / (1 + number of permutations)

The statistic is Welch's. His distribution does not hold for it: scores of different folds share the
rows they were fitted on, so on sets that are alike it spreads by 1.4 in place of 1, and Welch's p
lies below 0.01 in 2 to 3 of 100. Labels are dealt out anew instead, and everything is fitted again,
which is exact.

Held-out items must be like those in question in everything but training; whatever else sets them
apart (their source, their resolution, their captions' style) is found as well, and counts as if it
were training. No test can tell the two apart.

Contents: `Inference`, `inferred`.

Source: after Dubiński et al. 2025 (CVPR), arXiv 2411.12858, CDI, which splits once; Welch 1947;
Fisher 1935 (permutations). Cross-fitting: ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mnemoscope.errors import InputError
from mnemoscope.ranking.thresholds import fit_logistic

FOLDS = 5
FEWEST = 20
"""Fewest items of either kind: with fewer, a fold has too few to fit on."""
DRAWS = 499
"""Permutations of the labels; the smallest p is 0.002."""


@dataclass(frozen=True)
class Inference:
    """Whether a set was trained on.

    Attributes:
        p: One-sided p; small says that it was. NaN where it cannot be given.
        t: Welch's statistic.
        items: Items in question.
        held_out: Held-out items.
        reason: Why p is missing; empty otherwise.
    """

    p: float
    t: float
    items: int
    held_out: int
    reason: str = ""


def inferred(
    items: Float[np.ndarray, "item feature"],
    held_out: Float[np.ndarray, "other feature"],
    seed: int = 0,
    draws: int = DRAWS,
) -> Inference:
    """Test whether items were trained on.

    Args:
        items: Membership scores of the items in question, a column a score; rows that are not
            finite are left out.
        held_out: The same of items that were not trained on.
        seed: Seed of folds and permutations.
        draws: Permutations.

    Raises:
        InputError: If there is no feature.
    """
    if not items.shape[1]:
        raise InputError("no membership score given; dataset inference takes at least one")
    ours, theirs = (part[np.isfinite(part).all(axis=1)] for part in (items, held_out))
    n, m = len(ours), len(theirs)
    if min(n, m) < FEWEST:
        reason = f"{n} items and {m} held out could be scored; it takes {FEWEST} of each"
        return Inference(math.nan, math.nan, n, m, reason)
    features = np.concatenate([ours, theirs])
    labels = np.arange(n + m) < n
    rng = np.random.default_rng(seed)
    t = _welch(features, labels, rng)
    if math.isnan(t):
        return Inference(t, t, n, m, "all scores are the same")
    chance = [_welch(features, rng.permutation(labels), rng) for _ in range(draws)]
    beyond = sum(not other < t for other in chance)
    return Inference((1 + beyond) / (1 + draws), t, n, m)


def _welch(
    features: Float[np.ndarray, "row feature"],
    labels: Bool[np.ndarray, " row"],
    rng: np.random.Generator,
) -> float:
    """Return Welch's statistic of cross-fitted scores; NaN where all are the same."""
    scores = _crossed(features, labels, rng)
    a, b = scores[labels], scores[~labels]
    variance = a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)
    return float((a.mean() - b.mean()) / math.sqrt(variance)) if variance > 0 else math.nan


def _crossed(
    features: Float[np.ndarray, "row feature"],
    labels: Bool[np.ndarray, " row"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " row"]:
    """Score every row by what was fitted on the other folds, each fold centred on itself."""
    fold = np.empty(len(labels), dtype=np.intp)
    for kind in (labels, ~labels):
        fold[kind] = rng.permutation(int(kind.sum())) % FOLDS
    scores = np.empty(len(labels))
    for k in range(FOLDS):
        fit, here = fold != k, fold == k
        middle, scale = features[fit].mean(axis=0), features[fit].std(axis=0)
        scaled = (features - middle) / np.where(scale > 0, scale, 1.0)
        weights = fit_logistic(scaled[fit], labels[fit])
        found = scaled[here] @ weights[:-1]
        # Each fold has a fit of its own, whose level says nothing.
        scores[here] = found - found.mean()
    return scores
