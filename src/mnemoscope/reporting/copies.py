r"""A copy is a sample closer to a training image than unrelated images are to one another.

Formulas, by the primary measure, with a threshold for single images and one for nearest ones::

    own        similarity to an image of the prompt above the first, or under a mask to a template
    another    not own, and similarity to the nearest image of another prompt above the second
    borderline a copy, but value <= max + HAIR·(max - median) of the unrelated pairs

Where table `severity` says which seeds copy, those do: it knows what was generated. A borderline
copy is above the threshold, yet an unrelated pair came as close, or all but.

Contents: `Copy` and `copies`; `Counts` and `counted`, the copies of a prompt.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from mnemoscope.reporting.quantities import Key
from mnemoscope.reporting.verdict import Row
from mnemoscope.severity.grade import MASKED

HAIR = 0.01
"""Share of the distance from the median unrelated pair to the closest that is too little to tell a
copy by."""

Sample = tuple[str, int, float]
"""A prompt, a seed and a guidance scale."""

Whose = Literal["own", "another", "none"]


@dataclass(frozen=True)
class Copy:
    """What one sample is a copy of.

    Attributes:
        whose: "own", "another", or "none" where it is no copy.
        own: Similarity to the closest image of its prompt; None where there is none.
        nearest: Similarity to the closest image of another prompt; None where there is none.
        reference: That image.
        borderline: Whether it is a copy that an unrelated pair all but equals.
    """

    whose: Whose = "none"
    own: float | None = None
    nearest: float | None = None
    reference: str | None = None
    borderline: bool = False


@dataclass(frozen=True)
class Counts:
    """The copies among a prompt's samples.

    Attributes:
        n: Samples that were compared.
        own: Copies of an image of the prompt.
        another: Copies of an image of another prompt.
        borderline: Borderline copies among both.
        reference: The image of another prompt that is copied most often, then most closely.
        similarity: Similarity of the closest copy of it.
    """

    n: int = 0
    own: int = 0
    another: int = 0
    borderline: int = 0
    reference: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class _Bar:
    """A threshold, and how close unrelated pairs come."""

    threshold: float
    edge: float

    @classmethod
    def of(cls, nulls: Sequence[Row], measure: str) -> "_Bar":
        for row in nulls:
            if row["measure"] == measure and row["threshold"] is not None:
                most, middle = row["max"], row["q50"]
                if most is None or middle is None:
                    return cls(row["threshold"], -inf)
                return cls(row["threshold"], most + HAIR * (most - middle))
        return cls(inf, -inf)

    def passed(self, value: float | None) -> bool:
        return value is not None and value > self.threshold

    def narrow(self, value: float | None) -> bool:
        return value is not None and self.threshold < value <= self.edge

    def clear(self, value: float | None) -> bool:
        return self.passed(value) and not self.narrow(value)


def copies(
    prompts: Sequence[Row],
    similarities: Iterable[Row],
    severity: Iterable[Row],
    nulls: Sequence[Row],
    measure: str,
) -> dict[Sample, Copy]:
    """Say of every sample that was compared what it is a copy of.

    Args:
        prompts: Rows of table `prompts`.
        similarities: Rows of table `similarities`.
        severity: Rows of table `severity`.
        nulls: Rows of table `null`.
        measure: Primary similarity measure.

    Source: ours, with the thresholds of `severity.null`.
    """
    ours = {row["prompt_id"]: frozenset(row["references"]) for row in prompts}
    own: dict[Sample, float] = {}
    masked: dict[Sample, float] = {}
    others: dict[Sample, tuple[float, str]] = {}
    for row in similarities:
        value = row["value"]
        if row["measure"] not in (measure, MASKED) or value is None or not isfinite(value):
            continue
        if row["relation"] not in ("own", "nearest"):
            continue
        key = row["prompt_id"], row["seed"], row["guidance"]
        mine = row["relation"] == "own" or row["reference_id"] in ours.get(key[0], ())
        if row["measure"] == MASKED and mine:
            masked[key] = max(masked.get(key, value), value)
        if row["measure"] != measure:
            continue
        if mine:
            own[key] = max(own.get(key, value), value)
        else:
            others[key] = max(others.get(key, (value, "")), (value, row["reference_id"]))
    single, nearest, template = (
        _Bar.of(nulls, name) for name in (measure, f"{measure}:nearest", MASKED)
    )
    told = _told(severity, measure)
    found: dict[Sample, Copy] = {}
    for key in dict.fromkeys((*own, *masked, *others)):
        mine, under = own.get(key), masked.get(key)
        value, reference = others.get(key, (None, None))
        seeds = told.get((key[0], key[2]))
        ours_too = single.passed(mine) or template.passed(under)
        theirs = nearest.passed(value)
        if seeds is not None:
            ours_too, theirs = key[1] in seeds[0], key[1] in seeds[1]
        if ours_too:
            narrow = single.narrow(mine) or template.narrow(under)
            clear = single.clear(mine) or template.clear(under)
            found[key] = Copy("own", mine, value, reference, narrow and not clear)
        elif theirs:
            found[key] = Copy("another", mine, value, reference, nearest.narrow(value))
        else:
            found[key] = Copy("none", mine, value, reference)
    return found


def _told(
    severity: Iterable[Row], measure: str
) -> dict[Key, tuple[frozenset[int], frozenset[int]]]:
    """Return the seeds that copy an own and another image, where the run says so."""
    found: dict[Key, tuple[frozenset[int], frozenset[int]]] = {}
    for row in severity:
        own, elsewhere = row.get("own_seeds"), row.get("elsewhere_seeds")
        if row["measure"] in (measure, MASKED) and (own is not None or elsewhere is not None):
            key = row["prompt_id"], row["guidance"]
            before = found.get(key, (frozenset[int](), frozenset[int]()))
            elsewhere = elsewhere if row["measure"] == measure else None
            found[key] = before[0] | set(own or ()), before[1] | set(elsewhere or ())
    return found


def counted(found: Mapping[Sample, Copy]) -> dict[Key, Counts]:
    """Count the copies of every prompt and guidance scale."""
    sorted_out: dict[Key, list[Copy]] = {}
    for (prompt, _, scale), copy in found.items():
        sorted_out.setdefault((prompt, scale), []).append(copy)
    return {key: _counts(mine) for key, mine in sorted_out.items()}


def _counts(mine: Sequence[Copy]) -> Counts:
    elsewhere = [copy for copy in mine if copy.whose == "another"]
    often = Counter(copy.reference for copy in elsewhere)
    closest = {
        name: max(c.nearest or -inf for c in elsewhere if c.reference == name) for name in often
    }
    most = max(often, key=lambda name: (often[name], closest[name], name or ""), default=None)
    return Counts(
        len(mine),
        sum(copy.whose == "own" for copy in mine),
        len(elsewhere),
        sum(copy.borderline for copy in mine),
        most,
        closest.get(most),
    )
