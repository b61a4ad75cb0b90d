r"""A null is the distribution of a similarity over pairs that have nothing to do with each other.

Formula::

    threshold = the k-th smallest of n unrelated pairs' similarities,   k = ceil((1 - rate)·(n + 1))

A new unrelated pair exceeds it with probability at most `rate`, whatever their distribution. The
nearest of many images is close by chance more often than one image is, so it has a threshold of its
own, fitted on each training image's nearest unrelated one. With too few pairs the largest takes the
threshold's place, at the rate 1 / (n + 1) it can vouch for, and with fewer than 19 there is none.

Contents: `Null`; `Kin` and `unrelated`; `fit_nulls`; `measured_nulls`, which compares images.

Source: Vovk et al. 2005 (the order statistic); the threshold on pairs: ours.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from mnemoscope.data.images import fit
from mnemoscope.similarity import Reference, Similarity

RATE = 1e-3
"""Share of unrelated pairs that may pass for a match."""
MAX_RATE = 0.05
"""Rate above which no threshold is given: 18 unrelated pairs or fewer say too little."""
FEWEST_PAIRS = math.ceil(1 / MAX_RATE) - 1
"""Unrelated pairs that give a threshold."""
FEWEST_IMAGES = math.ceil((1 + math.sqrt(1 + 8 * FEWEST_PAIRS)) / 2)
"""Training images that have as many pairs, if none are related."""
MOST = 2000
"""Training images that a null is fitted on, evenly over the list: 2 million pairs, 0.1 GB."""
BLOCK = 64
"""Training images that are compared at a time, as if each had been generated."""

Relation = Literal["own", "nearest"]


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


def unrelated(
    kin: Sequence[Kin], of: Sequence[int] | None = None
) -> Bool[np.ndarray, "image reference"]:
    """Tell which pairs of training images have nothing to do with each other.

    Related are an image and itself, images of one prompt, and any two that show templates, since
    which share a layout is not known.

    Args:
        kin: What is known of each image.
        of: Images whose rows are wanted; all where not given.

    Returns:
        True for unrelated pairs, a row an image wanted and a column an image.
    """
    rows = np.arange(len(kin)) if of is None else np.asarray(of, dtype=np.intp)
    codes = np.unique([one.reference_id for one in kin], return_inverse=True)[1]
    template = np.array([one.template for one in kin], dtype=bool)
    apart = codes[rows][:, None] != codes[None]
    apart &= ~(template[rows][:, None] & template[None])
    members: dict[str, list[int]] = defaultdict(list)
    for at, one in enumerate(kin):
        for prompt in one.prompt_ids:
            members[prompt].append(at)
    for row, at in enumerate(rows.tolist()):
        for prompt in kin[at].prompt_ids:
            apart[row, members[prompt]] = False
    return apart


def fit_nulls(
    measure: str,
    values: Float[np.ndarray, "image image"],
    unrelated: Bool[np.ndarray, "image image"],
    *,
    nearest: Float[np.ndarray, " image"] | None = None,
    rate: float = RATE,
) -> tuple[Null, Null]:
    """Fit the thresholds for a prompt's own images and for the nearest of all.

    Args:
        measure: The measure, preset included.
        values: Similarity of every training image, as if it had been generated, to every one.
        unrelated: Which of these pairs have nothing to do with each other.
        nearest: Similarity of each to the nearest unrelated image, where more are known than those
            of the values; not finite where there is none.
        rate: Share of unrelated pairs that may exceed a threshold.

    Returns:
        The null of single pairs and that of nearest images.
    """
    usable = unrelated & np.isfinite(values)
    # Both directions of a pair are one piece of evidence. Only a mask makes them differ.
    once = np.array_equal(usable, usable.T)
    pairs = values[np.triu(usable, 1) if once else usable]
    closest = _nearest(values, usable) if nearest is None else nearest
    return (
        Null.fit(measure, pairs, rate=rate),
        Null.fit(measure, closest, relation="nearest", rate=rate),
    )


def _nearest(
    values: Float[np.ndarray, "image reference"], usable: Bool[np.ndarray, "image reference"]
) -> Float[np.ndarray, " image"]:
    return np.where(usable, values, -np.inf).max(axis=1, initial=-np.inf)


def measured_nulls(
    similarity: Similarity,
    references: Sequence[Reference],
    kin: Sequence[Kin],
    size: tuple[int, int],
    *,
    measure: str,
    rate: float = RATE,
) -> tuple[Null, Null]:
    """Compare training images with each other, each cropped and resized like a sample.

    Beyond `MOST` images as many of them, evenly over the list, take the samples' place; each is
    still held against all.

    Args:
        similarity: The measure.
        references: The training images, read as they are taken.
        kin: What is known of each.
        size: Height and width of a sample.
        measure: Name the nulls are filed under.
        rate: Share of unrelated pairs that may exceed a threshold.

    Returns:
        The null of single pairs and that of nearest images.
    """
    count = len(references)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(np.intp))
    index = similarity.index(references)
    values, apart = np.empty((len(chosen), len(chosen))), np.empty((len(chosen),) * 2, dtype=bool)
    nearest = np.empty(len(chosen))
    for start in range(0, len(chosen), BLOCK):
        rows = slice(start, start + BLOCK)
        images = torch.stack([fit(references[at].pixels, size) for at in chosen[rows].tolist()])
        found = index.compare(images).numpy()
        away = unrelated(kin, chosen[rows].tolist())
        nearest[rows] = _nearest(found, away & np.isfinite(found))
        values[rows], apart[rows] = found[:, chosen], away[:, chosen]
    return fit_nulls(measure, values, apart, nearest=nearest, rate=rate)
