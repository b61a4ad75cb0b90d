"""A record is what a run holds, as arrays, for analyses to compute on.

Aggregation, the same everywhere: a quantity is computed for every sample and call, averaged over
the seeds of a prompt, and then summarised over prompts: median, with the 16 % and 84 % quantiles as
band. A prompt is the unit, since the samples of one prompt are not independent; n counts prompts.

Contents: `Record` with `Samples`, `Convergence` and `Exact`; `Trace`, a quantity a prompt and call.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan
from typing import Literal, SupportsInt

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.core.panels import Role
from mnemoscope.errors import NeedsError

Law = Literal["path", "forward", "noise"]
LAWS: tuple[Law, ...] = ("path", "forward", "noise")
"""Where a state comes from: the sampler, the training image with noise, or noise alone."""

LAW_IN_WORDS = {
    "path": "generated states",
    "forward": "noised training images",
    "noise": "pure noise",
}

GROUPS: tuple[Role, ...] = ("memorized", "not memorized", "control", "other")
"""The populations, in the order they are drawn in; "other" prompts have no training image, or could
not be judged."""

FEWEST = 3
"""Fewest prompts whose median a check relies on."""

Ratings = Mapping[tuple[str, int], float]
"""Similarity of each sample, by prompt and seed, to a training image."""

NO_OTHER = "the run set no other image beside each prompt's own, so it has no null"

PATH_GUIDANCE = 7.5
"""Guidance scale the figures show where a run has several; Stable Diffusion's default."""


@dataclass(frozen=True)
class Samples:
    """The samples of one input law, at one guidance scale.

    Attributes:
        gram: Their inner products.
        prompts: Prompt of each sample.
        seeds: Seed of each sample.
        calls: Index on the path of each call of `gram`.
        guidance: Guidance scale; NaN for probes that were not read at any (see `Record.take`).
    """

    gram: Gram
    prompts: Shaped[np.ndarray, " sample"]
    seeds: Int[np.ndarray, " sample"]
    calls: Int[np.ndarray, " call"]
    guidance: float = nan

    @classmethod
    def of(
        cls,
        gram: Gram,
        prompts: Iterable[str],
        seeds: Iterable[SupportsInt],
        calls: Iterable[SupportsInt] | None = None,
        guidance: float | None = None,
    ) -> "Samples":
        """Take plain sequences; the calls are 0, 1, ... where not given.

        Source: ours.
        """
        index = range(gram.calls) if calls is None else calls
        return cls(
            gram,
            np.array(list(prompts), dtype=np.str_),
            np.array([int(seed) for seed in seeds], dtype=np.int64),
            np.array([int(call) for call in index], dtype=np.int64),
            nan if guidance is None else guidance,
        )

    def states(self) -> "Samples":
        """Return the same samples at the destination of every update.

        Source: ours; see `Gram.states`.
        """
        return replace(self, gram=self.gram.states(), calls=self.calls + 1)

    def where(self, keep: Bool[np.ndarray, " sample"]) -> "Samples":
        """Return some of the samples.

        Source: ours.
        """
        return replace(
            self,
            gram=self.gram.select(torch.from_numpy(keep)),
            prompts=self.prompts[keep],
            seeds=self.seeds[keep],
        )


@dataclass(frozen=True)
class Trace:
    """One quantity, a row a prompt and a column a call.

    Attributes:
        quantity: What it is, as it is called in the tables.
        law: Where the states come from.
        guidance: Guidance scale.
        reference: What stands for x, "target" or "final sample"; empty where neither is used.
        prompts: The prompts.
        calls: Index of each call on the path.
        log_snr: Log signal-to-noise ratio of each call.
        values: Mean over the prompt's seeds; NaN where there is none.
    """

    quantity: str
    law: Law
    guidance: float
    reference: str
    prompts: tuple[str, ...]
    calls: Int[np.ndarray, " call"]
    log_snr: Float[np.ndarray, " call"]
    values: Float[np.ndarray, "prompt call"]

    def of(self, prompts: Collection[str]) -> Float[np.ndarray, "some call"]:
        """Return the rows of those of the given prompts that have any value."""
        wanted = np.array([prompt in prompts for prompt in self.prompts], dtype=np.bool_)
        return self.values[wanted & np.isfinite(self.values).any(axis=1)]

    def at(self, column: int) -> dict[str, float]:
        """Return the value of each prompt at one column."""
        return dict(zip(self.prompts, self.values[:, column].tolist(), strict=True))

    def typical(self, prompts: Collection[str]) -> Float[np.ndarray, " call"]:
        """Return the median over prompts; NaN at calls where fewer than `FEWEST` have a value."""
        return quantiles(self.of(prompts), (0.5,), fewest=FEWEST)[0]


@dataclass(frozen=True)
class Convergence:
    """How the seeds of a prompt spread, per call, at one guidance scale.

    Attributes:
        prompts: The prompts, one a row of every array.
        calls: Index of each call.
        log_snr: Log signal-to-noise ratio of each call.
        sigma: Noise weight of each call, unit form.
        values: Arrays by column name of table `convergence` ("x_variance", "x0_g_rank", ...).
        seeds: Number of seeds of each prompt.
    """

    prompts: tuple[str, ...]
    calls: Int[np.ndarray, " call"]
    log_snr: Float[np.ndarray, " call"]
    sigma: Float[np.ndarray, " call"]
    values: Mapping[str, Float[np.ndarray, "prompt call"]]
    seeds: Int[np.ndarray, " prompt"]

    @property
    def apart(self) -> "Convergence":
        """Return the spread with variances across the seeds with odd numbers alone.

        Those stay that are not known so: of prompts with fewer than two such seeds.
        """
        values = dict(self.values)
        for name in ("x_variance", "x0_g_variance"):
            if (odd := values.get(f"{name}_odd")) is not None:
                values[name] = np.where(np.isfinite(odd), odd, values[name])
        return replace(self, values=values)


@dataclass(frozen=True)
class Exact:
    """What the sampler makes of a predictor that knows the clean image and is not guided.

    Attributes:
        w0: Weight of the clean image at the destination of every update.
        wT: Weight of the initial noise there.
    """

    w0: Float[np.ndarray, " call"]
    wT: Float[np.ndarray, " call"]


@dataclass(frozen=True)
class Record:
    """What a run holds, as arrays.

    Attributes:
        samples: Samples by law and guidance scale; probes, which do not depend on it, under None.
        groups: Prompts by group (`GROUPS`).
        severity: By guidance scale, severity of each prompt; larger is more memorized.
        measure: The similarity that severity is made of.
        convergence: By guidance scale, spread across seeds.
        exact: Path of the exact unguided predictor; None where unknown.
        stochastic: Whether the sampler injects noise of its own.
        tokens: Length of each caption.
        swaps: The prompt whose image stands in the vector "other" of each prompt's samples.
        rated: By guidance scale, similarity of each sample to its prompt's own image.
        rated_other: Likewise to the other one.
        decided: Groups as the seeds with even numbers alone decide them; None where `groups` do not
            rest on the samples.
    """

    samples: Mapping[tuple[Law, float | None], Samples]
    groups: Mapping[str, frozenset[str]]
    severity: Mapping[float, Mapping[str, float]] = field(
        default_factory=dict[float, Mapping[str, float]]
    )
    measure: str = "similarity"
    convergence: Mapping[float, Convergence] = field(default_factory=dict[float, Convergence])
    exact: Exact | None = None
    stochastic: bool = False
    tokens: Mapping[str, float] = field(default_factory=dict[str, float])
    swaps: Mapping[str, str] = field(default_factory=dict[str, str])
    rated: Mapping[float, Ratings] = field(default_factory=dict[float, Ratings])
    rated_other: Mapping[float, Ratings] = field(default_factory=dict[float, Ratings])
    decided: Mapping[str, frozenset[str]] | None = None

    @cached_property
    def apart(self) -> "Record":
        """Return the record in which no sample both chose its prompt's group and is measured.

        Groups are those decided on the seeds with even numbers; samples, severity and variances
        across seeds those of odd ones. A record that was not split is returned as it is.

        Source: ours.
        """
        if self.decided is None:
            return self
        if not any((found.seeds % 2 == 1).any() for found in self.samples.values()):
            # With one seed a prompt nothing is left to measure by.
            return replace(self, groups={}, decided=None)
        spread = {g: found.apart for g, found in self.convergence.items()}
        return replace(self.half(1), groups=self.decided, convergence=spread)

    def half(self, parity: int) -> "Record":
        """Return the record of the seeds with odd (1) or even (0) numbers.

        Spread across seeds stays that of all of them: it was reduced over them.

        Source: ours.
        """
        samples = {
            key: found.where(found.seeds % 2 == parity) for key, found in self.samples.items()
        }
        rated, other = (
            {g: {k: v for k, v in one.items() if k[1] % 2 == parity} for g, one in whole.items()}
            for whole in (self.rated, self.rated_other)
        )
        return replace(
            self,
            samples=samples,
            rated=rated,
            rated_other=other,
            severity={g: averaged(one) for g, one in rated.items()} or self.severity,
            decided=None,
        )

    @cached_property
    def swapped(self) -> "Record":
        """Return the record in which every prompt is judged with another prompt's image.

        Raises:
            NeedsError: If the run did not set another image beside the target.

        Source: ours.
        """
        if not self.swaps:
            raise NeedsError(NO_OTHER)
        samples = {
            key: replace(found, gram=found.gram.exchanged("target", "other"))
            for key, found in self.samples.items()
        }
        return replace(
            self,
            samples=samples,
            severity={g: averaged(one) for g, one in self.rated_other.items()},
            rated=self.rated_other,
            rated_other=self.rated,
        )

    @property
    def guidances(self) -> tuple[float, ...]:
        """Return the guidance scales of the run, in ascending order."""
        return tuple(sorted({g for law, g in self.samples if law == "path" and g is not None}))

    @property
    def guidance(self) -> float:
        """Return the guidance scale the figures show: 7.5 where the run has it, else the largest.

        Raises:
            NeedsError: If the run has no sample.
        """
        if not self.guidances:
            raise NeedsError("the run holds no finished sample; generate some first")
        return PATH_GUIDANCE if PATH_GUIDANCE in self.guidances else self.guidances[-1]

    @property
    def memorized(self) -> frozenset[str]:
        """Return the prompts that reproduce their training image."""
        return self.groups.get("memorized", frozenset())

    @property
    def others(self) -> frozenset[str]:
        """Return the prompts memorized ones are compared with: not memorized, and controls."""
        return self.groups.get("not memorized", frozenset()) | self.groups.get(
            "control", frozenset()
        )

    def take(self, law: Law = "path", guidance: float | None = None) -> Samples:
        """Return the samples of one law.

        Args:
            law: Where the states come from.
            guidance: Guidance scale; the record's main one where not given. A probe, which was not
                guided, is read as classifier-free guidance of that scale would have made it.

        Raises:
            NeedsError: If the run does not hold them.
        """
        g = self.guidance if guidance is None else guidance
        key = (law, g if law == "path" else None)
        if key not in self.samples:
            held = ", ".join(f"{name} at g = {scale}" for name, scale in self.samples) or "nothing"
            raise NeedsError(
                f"the run holds no {LAW_IN_WORDS[law]}"
                + (f" at guidance {g:g}" if law == "path" else "")
                + f"; it holds {held}"
            )
        found = self.samples[key]
        if law == "path":
            return replace(found, guidance=g)
        return replace(found, gram=found.gram.guided(g), guidance=g)

    def trace(
        self,
        quantity: str,
        samples: Samples,
        values: Float[Tensor, "sample call"],
        *,
        law: Law = "path",
        reference: str = "",
    ) -> Trace:
        """Average a quantity over the seeds of each prompt.

        Args:
            quantity: What it is.
            samples: The samples it was computed of.
            values: Its value for each sample and call.
            law: Where the states come from.
            reference: What stands for x.

        Source: ours.
        """
        table = values.detach().numpy()
        prompts, rows = np.unique(samples.prompts, return_inverse=True)
        finite = np.isfinite(table)
        count = np.zeros((len(prompts), table.shape[1]))
        total = np.zeros_like(count)
        np.add.at(count, rows, finite)
        np.add.at(total, rows, np.where(finite, table, 0.0))
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return Trace(
            quantity,
            law,
            samples.guidance if len(samples.prompts) else nan,
            reference,
            tuple(str(prompt) for prompt in prompts),
            samples.calls,
            samples.gram.log_snr.numpy(),
            mean,
        )


def quantiles(
    values: Float[np.ndarray, "prompt call"], shares: Collection[float], *, fewest: int = 1
) -> Float[np.ndarray, "share call"]:
    """Return quantiles over prompts of the finite values of each call.

    Returns:
        One row a share; NaN at calls where fewer than `fewest` prompts have a value.

    Source: ours.
    """
    result = np.full((len(shares), values.shape[1]), np.nan)
    whole = np.isfinite(values).all(axis=0) & (len(values) >= max(fewest, 1))
    if whole.any():
        result[:, whole] = np.quantile(values[:, whole], list(shares), axis=0)
    for call in np.flatnonzero(~whole):
        finite = values[np.isfinite(values[:, call]), call]
        if len(finite) >= max(fewest, 1):
            result[:, call] = np.quantile(finite, list(shares))
    return result


def with_target(samples: Samples) -> Samples:
    """Return the samples whose prompt has a training image.

    Raises:
        NeedsError: If none has.
    """
    has = torch.isfinite(samples.gram.inner("target", "target")).all(dim=1)
    if not has.any():
        raise NeedsError("no prompt of the run has a training image; give one in the prompt file")
    keep = has.numpy()
    return samples.where(keep)


def averaged(ratings: Ratings) -> dict[str, float]:
    """Return the mean of each prompt's samples.

    Source: ours.
    """
    found: dict[str, list[float]] = {}
    for (prompt, _), value in ratings.items():
        found.setdefault(prompt, []).append(value)
    return {prompt: float(np.mean(values)) for prompt, values in found.items()}
