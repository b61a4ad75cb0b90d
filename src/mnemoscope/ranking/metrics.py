r"""A metric says how well scores tell memorized prompts from others, with an interval.

Scores rest on noise. Where they were drawn from several banks of noise, the AUC is the mean over
banks, and its interval counts both: another draw of noise would have given other scores.

Formulas, a resample drawing as many prompts, and as many banks, as there are, with replacement::

    auc            P(score of a memorized prompt > that of another), ties half
    difference     auc of one detector minus that of another, on the same prompts
    tpr            true positive rate at the last ROC point with a false positive rate <= 1 %

Source: Hanley & McNeil 1982; Efron 1979.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from mnemoscope.core.stats import Estimate, bootstrap, interval, tpr_at_fpr

FPR = 0.01
"""False positive rate that true positive rates are quoted at."""

DRAWS = 1000
"""Bootstrap resamples; the ends of an interval are then good to about a tenth of its width."""


def _above(
    scores: Float[np.ndarray, "*bank n"], memorized: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "bank positive negative"]:
    """Return 1 where a memorized prompt scores above another, 1/2 where they tie, else 0."""
    banks = np.atleast_2d(scores)
    apart = banks[:, memorized][:, :, None] - banks[:, ~memorized][:, None]
    return (np.sign(apart) + 1) / 2


def _over_pairs(
    pairs: Float[np.ndarray, "bank positive negative"],
    memorized: Bool[np.ndarray, " n"],
    name: str,
) -> Estimate:
    """Average over pairs of memorized and other prompts and over banks, with a bootstrap interval.

    A resample draws prompts, so it weighs a pair by how often both of its prompts were drawn; that
    is one product for all resamples, where ranking each would sort it.
    """
    n, banks = len(memorized), len(pairs)
    over = "prompts" if banks == 1 else f"prompts and {banks} banks of noise"
    method = f"{name}, percentile bootstrap over {over}, 95%, {DRAWS} draws"
    if not pairs.size:
        yes = int(memorized.sum())
        return Estimate(
            math.nan, math.nan, math.nan, n, method, f"{yes} positives and {n - yes} negatives"
        )

    def resampled(picks: Int[np.ndarray, "draw n"]) -> Float[np.ndarray, " draw"]:
        drawn = np.stack([np.bincount(pick, minlength=n) for pick in picks]).astype(np.float64)
        yes, no = drawn[:, memorized], drawn[:, ~memorized]
        weight = yes.sum(1) * no.sum(1)
        weights = np.random.default_rng(1).multinomial(banks, np.full(banks, 1 / banks), len(picks))
        each = np.stack([((yes @ part) * no).sum(1) for part in pairs], axis=1)
        total = (each * weights / banks).sum(1)
        return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)

    return interval(float(pairs.mean()), resampled, n, whose="prompts", draws=DRAWS, method=method)


def auc(scores: Float[np.ndarray, "*bank n"], memorized: Bool[np.ndarray, " n"]) -> Estimate:
    """Measure the AUC with its interval over prompts, and over banks where there are several.

    Source: Hanley & McNeil 1982; Efron 1979.
    """
    return _over_pairs(_above(scores, memorized), memorized, "AUC, ties half")


def difference(
    a: Float[np.ndarray, "*bank n"],
    b: Float[np.ndarray, "*bank n"],
    memorized: Bool[np.ndarray, " n"],
) -> Estimate:
    """Measure by how much the AUC of one detector exceeds another's, on the same prompts.

    Prompts that either detector does not score are left out.

    Source: paired bootstrap over prompts.
    """
    use = np.isfinite(np.concatenate([np.atleast_2d(a), np.atleast_2d(b)])).all(axis=0)
    apart = _above(a[..., use], memorized[use]) - _above(b[..., use], memorized[use])
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
