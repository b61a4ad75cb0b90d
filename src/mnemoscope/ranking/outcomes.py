r"""An outcome is what became of samples under one mitigation, compared with plain guidance.

Every value is one of a sample, and a metric a statistic over the samples of some prompts::

    severity     mean similarity to the prompt's own training images
    severity_95  its 95 % quantile over samples
    reproduced   share of samples that copy the prompt's own image (`severity.truth`)
    copies       share of samples that copy any training image known
    right        share of samples that show what the caption names
    right_new    share that show it and are no copy
    alignment    cosine of picture and caption by CLIP
    scene_distance    distance to scenes in a judge's features, about 1 for a scene
    diversity    RMSE to the other seeds of the prompt
    saturation   mean over pixels of max - min of red, green and blue
    changed      RMSE to the same sample unmitigated, over that between two unmitigated seeds
    identical    share of samples with every pixel as unmitigated
    k            weight of the training image in the guided clean estimate at the first call
    w0, wT       largest excess of w0 over the schedule; largest fall of wT below it
    network_calls, seconds, memory    price of a sample; MiB of tensors held at once

Intervals are percentile bootstraps that draw prompts, then seeds within each; a change draws the
same for both sides.

Contents: `Outcome`, `Comparison`, `compare`, `front`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
from jaxtyping import Bool, Float, Int

from mnemoscope.core.stats import Estimate, interval

DRAWS = 500
"""Resamples of an interval."""

Values = Float[np.ndarray, "prompt seed"]

AVERAGED = (
    "severity",
    "reproduced",
    "copies",
    "right",
    "right_new",
    "alignment",
    "scene_distance",
    "diversity",
    "saturation",
    "changed",
    "identical",
    "k",
    "w0",
    "wT",
    "network_calls",
    "seconds",
    "memory",
)
"""Metrics that are means over samples."""

METRICS = ("severity", "severity_95", *AVERAGED[1:])
"""All metrics, in the order of the tables."""


@dataclass(frozen=True)
class Outcome:
    """What became of the samples under one mitigation.

    Attributes:
        setting: The mitigation with its settings; empty for plain guidance.
        method: Its name.
        strength: Its strength; NaN for plain guidance.
        source: Who it is from.
        gated: Whether it acts on suspicious prompts alone.
        values: Values of the samples by metric; NaN where there is none.
    """

    setting: str
    method: str
    strength: float
    source: str
    gated: bool
    values: Mapping[str, Values]

    def behind(self, plain: "Outcome", suspicious: Bool[np.ndarray, " prompt"]) -> "Outcome":
        """Return the outcome where only suspicious prompts are mitigated, and others left plain."""
        mixed = {
            name: np.where(suspicious[:, None], mine, plain.values[name])
            for name, mine in self.values.items()
        }
        return replace(self, gated=True, values=mixed)


@dataclass(frozen=True)
class Comparison:
    """One metric of one outcome over one population.

    Attributes:
        outcome: The outcome.
        population: "memorized" or "others".
        metric: The metric.
        value: Its value.
        change: Its value less that of plain guidance, paired.
    """

    outcome: Outcome
    population: str
    metric: str
    value: Estimate
    change: Estimate


def compare(
    outcomes: Sequence[Outcome],
    plain: Outcome,
    populations: Mapping[str, Bool[np.ndarray, " prompt"]],
    *,
    seed: int = 0,
) -> list[Comparison]:
    """Compare outcomes with plain guidance, plain guidance itself first.

    Args:
        outcomes: Outcomes on the same prompts and seeds.
        plain: Plain guidance.
        populations: Which prompts each population is of.
        seed: Seed of the resampling.

    Returns:
        A row for each outcome, population and metric that has a value.
    """
    rows: list[Comparison] = []
    for outcome in (plain, *outcomes):
        for population, here in populations.items():
            for metric in METRICS:
                name = metric.removesuffix("_95")
                mine, other = (one.values[name][here] for one in (outcome, plain))
                if not np.isfinite(mine).any():
                    continue
                value, change = _estimates(mine, other, metric, seed)
                rows.append(Comparison(outcome, population, metric, value, change))
    return rows


def front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the places that nothing beats: none with a smaller x has as large a y."""
    order = sorted(range(len(x)), key=lambda at: (x[at], -y[at]))
    best, found = -np.inf, list[int]()
    for at in order:
        if y[at] > best:
            found.append(at)
            best = y[at]
    return found


def _estimates(mine: Values, other: Values, metric: str, seed: int) -> tuple[Estimate, Estimate]:
    """Return a metric with its interval, and its change."""
    known = np.isfinite(mine).any(axis=1) & np.isfinite(other).any(axis=1)
    mine, other = mine[known], other[known]
    statistic = _quantile if metric.endswith("_95") else _mean
    method = f"{metric}, percentile bootstrap over prompts and seeds, 95%, {DRAWS} draws"

    def estimate(*sides: Values) -> Estimate:
        def told(pick: Callable[[Values], Values]) -> Float[np.ndarray, " draw"]:
            first, *rest = (statistic(pick(side)) for side in sides)
            return first - rest[0] if rest else first

        def resampled(picks: Int[np.ndarray, "draw prompt"]) -> Float[np.ndarray, " draw"]:
            seeds = mine.shape[1]
            within = np.random.default_rng(seed + 1).integers(seeds, size=(*picks.shape, seeds))
            return told(lambda side: side[picks[..., None], within].reshape(len(picks), -1))

        value = float(told(lambda side: side.reshape(1, -1))[0]) if len(mine) else nan
        return interval(
            value, resampled, len(mine), method=method, whose="prompts", draws=DRAWS, seed=seed
        )

    return estimate(mine), estimate(mine, other)


def _mean(values: Float[np.ndarray, "draw sample"]) -> Float[np.ndarray, " draw"]:
    held = np.isfinite(values)
    count = held.sum(axis=1)
    return np.where(count > 0, np.where(held, values, 0).sum(axis=1) / count.clip(1), nan)


def _quantile(values: Float[np.ndarray, "draw sample"]) -> Float[np.ndarray, " draw"]:
    return _mean(np.nanquantile(values, 0.95, axis=1)[:, None])
