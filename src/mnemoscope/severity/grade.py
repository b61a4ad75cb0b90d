r"""Severity says how far generated images are copies of training images.

Formulas, with S[i, r] the similarity of sample i and training image r::

    image severity    s_i   = max over the prompt's own references r of S[i, r]
    nearest           m_i   = max over all other known training images of S[i, r]
    typical           a_i   = median over the training images unrelated to its prompt of S[i, r]
    copy of its own   s_i - max(0, a_i - a) > threshold    a the same of training images
    copy elsewhere    m_i - max(0, a_i - a) > threshold of the nearest, and no copy of its own
    prompt severity   mean_i s_i,   max_i s_i,   share of i that are copies

A grey or blurred sample is nearer to every picture; what it is nearer to pictures in general than
training images are is taken off before it is called a copy of one.

Only samples with status "ok" count; the others are excluded and counted. The thresholds are those
of unrelated pairs (see `severity.null`). Samples made by different recipes are kept apart.

A prompt's grade is the first that holds for at least half of its samples, in Webster's order::

    template verbatim    a template matches under its mask
    matching verbatim    one of its own images matches
    retrieved verbatim   another training image matches
    none                 fewer matched with the seeds tried; others might

However many seeds there are, and however alike, chance gives a grade at most twice as often as it
passes one sample: P(share >= 1/2) <= 2·E[share] (Markov).

Contents: `image_severity` and `severities`; `assess`, the two tables of a run.

Source: Webster 2023 (grades); the threshold on pairs: ours.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mnemoscope.data.images import Pixels, decode, decode_masked, fit
from mnemoscope.errors import ModelError
from mnemoscope.runs.tables import TABLES
from mnemoscope.severity.null import (
    MOST_SAMPLES,
    RATE,
    Kin,
    Null,
    fit_nulls,
    generated_null,
    generated_pairs,
    kindred,
    measured_nulls,
)
from mnemoscope.similarity import Reference, Similarity, get_similarity

MASKED = "masked_l2"
"""The measure that recognizes templates."""

GRADED_SHARE = 0.5
"""Share of a prompt's samples from which on it has a grade."""

Grade = Literal["template verbatim", "matching verbatim", "retrieved verbatim", "none"]


def image_severity(
    values: Float[np.ndarray, "sample reference"], own: Bool[np.ndarray, " reference"]
) -> Float[np.ndarray, " sample"]:
    """Return the similarity of each sample to the closest of its prompt's own images.

    Args:
        values: Similarities to all references.
        own: Which references are the prompt's own.

    Returns:
        The maximum over them; NaN where none of them can be compared.

    Source: methods in use since Wen et al. 2024: the maximum over references, or prompts of
    templates look unmemorized.
    """
    usable = own & np.isfinite(values)
    closest = np.where(usable, values, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(closest), closest, np.nan)


@dataclass(frozen=True)
class Severity:
    """Severity of one prompt under one recipe, by one measure.

    Attributes:
        prompt_id: The prompt.
        recipe: Name of the recipe; None in a run that names none.
        guidance: Guidance scale g.
        measure: The measure, preset included.
        mean: Mean image severity; NaN where the prompt has no image of its own.
        max: Largest image severity; NaN likewise.
        share: Share of samples that copy an own image; NaN also where the threshold is withheld.
        share_elsewhere: Share that copy another training image and not an own one; NaN without a
            threshold.
        share_clear: Share that are nearer to an own image than any unrelated pair; NaN likewise.
        own_seeds: Seeds of the copies of an own image; None where that cannot be told.
        elsewhere_seeds: Seeds of the copies of another one; None likewise.
        n: Number of samples that are ok.
        excluded: Number of samples that are not.
        threshold: Threshold for the prompt's own images; NaN where withheld.
        grade: The grade; None where no sample could be judged.
        nearest_reference_id: Training image nearest to any of the samples; None where none is
            known.
    """

    prompt_id: str
    recipe: str | None
    guidance: float | None
    measure: str
    mean: float
    max: float
    share: float
    share_elsewhere: float
    share_clear: float
    own_seeds: tuple[int, ...] | None
    elsewhere_seeds: tuple[int, ...] | None
    n: int
    excluded: int
    threshold: float
    grade: Grade | None
    nearest_reference_id: str | None


Key = tuple[str, str | float]
"""A prompt, and how it was sampled: the recipe, or the guidance scale in a run that names none."""


def _key(row: Mapping[str, Any]) -> Key:
    recipe = row.get("recipe")
    return row["prompt_id"], row["guidance"] if recipe is None else recipe


def severities(
    samples: Iterable[Mapping[str, Any]],
    similarities: Iterable[Mapping[str, Any]],
    nulls: Sequence[Null],
) -> list[Severity]:
    """Reduce similarities to the severity of each prompt, recipe and measure.

    Args:
        samples: Rows with prompt_id, seed, recipe or guidance, and status.
        similarities: Rows with the same keys, measure, reference_id, relation and value; a
            "nearest" row whose reference is also an "own" one of the prompt says nothing new.
        nulls: The nulls of every measure.

    Returns:
        One severity for each prompt, recipe and measure, in the order of the rows.
    """
    samples, similarities = list(samples), list(similarities)
    ok: dict[Key, set[int]] = defaultdict(set)
    sampled: dict[Key, tuple[str | None, float | None]] = {}
    excluded: dict[Key, int] = defaultdict(int)
    for row in samples:
        key = _key(row)
        sampled[key] = row.get("recipe"), row.get("guidance")
        ok[key].update([row["seed"]] if row["status"] == "ok" else [])
        excluded[key] += row["status"] != "ok"
    seen: dict[tuple[Key, str], _Seen] = defaultdict(_Seen)
    for row in similarities:
        key = _key(row)
        if row["seed"] in ok[key] and row["value"] is not None and math.isfinite(row["value"]):
            seen[key, row["measure"]].add(row)

    measures = list(dict.fromkeys(null.measure for null in nulls))
    rows: list[Severity] = []
    for key, seeds in ok.items():
        copies = {m: seen[key, m].copies(_Bar.of(nulls, m, sampled[key][0])) for m in measures}
        for measure in measures:
            values = np.array(list(seen[key, measure].own.values()), dtype=np.float64)
            bar, mine = _Bar.of(nulls, measure, sampled[key][0]), copies[measure]
            known = len(values) > 0
            told = known and mine is not None and math.isfinite(bar.own)
            rows.append(
                Severity(
                    key[0],
                    *sampled[key],
                    measure=measure,
                    mean=float(values.mean()) if known else math.nan,
                    max=float(values.max()) if known else math.nan,
                    share=len(mine.own) / len(values) if told and mine else math.nan,
                    share_elsewhere=math.nan if mine is None else len(mine.elsewhere) / len(seeds),
                    share_clear=float((values > bar.clear).mean()) if told else math.nan,
                    own_seeds=mine.own if told and mine else None,
                    elsewhere_seeds=None if mine is None else mine.elsewhere,
                    n=len(seeds),
                    excluded=excluded[key],
                    threshold=bar.own,
                    grade=_grade(copies.get(MASKED), mine, len(seeds)),
                    nearest_reference_id=seen[key, measure].nearest[1],
                )
            )
    return rows


@dataclass(frozen=True)
class _Bar:
    """What a sample has to exceed, by one measure at one recipe; NaN where withheld."""

    own: float
    nearest: float
    clear: float
    typical: float

    @classmethod
    def of(cls, nulls: Sequence[Null], measure: str, recipe: str | None) -> "_Bar":
        here = [n for n in nulls if n.measure == measure and n.recipe in (None, recipe)]
        found = {null.relation: null for null in here}
        own, nearest = (found.get(relation) for relation in ("own", "nearest"))
        pairs = [found[r] for r in ("own", "generated") if r in found]
        return cls(
            # Both kinds of unrelated pairs have to be exceeded; `max` passes NaN on only if first.
            max((n.threshold for n in pairs if math.isfinite(n.threshold)), default=math.nan)
            if own is not None and math.isfinite(own.threshold)
            else math.nan,
            math.nan if nearest is None else nearest.threshold,
            max((n.max for n in pairs if math.isfinite(n.max)), default=math.nan),
            math.nan if own is None else own.typical,
        )


@dataclass(frozen=True)
class _Copies:
    """Seeds whose sample copies an own image, and those whose sample copies another."""

    own: tuple[int, ...]
    elsewhere: tuple[int, ...]


@dataclass
class _Seen:
    """Similarities of a prompt's samples by one measure."""

    own: dict[int, float] = field(default_factory=dict[int, float])
    own_ids: set[str] = field(default_factory=set[str])
    others: list[tuple[int, float, str]] = field(default_factory=list[tuple[int, float, str]])
    typical: dict[int, float] = field(default_factory=dict[int, float])
    nearest: tuple[float, str | None] = (-math.inf, None)

    def add(self, row: Mapping[str, Any]) -> None:
        seed, value, name = row["seed"], row["value"], row["reference_id"]
        if row["relation"] in ("own", "nearest") and (value, name) > (
            self.nearest[0], self.nearest[1] or ""
        ):  # fmt: skip
            self.nearest = value, name
        match row["relation"]:
            case "own":
                self.own_ids.add(name)
                self.own[seed] = max(value, self.own.get(seed, value))
            case "nearest":
                self.others.append((seed, value, name))
            case "typical":
                self.typical[seed] = value
            case _:
                pass

    def copies(self, bar: _Bar) -> _Copies | None:
        """Return which samples are copies; None where that cannot be told."""
        if math.isnan(bar.own) or not (self.own or self.others):
            return None

        def beyond(seed: int) -> float:
            over = self.typical.get(seed, math.nan) - bar.typical
            return max(0.0, over) if math.isfinite(over) else 0.0

        own = {seed for seed, value in self.own.items() if value - beyond(seed) > bar.own}
        elsewhere = {
            seed
            for seed, value, name in self.others
            # Comparison with NaN is false, which is right: what cannot be told does not match.
            if name not in self.own_ids and value - beyond(seed) > bar.nearest
        }
        return _Copies(tuple(sorted(own)), tuple(sorted(elsewhere - own)))


def _grade(template: _Copies | None, mine: _Copies | None, n: int) -> Grade | None:
    def half(seeds: Collection[int]) -> bool:
        return n > 0 and len(seeds) >= GRADED_SHARE * n

    if template is not None and half({*template.own, *template.elsewhere}):
        return "template verbatim"
    if mine is None:
        return None
    if half(mine.own):
        return "matching verbatim"
    return "retrieved verbatim" if half(mine.elsewhere) else "none"


@runtime_checkable
class Tables(Protocol):
    """Whatever gives the tables of a run by name."""

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one table, whole or in some columns."""
        ...


@runtime_checkable
class Parted(Tables, Protocol):
    """Whatever gives them part by part as well.

    The samples of a prompt under one recipe, and their similarities, are written by one unit.
    """

    def units(self, name: str) -> Mapping[str, int]:
        """Return which units wrote a table, and how many rows each."""
        ...

    def part(self, name: str, unit: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what one unit wrote of a table."""
        ...


def assess(
    run: Parted,
    *,
    loaded: Mapping[str, Similarity] | None = None,
    nearest: Mapping[str, Float[np.ndarray, " _"]] | None = None,
    among: Collection[str] | None = None,
    rate: float = RATE,
) -> dict[str, pa.Table]:
    """Derive the tables of severity and of its nulls from a run, a unit at a time.

    The nulls are fitted on the run's training images as they are stored, each cropped and resized
    like a sample, and on its samples with training images of other prompts. A measure whose network
    is not at hand has no null, so its thresholds are withheld.

    Args:
        run: A run with the tables prompts, references, samples and similarities.
        loaded: Similarities that are loaded already, by name; others are loaded as needed.
        nearest: Similarity of some training images to the nearest unrelated one by each measure,
            where samples were compared with more images than the run holds.
        among: Names of the training images that nulls are fitted on; all where not given. Prompts
            that were chosen for being alike have images that are alike.
        rate: Share of unrelated pairs that may exceed a threshold.

    Returns:
        Tables "severity" and "null"; the latter names the null of nearest images "MEASURE:nearest"
        and that of a recipe's samples "MEASURE:generated".
    """
    shown, templates = _first_picture(run), _templates(run)
    size = (0, 0) if shown is None else (shown.shape[1], shown.shape[2])
    kin = _kin(run, templates)
    made = _generated(run, size)
    whole = _Stored(run, size, range(len(kin)))
    own = _Own(whole, size, kin, made.values())
    places = [at for at, one in enumerate(kin) if among is None or one.reference_id in among]
    pictures = whole if among is None else _Stored(run, size, places)
    kin = [kin[at] for at in places]
    nulls: list[Null] = []
    for measure in _measures(run):
        nothing = fit_nulls(measure, np.empty((0, 0)), np.empty((0, 0), bool), rate=rate)
        try:
            similarity = (loaded or {}).get(measure) or get_similarity(measure)
        except ModelError as error:
            nulls += [replace(null, reason=str(error)) for null in nothing]
            continue
        if shown is None:
            nulls += nothing
            continue
        index = similarity.index(pictures)
        fitted = measured_nulls(
            index, pictures, kin, size,
            measure=measure, nearest=(nearest or {}).get(measure), rate=rate,
        )  # fmt: skip
        nulls += fitted
        related = kindred(index, own, kin, templates, size, fitted[0])
        for recipe, some in made.items():
            pairs = generated_pairs(index, some.prompt_ids, some.pixels, size, related)
            nulls.append(generated_null(pairs, fitted[0], recipe, rate=rate))
    compared = run.units("similarities")
    graded = [TABLES["severity"].schema.empty_table()]
    for unit in run.units("samples"):
        samples = run.part("samples", unit, (*KEYS, "status")).to_pylist()
        similar = run.part("similarities", unit).to_pylist() if unit in compared else []
        found = severities(samples, similar, nulls)
        graded.append(TABLES["severity"].of_rows([_row(vars(row), "severity") for row in found]))
    return {
        "severity": pa.concat_tables(graded),
        "null": TABLES["null"].of_rows([_row(_named(null), "null") for null in nulls]),
    }


def _first_picture(run: Parted) -> Pixels | None:
    for unit in run.units("samples"):
        for image in run.part("samples", unit, ["image"])["image"]:
            if image.is_valid:
                return decode(image.as_py())
    return None


def _measures(run: Parted) -> list[str]:
    parts = (run.part("similarities", unit, ["measure"]) for unit in run.units("similarities"))
    return list(dict.fromkeys(name for part in parts for name in part["measure"].to_pylist()))


KEYS = ("prompt_id", "seed", "recipe", "guidance")
"""What names a sample, and its guidance scale."""


Held = TypeVar("Held")

HELD = 2**28
"""Most bytes of decoded pictures that are held while measures take turns, of either kind."""


def _remembered(
    take: Callable[..., Held], count: int, size: tuple[int, int]
) -> Callable[..., Held]:
    """Return what takes pictures of a size, each decoded once where all have room.

    Every measure takes them in turn, so that some of them would never be met again.
    """
    return lru_cache(count if count * 3 * 4 * math.prod(size) <= HELD else 1)(take)


class _Stored(Sequence[Reference]):
    """The training images of a run, decoded as each is taken.

    The part read last is held; where all images have room, every measure finds them decoded.

    Args:
        run: The run.
        size: Height and width of its samples; a stored image is about as large.
        places: Which of them.
    """

    def __init__(self, run: Parted, size: tuple[int, int], places: Sequence[int]) -> None:
        units = run.units("references")
        self.places = places
        self.units, self.ends = list(units), list(accumulate(units.values()))
        self.part = lru_cache(1)(lambda unit: run.part("references", unit))
        self.taken = _remembered(self._take, len(self), size)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Reference: ...

    @overload
    def __getitem__(self, at: slice) -> list[Reference]: ...

    def __getitem__(self, at: int | slice) -> Reference | list[Reference]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        # A sequence ends where its index is out of range.
        return self.taken(range(len(self))[at])

    def _take(self, number: int) -> Reference:
        at = self.places[number]
        place = bisect_right(self.ends, at)
        part = self.part(self.units[place])
        row = at - self.ends[place] + part.num_rows
        pixels, mask = decode_masked(part["image"][row].as_py())
        return Reference(part["reference_id"][row].as_py(), pixels, mask)


@dataclass(frozen=True)
class _Made:
    """Generated pictures of a recipe, decoded as they are taken; the part read last is held."""

    prompt_ids: list[str]
    places: list[tuple[str, int]]
    take: Callable[[str, int], Pixels]

    def pixels(self, rows: range) -> Float[Tensor, "sample 3 height width"]:
        """Return some of the pictures."""
        return torch.stack([self.take(*self.places[at]) for at in rows])


class _Own(Mapping[str, list[Pixels]]):
    """The training images of the prompts that samples are of, cropped and resized like these.

    Args:
        stored: All training images.
        size: Height and width of a sample.
        kin: What is known of each.
        made: The samples.
    """

    def __init__(
        self,
        stored: _Stored,
        size: tuple[int, int],
        kin: Sequence[Kin],
        made: Iterable[_Made],
    ) -> None:
        self.stored, self.size = stored, size
        self.places: dict[str, list[int]] = {p: [] for some in made for p in some.prompt_ids}
        for at, one in enumerate(kin):
            for prompt in one.prompt_ids & self.places.keys():
                self.places[prompt].append(at)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __getitem__(self, prompt: str) -> list[Pixels]:
        return [fit(self.stored[at].pixels, self.size) for at in self.places[prompt]]


def _generated(run: Parted, size: tuple[int, int]) -> dict[str, _Made]:
    """Choose the samples of each recipe that a null is fitted on, evenly over the run."""
    held: dict[str, list[tuple[str, tuple[str, int]]]] = defaultdict(list)
    for unit in run.units("samples"):
        rows = run.part("samples", unit, ["prompt_id", "recipe", "status"]).to_pylist()
        for at, row in enumerate(rows):
            if row["status"] == "ok":
                held[row["recipe"]].append((row["prompt_id"], (unit, at)))
    part = lru_cache(1)(lambda unit: run.part("samples", unit, ["image"]))

    def decoded(unit: str, row: int) -> Pixels:
        return decode(part(unit)["image"][row].as_py())

    made: dict[str, _Made] = {}
    for recipe, found in held.items():
        chosen = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_SAMPLES)).round())
        some = [found[at] for at in chosen.astype(np.intp).tolist()]
        take = _remembered(decoded, len(some), size)
        made[recipe] = _Made([prompt for prompt, _ in some], [place for _, place in some], take)
    return made


def _templates(run: Parted) -> frozenset[str]:
    prompts = run.table("prompts", ["prompt_id", "family", "overfit_type"]).to_pylist()
    return frozenset(
        p["prompt_id"] for p in prompts if p["family"] == "template" or p["overfit_type"] == "TV"
    )


def _kin(run: Parted, templates: frozenset[str]) -> list[Kin]:
    references = run.table("references", ["reference_id", "prompt_ids", "masked"]).to_pylist()
    return [
        Kin(
            r["reference_id"],
            frozenset(r["prompt_ids"]),
            r["masked"] or not templates.isdisjoint(r["prompt_ids"]),
        )
        for r in references
    ]


def _named(null: Null) -> dict[str, Any]:
    suffix = "" if null.relation == "own" else f":{null.relation}"
    return vars(null) | {"measure": f"{null.measure}{suffix}"}


def _row(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    """Keep a table's columns; NaN becomes null."""
    return {
        column.name: None
        if isinstance(value := values[column.name], float) and math.isnan(value)
        else value
        for column in TABLES[table].columns
        if column.name in values
    }
