r"""A funnel chooses which captions are sampled in full: the suspicious ones, and some of the rest.

Formulas, for n captions scored by detectors j, with N_j(s) the captions that score at least s::

    tail        min over j of N_j(s_j) / n     how far out a caption lies by the detector that
                                               finds it most suspicious
    repeats     how often its caption, or an image like its own, comes in the set
    finalists   those of the least tail, and as many of the most repeats
    strata      the rest in the order of their tail: the nearest tenth, and all others
    drawn       from both strata at random, a quarter from the nearest

No label and no threshold is taken, so the rule holds for any model; what it misses is measured on
the strata. A caption without a score is suspicious of nothing and lies in the nearest stratum.

Contents: `tails`; `Plan` and `plan`.

Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mnemoscope.ranking.prevalence import allotted

NEAREST = 0.1
"""Share of what was dropped that makes the nearest stratum."""
FROM_NEAREST = 0.25
"""Share of the draws that go to it: what is missed is missed narrowly more often than not."""
STRATA = ("nearest", "others")


def tails(scores: Float[np.ndarray, "caption detector"]) -> Float[np.ndarray, " caption"]:
    """Return how far out each caption lies; small is suspicious, NaN has no score."""
    found = np.full(len(scores), np.nan)
    for column in scores.T:
        known = np.isfinite(column)
        rising = np.sort(column[known])
        above = len(rising) - np.searchsorted(rising, column, side="left")
        found = np.fmin(found, np.where(known, above / max(len(rising), 1), np.nan))
    return found


@dataclass(frozen=True)
class Plan:
    """Which captions are sampled in full.

    Attributes:
        tail: How far out each caption lies.
        finalists: Suspicious captions, the most suspicious first.
        repeated: Those of them that repeats alone made suspicious.
        strata: The other captions, in two strata.
        drawn: Those that are drawn from each.
    """

    tail: Float[np.ndarray, " caption"]
    finalists: Int[np.ndarray, " finalist"]
    repeated: frozenset[int]
    strata: tuple[Int[np.ndarray, " nearest"], Int[np.ndarray, " other"]]
    drawn: tuple[Int[np.ndarray, " some"], Int[np.ndarray, " few"]]

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
    repeats: Int[np.ndarray, " caption"],
    finalists: int,
    drawn: int,
    seed: int,
) -> Plan:
    """Choose captions.

    Args:
        tail: How far out each caption lies; NaN has no score.
        repeats: How often each comes in the set; 1 is once.
        finalists: How many of the least tail are taken, and at most as many of the most repeats.
        drawn: How many of the others are drawn.
        seed: Seed of the draw.
    """
    # Equal tails are told apart by the name alone, which is the place here: any order will do.
    order = np.argsort(np.where(np.isnan(tail), np.inf, tail), kind="stable")
    scored = order[np.isfinite(tail[order])]
    first = scored[:finalists]
    often = np.argsort(-repeats, kind="stable")[:finalists]
    often = often[repeats[often] > 1]
    repeated = often[~np.isin(often, first)]
    chosen = np.concatenate([first, repeated])
    # What has no score is looked at as if it had all but been chosen.
    blind = order[np.isnan(tail[order])]
    rest = np.concatenate([blind, scored])
    rest = rest[~np.isin(rest, chosen)]
    nearest, others = strata_of(len(rest))
    strata = rest[:nearest], rest[nearest:]
    rng = np.random.default_rng(seed)
    counts: Sequence[int] = allotted(drawn, (nearest, others), FROM_NEAREST) if drawn else (0, 0)
    picked = tuple(
        np.sort(rng.choice(some, size=count, replace=False))
        for some, count in zip(strata, counts, strict=True)
    )
    return Plan(tail, chosen, frozenset(repeated.tolist()), strata, (picked[0], picked[1]))
