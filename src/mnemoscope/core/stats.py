r"""A statistic is a number with the interval, the count and, where it cannot be given, the reason.

Formulas::

    pearson   r = Σ(x - x̄)(y - ȳ) / sqrt(Σ(x - x̄)²·Σ(y - ȳ)²)
    spearman  pearson of the mid-ranks
    partial   (r_xy - r_xz·r_yz) / sqrt((1 - r_xz²)(1 - r_yz²))
    AUC       P(positive > negative) + P(positive = negative) / 2
    Wilson    (p + z²/2n ± z·sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)
    contrast  statistic - null, the null being the same statistic of swapped data (one resample
              draws the same units for both) or its mean over permutations of the labels

Nothing here ever answers 0 for "cannot tell": too few, constant or non-finite data give NaN and a
reason. The array functions reduce the last axis, so that a bootstrap is one call on an array of
resamples. Pairs with a value that is not finite are left out before anything is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite, nan, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mnemoscope.errors import InputError

MINIMUM = 5
"""Fewest units an interval is given for: with fewer, resamples take too few values."""
FLAT = 1e-24
"""Squares about the mean, over squares, below which a row is constant."""

Statistic = Callable[..., "np.ndarray | np.floating"]
"""A function of equally long arrays that reduces their last axis."""


@dataclass(frozen=True)
class Estimate:
    """A number and how far to trust it.

    Attributes:
        value: The number; NaN where it cannot be given.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end of the interval; NaN where there is none.
        n: Units it rests on.
        method: How value and interval were made.
        reason: Why value or interval is missing; empty where nothing is.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    reason: str = ""


@dataclass(frozen=True)
class Contrast:
    """A statistic beside what it is where there is nothing to find.

    Attributes:
        value: The statistic.
        null: The same under the null.
        difference: The statistic less the null.
        kind: What the null is.
    """

    value: Estimate
    null: Estimate
    difference: Estimate
    kind: str

    def beats(self, sign: int) -> bool | None:
        """Tell whether the statistic lies beyond its null.

        Args:
            sign: 1 where it should be larger, -1 where it should be smaller.

        Returns:
            Whether the interval of the difference is on that side of 0; None without an interval.
        """
        end = self.difference.low if sign > 0 else -self.difference.high
        return end > 0 if isfinite(end) else None


def pearson(
    x: Float[np.ndarray, "*batch n"], y: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch"]:
    """Correlate along the last axis.

    Returns:
        Pearson's r; NaN where either side is constant or has fewer than 3 values.

    Source: Pearson 1895.
    """
    if x.shape[-1] < 3:
        return np.full(x.shape[:-1], np.nan)
    left = x - x.mean(-1, keepdims=True)
    right = y - y.mean(-1, keepdims=True)
    xx, yy, xy = _dot(left, left), _dot(right, right), _dot(left, right)
    # A constant row leaves rounding of the order of its values behind, not an exact 0.
    flat = (xx <= FLAT * _dot(x, x)) | (yy <= FLAT * _dot(y, y))
    return np.where(flat, np.nan, xy / np.sqrt(np.where(flat, 1.0, xx * yy)))


def _dot(
    a: Float[np.ndarray, "*batch n"], b: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch"]:
    return np.asarray(np.einsum("...n,...n->...", a, b))


def ranks(x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch n"]:
    """Rank along the last axis, from 1; equal values share the mean of their ranks.

    Source: mid-ranks, as in Spearman's rho and the Mann-Whitney statistic.
    """
    rows = x.reshape(-1, x.shape[-1])
    values, codes = np.unique(rows, return_inverse=True)
    codes = codes.reshape(rows.shape)
    # Counting each row's values turns the ranks of all resamples into one cumulative sum.
    flat = (codes + len(values) * np.arange(len(rows))[:, None]).ravel()
    counts = np.bincount(flat, minlength=len(rows) * len(values)).reshape(len(rows), -1)
    middle = counts.cumsum(-1) - (counts - 1) / 2
    return np.take_along_axis(middle, codes, -1).reshape(x.shape)


def spearman(
    x: Float[np.ndarray, "*batch n"], y: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch"]:
    """Correlate ranks along the last axis.

    Returns:
        Spearman's rho; NaN where either side is constant or has fewer than 3 values.

    Source: Spearman 1904, with mid-ranks.
    """
    return pearson(ranks(x), ranks(y))


def partial(
    x: Float[np.ndarray, "*batch n"],
    y: Float[np.ndarray, "*batch n"],
    given: Float[np.ndarray, "*batch n"],
) -> Float[np.ndarray, "*batch"]:
    """Correlate what a straight line in a third quantity leaves of each side.

    Returns:
        The partial correlation of x and y given the third; NaN where that explains a side wholly.

    Source: Yule 1907.
    """
    xy, xz, yz = pearson(x, y), pearson(x, given), pearson(y, given)
    free = (1 - xz**2) * (1 - yz**2)
    usable = free > 1e-12
    return np.where(usable, (xy - xz * yz) / np.sqrt(np.where(usable, free, 1.0)), np.nan)


def bootstrap(
    statistic: Statistic,
    *columns: Float[np.ndarray, " _"],
    clusters: Shaped[np.ndarray, " _"] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    minimum: int = MINIMUM,
    name: str = "",
) -> Estimate:
    """Evaluate a statistic with a percentile bootstrap interval.

    Args:
        statistic: Reduces the last axis of its columns (see `Statistic`).
        *columns: Equally long data; rows with a value that is not finite are left out.
        clusters: Label of each row (a prompt, say); whole clusters are drawn, since the rows of one
            are not independent. Each row is its own where not given.
        draws: Resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling.
        minimum: Fewest units (rows or clusters) an interval is given for.
        name: What the statistic is called in `Estimate.method`.

    Returns:
        The statistic of all rows, its interval, and the number of units drawn.

    Raises:
        InputError: If the columns differ in length.

    Source: Efron 1979; clusters as in Davison & Hinkley 1997, section 3.8.
    """
    lengths = {len(column) for column in (*columns, *(() if clusters is None else (clusters,)))}
    if len(lengths) != 1:
        raise InputError(f"columns of lengths {sorted(lengths)}; all must have one row a unit")
    keep = np.all([np.isfinite(column) for column in columns], axis=0)
    data = [np.asarray(column, dtype=np.float64)[keep] for column in columns]
    rows = int(keep.sum())
    labels = np.arange(rows)
    if clusters is not None:
        labels = np.unique(clusters[keep], return_inverse=True)[1]
    units = int(labels.max()) + 1 if rows else 0
    whose = "units" if clusters is None else "clusters"
    called = name or getattr(statistic, "__name__", "statistic")
    method = f"{called}, percentile bootstrap over {whose}, {level:.0%}, {draws} draws"
    if not rows:
        return Estimate(nan, nan, nan, 0, method, "no finite data")
    value = float(statistic(*data))
    if not isfinite(value):
        reason = f"constant or fewer than 3 values (n = {units})"
        return Estimate(nan, nan, nan, units, method, reason)

    def resampled(picks: Int[np.ndarray, "draw unit"]) -> "np.ndarray | np.floating":
        if clusters is None:
            return statistic(*(column[picks] for column in data))
        members = [np.flatnonzero(labels == unit) for unit in range(units)]
        drawn = (np.concatenate([members[unit] for unit in pick]) for pick in picks)
        return np.array([float(statistic(*(column[i] for column in data))) for i in drawn])

    return interval(
        value, resampled, units,
        method=method, whose=whose, draws=draws, level=level, seed=seed, minimum=minimum,
    )  # fmt: skip


def interval(
    value: float,
    resampled: Callable[..., "np.ndarray | np.floating"],
    units: int,
    *,
    method: str,
    whose: str = "units",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    minimum: int = MINIMUM,
) -> Estimate:
    """Give a number its percentile bootstrap interval.

    Args:
        value: The number, of all units.
        resampled: The number of each resample, from the units that each drew, a row a resample; not
            finite where a resample has none.
        units: Units that are drawn.
        method: How value and interval are made.
        whose: What a unit is called.
        draws: Resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling.
        minimum: Fewest units an interval is given for.

    Source: Efron 1979.
    """
    if units < minimum:
        reason = f"{units} {whose}; an interval needs {minimum}"
        return Estimate(value, nan, nan, units, method, reason)
    sample = np.asarray(resampled(_picks(units, draws, seed)), dtype=np.float64)
    sample = sample[np.isfinite(sample)]
    # Resamples without a value are dropped; when most are, so is the interval.
    if len(sample) < draws / 2:
        return Estimate(value, nan, nan, units, method, "undefined on most resamples")
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), units, method)


@lru_cache(4)
def _picks(units: int, draws: int, seed: int) -> Int[np.ndarray, "draw unit"]:
    """Return the units that each resample draws; statistics of the same units share them."""
    picks = np.random.default_rng(seed).integers(units, size=(draws, units))
    picks.flags.writeable = False
    return picks


def median(x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """Return the median along the last axis; NaN where any value is, or none is there.

    Source: ours; of thousands of short rows, as resamples are, several times as fast as numpy's.
    """
    n = x.shape[-1]
    if not n:
        return np.full(x.shape[:-1], np.nan)
    rising = np.sort(x, axis=-1)
    middle = (rising[..., (n - 1) // 2] + rising[..., n // 2]) / 2
    # Sorting puts NaN last.
    return np.where(np.isnan(rising[..., -1]), np.nan, middle)


def mean_gap(
    x: Float[np.ndarray, "*batch n"], ours: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch"]:
    """Return by how much the mean of one group exceeds that of the rest.

    Args:
        x: The values.
        ours: 1 for the group, 0 for the rest.

    Returns:
        The difference; NaN where either is empty.

    Source: ours.
    """
    yes, no = ours.sum(axis=-1), (1 - ours).sum(axis=-1)
    both = (yes > 0) & (no > 0)
    up, down = (x * ours).sum(axis=-1), (x * (1 - ours)).sum(axis=-1)
    return np.where(both, up / np.where(both, yes, 1) - down / np.where(both, no, 1), np.nan)


SWAPPED, PERMUTED = "swapped images", "permuted labels"
"""The nulls there are: each prompt judged with another's image; groups dealt out at random."""


def nothing(kind: str, reason: str, n: int = 0) -> Contrast:
    """Return a contrast that cannot be given, with the reason.

    Source: ours.
    """
    empty = Estimate(nan, nan, nan, n, "none", reason)
    return Contrast(empty, empty, empty, kind)


def swapped(
    statistic: Statistic,
    own: Sequence[Float[np.ndarray, " _"]],
    null: Sequence[Float[np.ndarray, " _"]],
    *,
    draws: int = 2000,
    seed: int = 0,
    name: str = "",
) -> Contrast:
    """Compare a statistic with the same of data that are swapped unit by unit.

    Args:
        statistic: Reduces the last axis of its columns.
        own: Its columns, a row a unit.
        null: Its columns after the swap, with the same units in the same order; units with a value
            that is not finite on either side are left out.
        draws: Resamples.
        seed: Seed of the resampling.
        name: What the statistic is called in `Estimate.method`.

    Source: paired bootstrap over units (Efron 1979).
    """
    width = len(own)

    def gap(*columns: Float[np.ndarray, "*batch n"]) -> "np.ndarray | np.floating":
        return statistic(*columns[:width]) - statistic(*columns[width:])

    whole = np.all([np.isfinite(column) for column in (*own, *null)], axis=0)
    ours, theirs = ([column[whole] for column in side] for side in (own, null))
    called = name or getattr(statistic, "__name__", "statistic")
    options: dict[str, Any] = {"draws": draws, "seed": seed}
    return Contrast(
        bootstrap(statistic, *ours, name=called, **options),
        bootstrap(statistic, *theirs, name=f"{called} of swapped data", **options),
        # The same seed draws the same units for all three.
        bootstrap(gap, *ours, *theirs, name=f"{called} less that of swapped data", **options),
        SWAPPED,
    )


def permuted(
    statistic: Statistic,
    values: Float[np.ndarray, " _"],
    labels: Float[np.ndarray, " _"],
    *,
    draws: int = 2000,
    seed: int = 0,
    name: str = "",
) -> Contrast:
    """Compare a statistic of labelled values with the same under random labels.

    Args:
        statistic: Takes values and labels, and reduces their last axis.
        values: A value a unit; units whose value is not finite are left out.
        labels: 1 for one group, 0 for the other.
        draws: Resamples, and permutations.
        seed: Seed of both.
        name: What the statistic is called in `Estimate.method`.

    Returns:
        The contrast; its difference leaves 0 out only where the interval of the statistic leaves
        out the mean of the permutations and their 95 % range leaves out the statistic.

    Source: Fisher 1935 (permutations); Efron 1979 (the interval).
    """
    whole = np.isfinite(values)
    x, ours = values[whole], labels[whole].astype(np.float64)
    called = name or getattr(statistic, "__name__", "statistic")
    value = bootstrap(statistic, x, ours, draws=draws, seed=seed, name=called)
    method = f"{called}, {draws} permutations of the labels, 95% range"
    if not isfinite(value.value) or not isfinite(value.low):
        empty = Estimate(nan, nan, nan, value.n, method, value.reason)
        return Contrast(value, empty, empty, PERMUTED)
    rng = np.random.default_rng(seed)
    dealt = rng.permuted(np.broadcast_to(ours, (draws, len(ours))), axis=1)
    found = np.asarray(statistic(np.broadcast_to(x, dealt.shape), dealt), dtype=np.float64)
    low, middle, high = np.quantile(found, 0.025), found.mean(), np.quantile(found, 0.975)
    null = Estimate(float(middle), float(low), float(high), value.n, method)
    difference = Estimate(
        value.value - null.value,
        min(value.low - null.value, value.value - null.high),
        max(value.high - null.value, value.value - null.low),
        value.n,
        f"{value.method}; {method}; the wider of the two on either side",
    )
    return Contrast(value, null, difference, PERMUTED)


def wilson(successes: int | float, n: int, *, level: float = 0.95) -> Estimate:
    """Estimate a share with an interval that stays within [0, 1].

    Args:
        successes: How many; a broken number where each of the n is itself a share.
        n: Units.
        level: Coverage of the interval.

    Returns:
        The share; NaN where nothing was tried.

    Source: Wilson 1927.
    """
    method = f"share, Wilson, {level:.0%}"
    if n == 0:
        return Estimate(nan, nan, nan, 0, method, "nothing to count")
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    centre, width = p + z**2 / (2 * n), z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # Rounding must not push an end past the share itself at 0 or 1.
    low, high = min((centre - width) / scale, p), max((centre + width) / scale, p)
    return Estimate(p, max(low, 0.0), min(high, 1.0), n, method)


def roc_auc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> Estimate:
    """Measure how well scores rank positives above negatives.

    Returns:
        The area under the ROC curve, ties counted half; no interval (see `bootstrap`).

    Source: Hanley & McNeil 1982.
    """
    keep = np.isfinite(scores)
    values, labels = scores[keep], positive[keep]
    yes, no = int(labels.sum()), int((~labels).sum())
    method = "area under the ROC curve, ties half"
    if not yes or not no:
        return Estimate(nan, nan, nan, yes + no, method, f"{yes} positives and {no} negatives")
    above = ranks(values)[labels].sum() - yes * (yes + 1) / 2
    return Estimate(float(above / (yes * no)), nan, nan, yes + no, method)


def tpr_at_fpr(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], fpr: float
) -> Estimate:
    """Measure the share of positives found at a false positive rate.

    It is read at the last ROC point whose rate is at or below `fpr`, never interpolated, and a
    positive that ties with a negative beyond it counts as missed.

    Returns:
        The true positive rate with its Wilson interval; withheld when there are fewer than 1 / fpr
        negatives, since no such rate can then be told from 0.

    Raises:
        InputError: If `fpr` is not in (0, 1].

    Source: ours; ties in the worst order as in the image similarity challenge's evaluation.
    """
    if not 0 < fpr <= 1:
        raise InputError(f"false positive rate {fpr}; expected a number in (0, 1]")
    keep = np.isfinite(scores)
    values, labels = scores[keep], positive[keep]
    yes, no = int(labels.sum()), int((~labels).sum())
    method = f"true positive rate at false positive rate {fpr:g}"
    if not yes:
        return Estimate(nan, nan, nan, yes + no, method, "no positives")
    # 1 / fpr may round to just above the whole number it stands for.
    if no + 1e-9 < 1 / fpr:
        reason = f"{no} negatives; a rate of {fpr:g} needs at least {1 / fpr:.0f}"
        return Estimate(nan, nan, nan, yes + no, method, reason)
    allowed = int(np.floor(fpr * no + 1e-9))
    negatives = np.sort(values[~labels])[::-1]
    cut = negatives[allowed] if allowed < no else -inf
    share = wilson(int((values[labels] > cut).sum()), yes)
    return Estimate(share.value, share.low, share.high, yes + no, f"{method}, {share.method}")


def matched_auc(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    lengths: Float[np.ndarray, " n"],
    *,
    within: float = 0.0,
) -> Estimate:
    """Measure ranking only between positives and negatives of like prompt length.

    Args:
        scores: Larger is more memorized.
        positive: Whether the prompt is memorized.
        lengths: Length of each prompt, in tokens.
        within: Largest difference of length that a pair may have, in tokens.

    Returns:
        The share of such pairs in which the positive scores higher, ties half; n counts pairs. With
        `within` 0 this is the AUC of each length, weighted by its pairs.

    Source: ours; prompt length is a confound of the published prompt lists.
    """
    keep = np.isfinite(scores) & np.isfinite(lengths)
    yes, no = keep & positive, keep & ~positive
    like = np.abs(lengths[yes][:, None] - lengths[no][None]) <= within
    method = f"area under the ROC curve over pairs within {within:g} tokens, ties half"
    if not like.any():
        return Estimate(nan, nan, nan, 0, method, "no positive and negative of like length")
    above = np.sign(scores[yes][:, None] - scores[no][None])
    return Estimate(float((above[like] + 1).mean() / 2), nan, nan, int(like.sum()), method)
