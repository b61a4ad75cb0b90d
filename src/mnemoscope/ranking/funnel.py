r"""A funnel chooses which captions are sampled in full: the suspicious ones, and some of the rest.

Formulas, for n captions scored by detectors j, s_j the scores, med over all captions::

    z_j         (s_j - med s_j) / (1.4826·med |s_j - med s_j|)
    words       mean of asinh z_j over what looks at the caption alone
    own         mean of asinh z_j over what looks at its own image
    suspicion   words + max(0, own)            own where nothing looks at the caption alone
    tail        #{suspicion as large} / n      how far out a caption lies
    refined     suspicion + max(0, more)       of the least tails alone, which stay the least; more
                is the mean of asinh z_j over what looks closer at them, med over these
    finalists   those of the least tail, and some more: first those of the most repeats, then a few
                whose picture lies most alone
    strata      the rest in the order of their tail: the nearest tenth, and all others
    drawn       from both strata at random, a quarter from the nearest

How many finalists are enough is seen from them: in rounds, more are taken as long as a tenth of the
last round have what is looked for.

Most captions of a set are ordinary, so their middle and spread say what is: scores of different
detectors come to one scale without a label and without a threshold, and asinh lets none outweigh
the others far out. The own image only adds: a caption may give another one back. What the rule
misses is measured on the strata. A caption without a score is suspicious of nothing and lies in the
nearest stratum.

Contents: `tails`, `nearest` and `refined`; `Plan` and `plan`; `widens`.

Source: ours; Rousseeuw & Croux 1993 (median absolute deviation).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mnemoscope.ranking.prevalence import allotted

NEAREST = 0.1
"""Share of what was dropped that makes the nearest stratum."""
FROM_NEAREST = 0.25
"""Share of the draws that go to it: what is missed is missed narrowly more often than not."""
STRATA = ("nearest", "others")
SUSPICIOUS = ("score", "repeats", "alone")
"""Why a caption is a finalist."""
SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
LONE = 0.1
"""Share of those taken beside the least tail that may lie alone."""
ROUND = 20
"""Fewest captions of a round."""
WIDEN = 0.1
"""Share of what was sampled last that calls for more."""


def tails(
    scores: Float[np.ndarray, "caption detector"], own: Bool[np.ndarray, " detector"]
) -> Float[np.ndarray, " caption"]:
    """Return how far out each caption lies; small is suspicious, NaN has no score.

    Args:
        scores: Scores; NaN is none.
        own: Whether each detector looks at the caption's own image.
    """
    return _tails(_suspicion(scores, own))


def nearest(tail: Float[np.ndarray, " caption"], share: float) -> Int[np.ndarray, " some"]:
    """Return the captions of the least tails, in their order, that make a share of those scored."""
    with np.errstate(invalid="ignore"):
        return (tail <= share).nonzero()[0]


def refined(
    scores: Float[np.ndarray, "caption detector"],
    own: Bool[np.ndarray, " detector"],
    some: Int[np.ndarray, " some"],
    more: Float[np.ndarray, "some closer"],
) -> Float[np.ndarray, " caption"]:
    """Return how far out each caption lies once a closer look was taken at some.

    Args:
        scores: Scores of all, as for `tails`.
        own: Likewise.
        some: The captions of the least tails.
        more: Scores of these by detectors that look at their own image; NaN is none.
    """
    suspicion = _suspicion(scores, own)
    tail, known = _tails(suspicion), int(np.isfinite(suspicion).sum())
    added = _mean(np.array([_spread(column) for column in more.T]).reshape(more.shape[::-1]))
    closer = suspicion[some] + np.where(np.isnan(added), 0.0, np.maximum(added, 0.0))
    tail[some] = _tails(closer) * len(some) / max(known, 1)
    return tail


def _suspicion(
    scores: Float[np.ndarray, "caption detector"], own: Bool[np.ndarray, " detector"]
) -> Float[np.ndarray, " caption"]:
    parts = np.array([_spread(column) for column in scores.T]).reshape(scores.shape[::-1])
    words, image = _mean(parts[~own]), _mean(parts[own])
    added = np.where(np.isnan(image), 0.0, np.maximum(image, 0.0))
    return np.where(np.isnan(words), image, words + added)


def _tails(suspicion: Float[np.ndarray, " caption"]) -> Float[np.ndarray, " caption"]:
    rising = np.sort(suspicion[np.isfinite(suspicion)])
    above = len(rising) - np.searchsorted(rising, suspicion, side="left")
    return np.where(np.isfinite(suspicion), above / max(len(rising), 1), np.nan)


def _mean(parts: Float[np.ndarray, "detector caption"]) -> Float[np.ndarray, " caption"]:
    """Return the mean of what is known; NaN where nothing is."""
    known = np.isfinite(parts)
    some = known.sum(axis=0)
    total = np.where(known, parts, 0.0).sum(axis=0)
    return np.where(some > 0, total / np.maximum(some, 1), np.nan)


def _spread(scores: Float[np.ndarray, " caption"]) -> Float[np.ndarray, " caption"]:
    """Return how many spreads above the middle scores lie, far ones drawn in."""
    known = scores[np.isfinite(scores)]
    if not len(known):
        return np.full(len(scores), np.nan)
    middle = float(np.median(known))
    # Where more than half of the scores are one number, their spread is that of all.
    spread = SIGMA * float(np.median(np.abs(known - middle))) or float(known.std()) or 1.0
    return np.arcsinh((np.where(np.isfinite(scores), scores, np.nan) - middle) / spread)


@dataclass(frozen=True)
class Plan:
    """Which captions are sampled in full.

    Attributes:
        tail: How far out each caption lies.
        finalists: Suspicious captions, the most suspicious first.
        why: Why each is one, in the words of `SUSPICIOUS`.
        strata: The other captions, in two strata.
        drawn: Those that are drawn from each.
    """

    tail: Float[np.ndarray, " caption"]
    finalists: Int[np.ndarray, " finalist"]
    why: tuple[str, ...]
    strata: tuple[Int[np.ndarray, " nearest"], Int[np.ndarray, " other"]]
    drawn: tuple[Int[np.ndarray, " some"], Int[np.ndarray, " few"]]

    @property
    def scored(self) -> Int[np.ndarray, " some"]:
        """Return the finalists of the least tail, the most suspicious first."""
        return self.finalists[: self.why.count(SUSPICIOUS[0])]

    @property
    def sampled(self) -> int:
        """Return how many captions are sampled in full."""
        return len(self.finalists) + sum(map(len, self.drawn))


def strata_of(count: int) -> tuple[int, int]:
    """Return the sizes of the two strata of what is dropped."""
    nearest = min(count, max(1, round(NEAREST * count)))
    return nearest, count - nearest


def plan(
    tail: Float[np.ndarray, " caption"],
    repeated: Int[np.ndarray, " repeated"],
    lone: Int[np.ndarray, " lone"],
    finalists: int,
    beside: int,
    drawn: int,
    seed: int,
) -> Plan:
    """Choose captions.

    Args:
        tail: How far out each caption lies; NaN has no score.
        repeated: Captions that repeat, the most often first.
        lone: Captions whose picture lies alone, the most alone first.
        finalists: How many of the least tail are taken.
        beside: How many more are taken at most that repeat or lie alone.
        drawn: How many of the others are drawn.
        seed: Seed of the draw.
    """
    # Equal tails are told apart by the name alone, which is the place here: any order will do.
    order = np.argsort(np.where(np.isnan(tail), np.inf, tail), kind="stable")
    scored = order[np.isfinite(tail[order])]
    first = scored[:finalists]
    often = repeated[~np.isin(repeated, first)][:beside]
    room = min(round(LONE * beside), beside - len(often))
    alone = lone[~np.isin(lone, [*first, *often])][:room]
    chosen = np.concatenate([first, often, alone]).astype(np.intp)
    counts = len(first), len(often), len(alone)
    why = [name for name, n in zip(SUSPICIOUS, counts, strict=True) for _ in range(n)]
    # What has no score is looked at as if it had all but been chosen.
    blind = order[np.isnan(tail[order])]
    rest = np.concatenate([blind, scored])
    rest = rest[~np.isin(rest, chosen)]
    nearest, others = strata_of(len(rest))
    strata = rest[:nearest], rest[nearest:]
    rng = np.random.default_rng(seed)
    each: Sequence[int] = allotted(drawn, (nearest, others), FROM_NEAREST) if drawn else (0, 0)
    picked = tuple(
        np.sort(rng.choice(some, size=count, replace=False))
        for some, count in zip(strata, each, strict=True)
    )
    return Plan(tail, chosen, tuple(why), strata, (picked[0], picked[1]))


def widens(found: Sequence[bool]) -> bool:
    """Return whether a round calls for another one.

    Args:
        found: Whether each of its captions has what is looked for.
    """
    return bool(found) and sum(found) >= WIDEN * len(found)
