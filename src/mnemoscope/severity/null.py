r"""A null is the distribution of a similarity over pairs that have nothing to do with each other.

Formula::

    threshold = the k-th smallest of n unrelated pairs' similarities,   k = ceil((1 - rate)·(n + 1))

A new unrelated pair exceeds it with probability at most `rate`, whatever their distribution. The
nearest of many images is close by chance more often than one image is, so it has a threshold of its
own, fitted on each training image's nearest unrelated one. With too few pairs the largest takes the
threshold's place, at the rate 1 / (n + 1) it can vouch for, and with fewer than 19 there is none.

A sampler's pictures need not be as far from training images as those are from each other, so the
same is asked of generated pictures and images unrelated to their prompt, recipe by recipe::

    excess      S[i, r] - max(0, a_i - a)     a_i the median of sample i's row, a that of images
    threshold   the upper 95 % limit of the (1 - rate) quantile, images being drawn anew

The pairs of one image are not independent, hence the images are what is drawn. A pair beyond the
closest two training images is taken for a copy, of which a null must know nothing, and left out. So
is one with an image that is nearer to the prompt's own than the threshold of images: a sample that
shows its own image is as near to that one, and says nothing of chance.

Contents: `Null`; `Kin` and `unrelated`; `fit_nulls`; `measured_nulls`, which compares training
images; `kindred`, `generated_pairs` and `generated_null`, of what a recipe made.

Source: Vovk et al. 2005 (the order statistic); Efron 1979 (the limit); the rest: ours.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mnemoscope.data.images import fit
from mnemoscope.similarity import Index, Reference

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
MOST_SAMPLES = 512
"""Samples of a recipe that a null is fitted on, evenly over the run."""
DRAWS = 400
"""Resamples of images behind the upper limit of a threshold."""
COMPARED = 2**28
"""Bytes of pictures that are compared at a time."""

Pictures = Float[Tensor, "sample 3 height width"]

Relation = Literal["own", "nearest", "generated"]


@dataclass(frozen=True)
class Null:
    """One measure's distribution over unrelated pairs.

    Attributes:
        measure: The measure, preset included.
        relation: "own" for pairs of training images, "nearest" for the nearest unrelated image of
            each, "generated" for samples and images unrelated to them.
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
        recipe: Recipe of the samples; None where there are none.
        typical: Median over images of their median similarity to unrelated ones; NaN unknown.
        copies: Pairs left out as copies.
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
    method: Literal["order statistic", "maximum", "withheld", "upper limit"]
    reason: str = ""
    recipe: str | None = None
    typical: float = math.nan
    copies: int = 0

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
    nearest: Float[np.ndarray, " _"] | None = None,
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
    middles = [np.median(row[use]) for row, use in zip(values, usable, strict=True) if use.any()]
    typical = float(np.median(middles)) if middles else math.nan
    return (
        replace(Null.fit(measure, pairs, rate=rate), typical=typical),
        Null.fit(measure, closest, relation="nearest", rate=rate),
    )


def _nearest(
    values: Float[np.ndarray, "image reference"], usable: Bool[np.ndarray, "image reference"]
) -> Float[np.ndarray, " image"]:
    return np.where(usable, values, -np.inf).max(axis=1, initial=-np.inf)


def _block(size: tuple[int, int]) -> int:
    """Return how many pictures of a size are compared at a time."""
    return max(1, COMPARED // (3 * 4 * math.prod(size)))


def measured_nulls(
    index: Index,
    references: Sequence[Reference],
    kin: Sequence[Kin],
    size: tuple[int, int],
    *,
    measure: str,
    nearest: Float[np.ndarray, " _"] | None = None,
    rate: float = RATE,
) -> tuple[Null, Null]:
    """Compare training images with each other, each cropped and resized like a sample.

    Beyond `MOST` images as many of them, evenly over the list, take the samples' place; each is
    still held against all.

    Args:
        index: The training images, ready to be compared with.
        references: The same, read as they are taken.
        kin: What is known of each.
        size: Height and width of a sample.
        measure: Name the nulls are filed under.
        nearest: Similarity of some images to the nearest unrelated one, where more are known than
            these; found among these where not given.
        rate: Share of unrelated pairs that may exceed a threshold.

    Returns:
        The null of single pairs and that of nearest images.
    """
    count = len(references)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(np.intp))
    values, apart = np.empty((len(chosen), len(chosen))), np.empty((len(chosen),) * 2, dtype=bool)
    closest = np.empty(len(chosen))
    block = _block(size)
    for start in range(0, len(chosen), block):
        rows = slice(start, start + block)
        images = torch.stack([fit(references[at].pixels, size) for at in chosen[rows].tolist()])
        found = index.compare(images).numpy()
        away = unrelated(kin, chosen[rows].tolist())
        closest[rows] = _nearest(found, away & np.isfinite(found))
        values[rows], apart[rows] = found[:, chosen], away[:, chosen]
    known = closest if nearest is None else nearest
    return fit_nulls(measure, values, apart, nearest=known, rate=rate)


def kindred(
    index: Index,
    own: Mapping[str, Sequence[Float[Tensor, "3 height width"]]],
    kin: Sequence[Kin],
    templates: Collection[str],
    size: tuple[int, int],
    trained: Null,
) -> dict[str, Bool[np.ndarray, " reference"]]:
    """Tell which training images may have to do with each prompt.

    Args:
        index: The training images, ready to be compared with.
        own: The prompts, and the images of each, of a sample's size; taken some at a time.
        kin: What is known of each training image.
        templates: Prompts whose image shows a template.
        size: Height and width of a sample.
        trained: The null of pairs of training images, by the same measure.

    Returns:
        True for a prompt's own images, for what is nearer to these than the threshold, and for any
        template where it has one.
    """
    template = np.array([one.template for one in kin], dtype=bool)
    found = {
        prompt: np.array([prompt in one.prompt_ids for one in kin], dtype=bool)
        | (template & (prompt in templates))
        for prompt in own
    }
    held = ((prompt, image) for prompt, images in own.items() for image in images)
    # Taken together: an index reads all of its images for every comparison.
    while some := list(islice(held, _block(size))):
        near = index.compare(torch.stack([image for _, image in some])).numpy()
        for (prompt, _), row in zip(some, near > trained.threshold, strict=True):
            found[prompt] |= row
    return found


def generated_pairs(
    index: Index,
    prompt_ids: Sequence[str],
    pixels: Callable[[range], Pictures],
    size: tuple[int, int],
    related: Mapping[str, Bool[np.ndarray, " reference"]],
) -> Float[np.ndarray, "sample reference"]:
    """Compare generated pictures with training images that have nothing to do with their prompt.

    Args:
        index: The training images, ready to be compared with.
        prompt_ids: Prompt of each picture.
        pixels: Gives some of the pictures.
        size: Their height and width.
        related: Which training images may have to do with each prompt.

    Returns:
        Similarities; NaN where a pair is related, or cannot be compared.
    """
    parts: list[Float[np.ndarray, "some reference"]] = []
    block = _block(size)
    for start in range(0, len(prompt_ids), block):
        rows = range(start, min(start + block, len(prompt_ids)))
        values = index.compare(pixels(rows)).numpy()
        away = ~np.stack([related[prompt_ids[row]] for row in rows])
        parts.append(np.where(away & np.isfinite(values), values, np.nan))
    return np.concatenate(parts)


def generated_null(
    values: Float[np.ndarray, "sample reference"],
    trained: Null,
    recipe: str | None,
    *,
    rate: float = RATE,
    seed: int = 0,
) -> Null:
    """Fit the threshold of a recipe's samples.

    Args:
        values: Similarities of samples to unrelated training images; NaN where there is none.
        trained: The null of pairs of training images, by the same measure.
        recipe: The recipe.
        rate: Share of unrelated pairs that may exceed the threshold.
        seed: Seed of the resampling.

    Source: ours; upper limit by a bootstrap over images (Efron 1979).
    """
    held = np.isfinite(values).any(axis=1)
    rows = values[held]
    beyond = np.nanmedian(rows, axis=1, keepdims=True) - trained.typical if len(rows) else 0.0
    excess = rows - np.maximum(np.nan_to_num(beyond), 0)
    known = np.isfinite(excess)
    copied = known & (excess > trained.max)
    excess = np.where(known & ~copied, excess, np.nan)
    fitted = Null.fit(trained.measure, excess.ravel(), relation="generated", rate=rate)
    made = replace(fitted, recipe=recipe, copies=int(copied.sum()))
    if made.method != "order statistic":
        return made
    limit = _upper_limit(excess, rate, seed)
    return replace(made, threshold=max(made.threshold, limit), method="upper limit")


def _upper_limit(excess: Float[np.ndarray, "sample reference"], rate: float, seed: int) -> float:
    """Return the 95 % upper limit of the (1 - rate) quantile, images being drawn anew."""
    images = np.broadcast_to(np.arange(excess.shape[1]), excess.shape)
    known = np.isfinite(excess)
    pairs = known.sum(axis=0)
    # Only the tail can hold the quantile: twenty times the rate reaches it in any likely resample.
    kept = min(int(known.sum()), math.ceil(20 * rate * known.sum()) + 1)
    flat, whose = excess[known], images[known]
    tail = np.argsort(-flat)[:kept]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=DRAWS)
    allowed = rate * (drawn @ pairs)
    above = np.cumsum(drawn[:, whose[tail]], axis=1)
    at = np.minimum((above <= allowed[:, None]).sum(axis=1), kept - 1)
    return float(np.quantile(flat[tail][at], 0.95))
