r"""Severity says how far generated images are copies of training images.

Formulas, with S[i, r] the similarity of sample i and training image r::

    image severity    s_i   = max over the prompt's own references r of S[i, r]
    nearest           m_i   = max over all other known training images of S[i, r]
    prompt severity   mean_i s_i,   max_i s_i,   share of i with s_i > threshold
    threshold         the k-th smallest of n unrelated pairs' similarities,
                      k = ceil((1 - rate)·(n + 1))

Only samples with status "ok" count; the others are excluded and counted. The threshold is fitted,
one a measure, on pairs of training images that have nothing to do with each other: a new unrelated
pair exceeds it with probability at most `rate`, whatever their distribution. The nearest of many
images is close by chance more often than one image is, so it has a threshold of its own, fitted on
each training image's nearest unrelated one. With too few pairs the largest takes the threshold's
place, at the rate 1 / (n + 1) it can vouch for, and with fewer than 19 there is none.

A prompt's grade is the first that holds for any of its samples, in Webster's order::

    template verbatim    a template matches under its mask
    matching verbatim    one of its own images matches
    retrieved verbatim   another training image matches
    none                 nothing matched with the seeds tried; others might

Contents: `fit_nulls` and `unrelated`; `image_severity` and `severities`; `assess`, the two tables
of a run.

Source: Webster 2023 (grades); Vovk et al. 2005 (the order statistic); the threshold on pairs: ours.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float

from mnemoscope.errors import ModelError
from mnemoscope.data.images import decode, decode_mask, fit
from mnemoscope.similarity import Reference, Similarity, get_similarity
from mnemoscope.runs.tables import TABLES

RATE = 1e-3
"""Share of unrelated pairs that may pass for a match."""
MAX_RATE = 0.05
"""Rate above which no threshold is given: 18 unrelated pairs or fewer say too little."""
MASKED = "masked_l2"
"""The measure that recognizes templates."""

Relation = Literal["own", "nearest"]
Grade = Literal["template verbatim", "matching verbatim", "retrieved verbatim", "none"]


@dataclass(frozen=True)
class Null:
    """One measure's distribution over unrelated pairs.

    Attributes:
        measure: The measure, preset included.
        relation: "own" for single pairs, "nearest" for the nearest unrelated image of each.
        n: Number of pairs.
        q50: Median; NaN where there are no pairs, as for the other quantiles.
        q95: 95 % quantile.
        q99: 99 % quantile.
        q999: 99.9 % quantile.
        max: Maximum.
        threshold: Similarity above which two images count as the same; NaN where withheld.
        rate: Share of unrelated pairs that may exceed it; NaN where withheld.
        method: "order statistic", "maximum" (too few pairs for the rate asked) or "withheld".
        reason: Why the method is not the order statistic; empty otherwise.
    """

    measure: str
    relation: Relation
    n: int
    q50: float
    q95: float
    q99: float
    q999: float
    max: float
    threshold: float
    rate: float
    method: Literal["order statistic", "maximum", "withheld"]
    reason: str = ""

    @classmethod
    def fit(
        cls,
        measure: str,
        values: Float[np.ndarray, " pair"],
        *,
        relation: Relation = "own",
        rate: float = RATE,
    ) -> "Null":
        """Fit the distribution and its threshold.

        Args:
            measure: The measure, preset included.
            values: Similarities of unrelated pairs; those that are not finite are left out.
            relation: What the pairs are.
            rate: Share of unrelated pairs that may exceed the threshold.

        Returns:
            The fitted distribution.

        Source: Vovk et al. 2005 (conformal prediction).
        """
        ordered = np.sort(values[np.isfinite(values)].astype(np.float64))
        n = len(ordered)
        levels = (0.5, 0.95, 0.99, 0.999, 1.0)
        quantiles = np.quantile(ordered, levels) if n else np.full(len(levels), math.nan)
        q50, q95, q99, q999, largest = (float(q) for q in quantiles)
        rank = math.ceil((1 - rate) * (n + 1))
        threshold, method, reason = math.nan, "withheld", ""
        if rank <= n:
            threshold, method = float(ordered[rank - 1]), "order statistic"
        elif 1 / (n + 1) <= MAX_RATE:
            threshold, rate, method = float(ordered[-1]), 1 / (n + 1), "maximum"
            reason = (
                f"{n} unrelated pairs vouch for a rate of {rate:.2g}, not for the one asked for"
            )
        else:
            rate = math.nan
            reason = f"{n} unrelated pairs are too few for any threshold"
        return cls(
            measure, relation, n, q50, q95, q99, q999, largest, threshold, rate, method, reason
        )


def fit_nulls(
    measure: str,
    values: Float[np.ndarray, "image reference"],
    unrelated: Bool[np.ndarray, "image reference"],
    *,
    rate: float = RATE,
) -> tuple[Null, Null]:
    """Fit the thresholds for a prompt's own images and for the nearest of all.

    Args:
        measure: The measure, preset included.
        values: Similarity of every training image, as if it had been generated, to every reference.
        unrelated: Which of these pairs have nothing to do with each other.
        rate: Share of unrelated pairs that may exceed a threshold.

    Returns:
        The null of single pairs and that of nearest images.
    """
    usable = unrelated & np.isfinite(values)
    # Both directions of a pair are one piece of evidence. Only a mask makes them differ.
    once = np.array_equal(usable, usable.T)
    pairs = values[np.triu(usable, 1) if once else usable]
    rows = usable.any(axis=1)
    nearest = np.where(usable, values, -np.inf)[rows].max(axis=1, initial=-np.inf)
    return (
        Null.fit(measure, pairs, rate=rate),
        Null.fit(measure, nearest, relation="nearest", rate=rate),
    )


@dataclass(frozen=True)
class Kin:
    """What may relate a training image to others.

    Attributes:
        reference_id: Its name; equal pixels have equal names.
        prompt_ids: Prompts it belongs to.
        template: Whether it shows a template.
    """

    reference_id: str
    prompt_ids: frozenset[str] = field(default_factory=frozenset[str])
    template: bool = False


def unrelated(kin: Sequence[Kin]) -> Bool[np.ndarray, "reference reference"]:
    """Tell which pairs of training images have nothing to do with each other.

    Related are an image and itself, images of one prompt, and any two that show templates, since
    which share a layout is not known.

    Args:
        kin: What is known of each image.

    Returns:
        True for unrelated pairs; symmetric.
    """
    return np.array(
        [
            [
                a.reference_id != b.reference_id
                and not a.prompt_ids & b.prompt_ids
                and not (a.template and b.template)
                for b in kin
            ]
            for a in kin
        ],
        dtype=bool,
    ).reshape(len(kin), len(kin))


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
    """Severity of one prompt at one guidance scale, by one measure.

    Attributes:
        prompt_id: The prompt.
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
    guidance: float
    measure: str
    mean: float
    max: float
    share: float
    n: int
    excluded: int
    threshold: float
    grade: Grade | None
    nearest_reference_id: str | None


Key = tuple[str, float]


def severities(
    samples: Iterable[Mapping[str, Any]],
    similarities: Iterable[Mapping[str, Any]],
    nulls: Sequence[Null],
) -> list[Severity]:
    """Reduce similarities to the severity of each prompt, guidance scale and measure.

    Args:
        samples: Rows with prompt_id, seed, guidance and status.
        similarities: Rows with prompt_id, seed, guidance, measure, reference_id, relation and
            value; a "nearest" row whose reference is also an "own" one of the prompt says nothing
            new.
        nulls: The nulls of every measure.

    Returns:
        One severity for each prompt, guidance scale and measure, in the order of the rows.
    """
    thresholds = {(null.measure, null.relation): null.threshold for null in nulls}
    ok: dict[Key, set[int]] = defaultdict(set)
    excluded: dict[Key, int] = defaultdict(int)
    for row in samples:
        key = row["prompt_id"], row["guidance"]
        ok[key].update([row["seed"]] if row["status"] == "ok" else [])
        excluded[key] += row["status"] != "ok"

    own: dict[tuple[Key, str], dict[int, float]] = defaultdict(dict)
    others: dict[tuple[Key, str], list[tuple[float, str]]] = defaultdict(list)
    own_ids: dict[tuple[Key, str], set[str]] = defaultdict(set)
    nearest: dict[tuple[Key, str], tuple[float, str]] = {}
    for row in similarities:
        key = row["prompt_id"], row["guidance"]
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
                    *key,
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

    def table(self, name: str) -> pa.Table:
        """Return one table."""
        ...


def assess(
    run: Tables, *, loaded: Mapping[str, Similarity] | None = None, rate: float = RATE
) -> dict[str, pa.Table]:
    """Derive the tables of severity and of its nulls from a run.

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
    samples = run.table("samples").select(["prompt_id", "seed", "guidance", "status", "image"])
    similarities = run.table("similarities").to_pylist()
    references = run.table("references").to_pylist()
    apart = unrelated(_kin(references, run.table("prompts").to_pylist()))
    pictures = [
        Reference(r["reference_id"], decode(r["image"]), decode_mask(r["image"]))
        for r in references
    ]
    images = (image.as_py() for image in samples["image"])
    shown = next((decode(image) for image in images if image), None)
    as_samples = None
    if shown is not None and pictures:
        size = shown.shape[1], shown.shape[2]
        as_samples = torch.stack([fit(p.pixels, size) for p in pictures])

    nulls: list[Null] = []
    for measure in dict.fromkeys(row["measure"] for row in similarities):
        values, missing = np.full(apart.shape, np.nan), ""
        try:
            similarity = (loaded or {}).get(measure) or get_similarity(measure)
            if as_samples is not None:
                values = similarity.index(pictures).compare(as_samples).numpy()
        except ModelError as error:
            missing = str(error)
        for null in fit_nulls(measure, values, apart, rate=rate):
            nulls.append(replace(null, reason=missing or null.reason))
    rows = severities(samples.drop_columns(["image"]).to_pylist(), similarities, nulls)
    return {
        "severity": TABLES["severity"].of_rows([_row(vars(row), "severity") for row in rows]),
        "null": TABLES["null"].of_rows([_row(_named(null), "null") for null in nulls]),
    }


def _kin(references: list[dict[str, Any]], prompts: list[dict[str, Any]]) -> list[Kin]:
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
