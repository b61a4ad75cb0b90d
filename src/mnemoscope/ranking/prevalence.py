r"""Prevalence is the share of a population with a property, known of some and sampled of the rest.

Formulas, for strata of N_k members of which n_k were drawn at random and x_k have the property,
with W_k = N_k / sum N and T = sum W_k·x_k/n_k::

    estimate   T
    upper      max of sum W_k·p_k over all p with P(T <= t; p) >= (1 - level) / 2
    lower      min of sum W_k·p_k over all p with P(T >= t; p) >= (1 - level) / 2

With one stratum that is Clopper and Pearson's interval. Nothing is assumed of how the p_k compare,
so a stratum that was drawn thinly is credited with the worst that what was seen allows. Members
that are drawn and cannot be judged count as without the property at the lower end, and as with it
at the upper. The binomial stands for drawing without return, which makes an interval wider.

Contents: `Stratum`; `stratified`; `exact`, of one stratum without bounds; `drawn_for` and
`allotted`, how many to draw; `Prevalence` and `prevalence`.

Source: Wendell & Schmee 1996 (the interval); Clopper & Pearson 1934.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from mnemoscope.core.stats import Estimate
from mnemoscope.errors import InputError

LEVEL = 0.95
GRID = 33
"""Values of the first stratum's share that are tried at a time."""
REFINED = 3
"""How often they are tried, each time between the neighbours of the best; 2^-12 is left."""
HALVINGS = 34
"""Halvings of an interval that finds a share; 6e-11 of it is left."""
TIE = 1e-9
"""Two outcomes whose T differs by less are the same."""

Shares = Float[np.ndarray, " share"]


@dataclass(frozen=True)
class Stratum:
    """A part of a population that was drawn from at random.

    Attributes:
        size: Its members, N.
        drawn: How many were drawn, n.
        found: How many of these have the property, x.
        unknown: How many of these could not be judged.
    """

    size: int
    drawn: int
    found: int
    unknown: int = 0

    def __post_init__(self) -> None:
        """Refuse counts that cannot be.

        Raises:
            InputError: If they cannot.
        """
        if not 0 <= self.found + self.unknown <= self.drawn <= self.size:
            raise InputError(f"{self} is no stratum: more were found than drawn, or than there are")

    def counting(self, unknown: bool) -> "Stratum":
        """Return the stratum with those that could not be judged counted as found, or as not."""
        return Stratum(self.size, self.drawn, self.found + (self.unknown if unknown else 0))


def stratified(strata: Sequence[Stratum], level: float = LEVEL) -> Estimate:
    """Estimate the share of a population from at most two strata.

    A stratum that was drawn whole is known, and adds no uncertainty.

    Returns:
        The share with its interval; NaN where nothing is known of a stratum, with [0, 1] as far as
        that stratum reaches.

    Raises:
        InputError: If there are more than two strata that were not drawn whole.
    """
    held = [stratum for stratum in strata if stratum.size]
    size = sum(stratum.size for stratum in held)
    method = f"stratified, exact by the worst case over strata (Wendell & Schmee), {level:.0%}"
    if not size:
        return Estimate(0.0, 0.0, 0.0, 0, method, "nobody is in it")
    judged = sum(stratum.drawn - stratum.unknown for stratum in held)
    ends = [
        _end([stratum.counting(upper) for stratum in held], size, level, upper)
        for upper in (False, True)
    ]
    if any(stratum.drawn == stratum.unknown for stratum in held):
        reason = "nobody was judged in a part of it"
        return Estimate(math.nan, ends[0], ends[1], judged, method, reason)
    value = sum(s.size * s.found / (s.drawn - s.unknown) for s in held) / size
    return Estimate(value, min(ends[0], value), max(ends[1], value), judged, method)


def exact(found: int, tried: int, level: float = LEVEL) -> Estimate:
    """Estimate the share of a population without bounds from members drawn at random.

    Source: Clopper & Pearson 1934.
    """
    method = f"share, Clopper & Pearson, {level:.0%}"
    if not tried:
        return Estimate(math.nan, 0.0, 1.0, 0, method, "nothing to count")
    one, tail = [Stratum(tried, tried, found)], (1 - level) / 2
    low, high = (_extreme(one, (1.0,), tail, upper) for upper in (False, True))
    return Estimate(found / tried, low, high, tried, method)


def _end(strata: Sequence[Stratum], size: int, level: float, upper: bool) -> float:
    known = sum(stratum.found for stratum in strata if stratum.drawn == stratum.size)
    open_ones = [stratum for stratum in strata if stratum.drawn < stratum.size]
    blind = [stratum for stratum in open_ones if not stratum.drawn]
    seen = [stratum for stratum in open_ones if stratum.drawn]
    if len(seen) > 2:
        raise InputError(f"{len(seen)} strata given; expected at most two that were drawn in part")
    total = float(known + (sum(stratum.size for stratum in blind) if upper else 0))
    if seen:
        weights = [stratum.size / sum(s.size for s in seen) for stratum in seen]
        share = _extreme(seen, weights, (1 - level) / 2, upper)
        count = share * sum(stratum.size for stratum in seen)
        # What was seen bounds it whatever the binomial says.
        least = sum(stratum.found for stratum in seen)
        most = sum(s.size - s.drawn + s.found for s in seen)
        total += min(max(count, least), most)
    return total / size


def _extreme(
    strata: Sequence[Stratum], weights: Sequence[float], tail: float, upper: bool
) -> float:
    """Return the largest or least share that what was found is not too unlikely under."""
    t = sum(w * s.found / s.drawn for w, s in zip(weights, strata, strict=True))
    if t > 1 - TIE if upper else t < TIE:
        return float(upper)
    chance = _Chance.of(strata, weights, t, strict=not upper)

    def allowed(p1: Shares, p2: Shares) -> Bool[np.ndarray, " share"]:
        found = chance.below(p1, p2)
        return found >= tail if upper else 1 - found >= tail

    def furthest(p1: Shares) -> Shares:
        """Return the most extreme share of the second that goes with each of the first."""
        low, high = np.zeros_like(p1), np.ones_like(p1)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            inside = allowed(p1, middle)
            low = np.where(inside == upper, middle, low)
            high = np.where(inside == upper, high, middle)
        return low if upper else high

    def edge(second: float) -> float:
        """Return the most extreme share of the first that goes with one of the second."""
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            inside = bool(allowed(np.array([middle]), np.array([second]))[0])
            low, high = (middle, high) if inside == upper else (low, middle)
        return low if upper else high

    if len(strata) == 1:
        return edge(0.0)
    # The first share can be anything up to its own end, the second being out of the way; for the
    # lower end, where the second may explain all by itself, anything from nothing on.
    first, last = (0.0, edge(0.0)) if upper else (edge(1.0), 1.0)
    grid = np.linspace(first, last, GRID)
    best = -math.inf if upper else math.inf
    for _ in range(REFINED):
        shares = weights[0] * grid + weights[1] * furthest(grid)
        at = int(shares.argmax() if upper else shares.argmin())
        best = max(best, float(shares[at])) if upper else min(best, float(shares[at]))
        grid = np.linspace(grid[max(0, at - 1)], grid[min(GRID - 1, at + 1)], GRID)
    return best


@dataclass(frozen=True)
class _Chance:
    """How likely T is to be at most t, or less than t, for independent binomials.

    Attributes:
        drawn: How many were drawn from each stratum; the second is 0 where there is none.
        room: For each count in the first stratum, the most in the second; -1 where none fits.
    """

    drawn: tuple[int, int]
    room: Int[np.ndarray, " count"]

    @classmethod
    def of(
        cls, strata: Sequence[Stratum], weights: Sequence[float], t: float, *, strict: bool
    ) -> "_Chance":
        first = strata[0]
        counts = np.arange(first.drawn + 1)
        left = t - weights[0] * counts / first.drawn
        if len(strata) == 1:
            room = np.where(left > (TIE if strict else -TIE), 0, -1)
            second = 0
        else:
            second = strata[1].drawn
            most = left * second / weights[1]
            room = np.ceil(most - TIE) - 1 if strict else np.floor(most + TIE)
        room = np.clip(room, -1, second).astype(np.intp)
        return cls((first.drawn, second), room[: int((room >= 0).sum())])

    def below(self, p1: Shares, p2: Shares) -> Shares:
        """Return the chance, a number a pair of shares."""
        if not len(self.room):
            return np.zeros_like(p1)
        first = _pmf(self.drawn[0], p1, len(self.room) - 1)
        second = np.cumsum(_pmf(self.drawn[1], p2, int(self.room.max())), axis=1)
        return (first * second[:, self.room]).sum(axis=1)


@lru_cache(maxsize=64)
def _ways(n: int, most: int) -> Float[np.ndarray, " count"]:
    """Return the logarithms of n over 0 to n over `most`."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(most + 1)
    ]
    return np.array(logs)


def _pmf(n: int, p: Shares, most: int) -> Float[np.ndarray, "share count"]:
    """Return the binomial probabilities of 0 to `most`."""
    k = np.arange(most + 1)
    # 0·log 0 is 0 here: no failures, or no successes, are sure where p is 1, or 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(k == 0, 0.0, k * np.log(p)[:, None])
        logs = logs + np.where(k == n, 0.0, (n - k) * np.log1p(-p)[:, None])
    return np.exp(_ways(n, most) + logs)


def drawn_for(width: float, sizes: Sequence[int], near: float, level: float = LEVEL) -> int:
    """Return how many to draw so that an interval is no wider if none of them has the property.

    Args:
        width: Wanted width, as a share of the population.
        sizes: Sizes of the two strata.
        near: Share of those drawn that go to the first.
        level: Coverage of the interval.
    """
    total = sum(sizes)
    few, many = 1, max(total, 1)
    while few < many:
        middle = (few + many) // 2
        parts = [
            Stratum(size, n, 0)
            for size, n in zip(sizes, allotted(middle, sizes, near), strict=True)
        ]
        if stratified(parts, level).high <= width:
            many = middle
        else:
            few = middle + 1
    return few


def allotted(count: int, sizes: Sequence[int], near: float) -> tuple[int, int]:
    """Share a number of draws between two strata, each at least one and none more than it has."""
    first = min(sizes[0], max(round(near * count), min(1, sizes[0])))
    second = min(sizes[1], max(count - first, min(1, sizes[1])))
    return min(sizes[0], max(first, count - second)), second


@dataclass(frozen=True)
class Prevalence:
    """How many of a population have a property, and how many of these were found.

    Attributes:
        share: Share of the population, with its interval.
        recall: Share of those with the property that were found, with its interval.
    """

    share: Estimate
    recall: Estimate


def prevalence(census: Stratum, strata: Sequence[Stratum], level: float = LEVEL) -> Prevalence:
    """Combine a part of a population that was looked at whole with strata that were drawn from.

    Args:
        census: The part in which everybody was looked at.
        strata: The rest.
        level: Coverage of the intervals.

    Raises:
        InputError: If the census was not drawn whole, or there are more than two strata.
    """
    if census.drawn != census.size:
        raise InputError(f"a census of {census.size} looks at all of them, not at {census.drawn}")
    share = stratified([census, *strata], level)
    size = census.size + sum(stratum.size for stratum in strata)
    rest = stratified(strata, level)
    beside = size - census.size

    def found(others: float) -> float:
        total = census.found + others * beside
        return census.found / total if total else math.nan

    reason = "" if census.found else "none was found"
    recall = Estimate(
        found(rest.value), found(rest.high), found(rest.low), rest.n,
        f"found / (found + missed), missed: {rest.method}", reason or rest.reason,
    )  # fmt: skip
    return Prevalence(share, recall)
