r"""A null is what a statistic of the evidence is where prompts and images have nothing to do.

Formulas, with v(p, r) the quantity of the path of prompt p held against the image of prompt r, and
π(p) the prompt whose image p is swapped with::

    swapped images    null(p) = v(p, π(p)) + v(π⁻¹(p), p) - mean over q of v(q, π(q))
    permuted labels   the difference of two groups' means, the groups dealt out at random

A quantity may be large because of the path (one that ends near every picture) or because of the
image (one that every path comes near): v(p, r) = path(p) + image(r). Then v(p, p) = null(p) on
average, also for prompts that were chosen *for* their path or their image; what is left is what
this prompt does to this image.

Contents: `expected`, the null of each prompt; `against_swapped`, `against_others` and `by_group`,
contrasts of a group.
"""

from collections.abc import Callable, Collection, Mapping
from math import isfinite, nan

import numpy as np

from mnemoscope.core.stats import (
    PERMUTED,
    SWAPPED,
    Contrast,
    mean_gap,
    median,
    nothing,
    permuted,
    swapped,
)
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base.record import FEWEST, Record

Quantity = Callable[[Record], Mapping[str, float]]
"""A number a prompt, computed from a record."""


def expected(record: Record, of: Quantity) -> dict[str, float]:
    """Return what a quantity of each prompt is where prompt and image have nothing to do.

    Raises:
        NeedsError: If the run did not set another image beside the target.

    Source: ours; the additive model of a two-way table (Fisher 1925).
    """
    found = {p: v for p, v in of(record.swapped).items() if isfinite(v) and p in record.swaps}
    whole = float(np.mean(list(found.values()))) if found else nan
    path_of = {image: prompt for prompt, image in record.swaps.items() if prompt in found}
    return {
        prompt: value + found[path_of[prompt]] - whole
        for prompt, value in found.items()
        if prompt in path_of
    }


def against_swapped(record: Record, of: Quantity, prompts: Collection[str]) -> Contrast:
    """Compare the median of a quantity over some prompts with what it is with swapped images.

    Source: ours.
    """
    try:
        own, null = of(record), expected(record, of)
    except NeedsError as missing:
        return nothing(SWAPPED, str(missing))
    held = sorted(p for p in prompts if isfinite(own.get(p, nan)) and isfinite(null.get(p, nan)))
    if len(held) < FEWEST:
        return nothing(SWAPPED, f"{len(held)} prompts with both; it takes {FEWEST}", len(held))
    sides = (np.array([side[p] for p in held], dtype=np.float64) for side in (own, null))
    ours, theirs = sides
    return swapped(median, [ours], [theirs])


def against_others(record: Record, of: Quantity) -> Contrast:
    """Compare how far memorized prompts lie above the others, with what random groups do.

    Source: ours.
    """
    try:
        return by_group(record, of(record))
    except NeedsError as missing:
        return nothing(PERMUTED, str(missing))


def by_group(record: Record, values: Mapping[str, float]) -> Contrast:
    """Compare the means of memorized prompts and of the others, with what random groups do.

    Means, since the median of a group that random labels mix of two kinds is of either kind.

    Source: ours.
    """
    held = sorted(p for p in record.memorized | record.others if isfinite(values.get(p, nan)))
    ours = np.array([p in record.memorized for p in held], dtype=np.float64)
    least = int(min(ours.sum(), len(ours) - ours.sum())) if held else 0
    if least < FEWEST:
        return nothing(PERMUTED, f"{least} prompts in a group; it takes {FEWEST}", len(held))
    return permuted(
        mean_gap, np.array([values[p] for p in held], dtype=np.float64), ours, name="gap of means"
    )
