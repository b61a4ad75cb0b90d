r"""Severity says how far generated images are copies of training images.

Formulas, with S[i, r] the similarity of sample i and training image r::

    image severity    s_i   = max over the prompt's own references r of S[i, r]
    nearest           m_i   = max over all other known training images of S[i, r]
    prompt severity   mean_i s_i,   max_i s_i,   share of i with s_i > threshold

Only samples with status "ok" count; the others are excluded and counted. The thresholds are those
of unrelated pairs (see `severity.null`). Samples made by different recipes are kept apart.

A prompt's grade is the first that holds for any of its samples, in Webster's order::

    template verbatim    a template matches under its mask
    matching verbatim    one of its own images matches
    retrieved verbatim   another training image matches
    none                 nothing matched with the seeds tried; others might

Contents: `image_severity` and `severities`; `assess`, the two tables of a run.

Source: Webster 2023 (grades); the threshold on pairs: ours.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Protocol, overload, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from mnemoscope.data.images import Pixels, decode, decode_mask
from mnemoscope.errors import ModelError
from mnemoscope.runs.tables import TABLES
from mnemoscope.severity.null import (
    RATE,
    Kin,
    Null,
    Relation,
    fit_nulls,
    measured_nulls,
)
from mnemoscope.similarity import Reference, Similarity, get_similarity

MASKED = "masked_l2"
"""The measure that recognizes templates."""

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
        share: Share of samples above the threshold; NaN also where it is withheld.
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
    thresholds = {(null.measure, null.relation): null.threshold for null in nulls}
    ok: dict[Key, set[int]] = defaultdict(set)
    sampled: dict[Key, tuple[str | None, float | None]] = {}
    excluded: dict[Key, int] = defaultdict(int)
    for row in samples:
        key = _key(row)
        sampled[key] = row.get("recipe"), row.get("guidance")
        ok[key].update([row["seed"]] if row["status"] == "ok" else [])
        excluded[key] += row["status"] != "ok"

    own: dict[tuple[Key, str], dict[int, float]] = defaultdict(dict)
    others: dict[tuple[Key, str], list[tuple[float, str]]] = defaultdict(list)
    own_ids: dict[tuple[Key, str], set[str]] = defaultdict(set)
    nearest: dict[tuple[Key, str], tuple[float, str]] = {}
    for row in similarities:
        key = _key(row)
        place, value = (key, row["measure"]), row["value"]
        if row["seed"] not in ok[key] or value is None or not math.isfinite(value):
            continue
        found = (value, row["reference_id"])
        nearest[place] = max(nearest.get(place, found), found)
        if row["relation"] == "own":
            own_ids[place].add(row["reference_id"])
            own[place][row["seed"]] = max(value, own[place].get(row["seed"], value))
        else:
            others[place].append(found)

    def best_other(place: tuple[Key, str]) -> float:
        values = (value for value, name in others[place] if name not in own_ids[place])
        return max(values, default=math.nan)

    def exceeds(value: float, measure: str, relation: Relation) -> bool:
        # Comparison with NaN is false, which is right: what cannot be told does not match.
        return value > thresholds.get((measure, relation), math.nan)

    def grade(key: Key, measure: str) -> Grade | None:
        template, place = (key, MASKED), (key, measure)
        if exceeds(max(own[template].values(), default=math.nan), MASKED, "own"):
            return "template verbatim"
        if exceeds(best_other(template), MASKED, "nearest"):
            return "template verbatim"
        fitted = math.isfinite(thresholds.get((measure, "own"), math.nan))
        if not fitted or not (own[place] or others[place]):
            return None
        if exceeds(max(own[place].values(), default=math.nan), measure, "own"):
            return "matching verbatim"
        if exceeds(best_other(place), measure, "nearest"):
            return "retrieved verbatim"
        return "none"

    measures = list(dict.fromkeys(null.measure for null in nulls))
    rows: list[Severity] = []
    for key, seeds in ok.items():
        for measure in measures:
            values = np.array(list(own[key, measure].values()), dtype=np.float64)
            threshold = thresholds.get((measure, "own"), math.nan)
            known = len(values) > 0
            told = known and math.isfinite(threshold)
            rows.append(
                Severity(
                    key[0],
                    *sampled[key],
                    measure=measure,
                    mean=float(values.mean()) if known else math.nan,
                    max=float(values.max()) if known else math.nan,
                    share=float((values > threshold).mean()) if told else math.nan,
                    n=len(seeds),
                    excluded=excluded[key],
                    threshold=threshold,
                    grade=grade(key, measure),
                    nearest_reference_id=nearest.get((key, measure), (0.0, None))[1],
                )
            )
    return rows


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
    run: Parted, *, loaded: Mapping[str, Similarity] | None = None, rate: float = RATE
) -> dict[str, pa.Table]:
    """Derive the tables of severity and of its nulls from a run, a unit at a time.

    The nulls are fitted on the run's training images as they are stored, each cropped and resized
    like a sample. A measure whose network is not at hand has no null, so its thresholds are
    withheld.

    Args:
        run: A run with the tables prompts, references, samples and similarities.
        loaded: Similarities that are loaded already, by name; others are loaded as needed.
        rate: Share of unrelated pairs that may exceed a threshold.

    Returns:
        Tables "severity" and "null"; the latter names the null of nearest images "MEASURE:nearest".
    """
    shown = _first_picture(run)
    pictures, kin = _Stored(run), _kin(run)
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
        size = shown.shape[1], shown.shape[2]
        nulls += measured_nulls(similarity, pictures, kin, size, measure=measure, rate=rate)
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


class _Stored(Sequence[Reference]):
    """The training images of a run, decoded as each is taken; the part read last is held."""

    def __init__(self, run: Parted) -> None:
        units = run.units("references")
        self.units, self.ends = list(units), list(accumulate(units.values()))
        self.part = lru_cache(1)(lambda unit: run.part("references", unit))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, at: int) -> Reference: ...

    @overload
    def __getitem__(self, at: slice) -> list[Reference]: ...

    def __getitem__(self, at: int | slice) -> Reference | list[Reference]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        # A sequence ends where its index is out of range.
        at = range(len(self))[at]
        place = bisect_right(self.ends, at)
        part = self.part(self.units[place])
        row = at - self.ends[place] + part.num_rows
        data = part["image"][row].as_py()
        return Reference(part["reference_id"][row].as_py(), decode(data), decode_mask(data))


def _kin(run: Parted) -> list[Kin]:
    prompts = run.table("prompts", ["prompt_id", "family", "overfit_type"]).to_pylist()
    references = run.table("references", ["reference_id", "prompt_ids", "masked"]).to_pylist()
    templates = {
        p["prompt_id"] for p in prompts if p["family"] == "template" or p["overfit_type"] == "TV"
    }
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
