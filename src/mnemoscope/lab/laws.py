r"""The laws say when a denoiser begins to memorize, and from how many pictures on it does not.

Formulas, for the samples s of a network that learned N pictures, and of one that learned N others
and draws from the same noise; d_1 and d_2 are the distances of a sample to the nearest and to the
second nearest of the pictures, x pictures that no network learned::

    copy          d_1/d_2 < 1/3
    share         of the samples that are copies; its null, of the other network's pictures
    onset         step at which the share passes one half
    distance      2·mean|s - x| - mean|s - s'| - mean|x - x'|
    settled       step at which nine tenths of the fall of the distance are done
    turned        look at which the loss on x is least
    slope         of log onset, or of log settled, in log N, by least squares
    agreement     cos(s, s') of the two networks; its null, of samples from different noise
    dose          share reproduced against repetitions, and against guidance

Steps between two looks are found linearly in the logarithm. Intervals are bootstraps over samples,
the same noise being drawn for all networks; where only the share of a group of prompts is known,
they are Wilson's with a prompt as the unit.

Contents: `laws`, the table; `figures`, the panels.

Source: Yoon et al. 2023 and Bonnaire et al. 2025 (1/3, onset; arXiv 2505.17638); Gu et al. 2023
(labels; arXiv 2310.02664); Kadkhodaie et al. 2024 (two networks; arXiv 2310.02557); Székely & Rizzo
2013 (the distance).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemoscope.core.panels import Bar, BarPanel, CurvePanel, Panel, Role, Series
from mnemoscope.core.stats import Estimate, interval, wilson
from mnemoscope.lab.kept import Kept
from mnemoscope.lab.small import HALVES, Drawn, Lesson, pictures_of, standardised
from mnemoscope.ranking.markdown import shown
from mnemoscope.similarity import Reference, get_similarity

COPY = 2 / 3
"""Nearest ratio above which a sample is a copy: d_1/d_2 < 1/3."""

HALF, MOST = 0.5, 0.9
"""Share that an onset passes, and share of the distance's fall that is done when it has settled."""

SCENES = 256
"""Pictures that no network learned, to which samples are compared."""

Found = Mapping[Lesson, Sequence[Drawn]]
"""What each network drew."""

Weights = Float[np.ndarray, "draw sample"]
"""How often each resample holds each sample, as a share."""

Row = tuple[str, str, str]
"""A law, what was found, and what is published."""


def copies(
    samples: Float[Tensor, "sample 3 h w"], pictures: Float[Tensor, "picture 3 h w"]
) -> Bool[np.ndarray, " sample"]:
    """Say which samples are copies of one of some pictures, RGB from 0 to 1.

    Source: Yoon et al. 2023; Bonnaire et al. 2025.
    """
    known = [Reference(str(i), picture) for i, picture in enumerate(pictures)]
    return (get_similarity("nearest_ratio").index(known).compare(samples).amax(1) > COPY).numpy()


def passing(
    steps: Float[np.ndarray, " look"],
    values: Float[np.ndarray, "draw look"],
    level: float | Float[np.ndarray, " draw"],
) -> Float[np.ndarray, " draw"]:
    """Return the step at which values first reach a level; NaN where they never do.

    Args:
        steps: Steps of the looks, ascending.
        values: A row a resample.
        level: What is to be reached.
    """
    level = np.broadcast_to(level, len(values))
    reached = values >= level[:, None]
    at = reached.argmax(1)
    rows, before = np.arange(len(values)), np.maximum(at - 1, 0)
    low, high = values[rows, before], values[rows, at]
    part = np.where(at > 0, (level - low) / np.where(high > low, high - low, 1.0), 1.0)
    logs = np.log(steps)
    step = np.exp(logs[before] + part * (logs[at] - logs[before]))
    return np.where(reached.any(1), step, np.nan)


def energy(
    weights: Weights, samples: Float[Tensor, "sample n"], scenes: Float[Tensor, "scene n"]
) -> Float[np.ndarray, " draw"]:
    """Return the energy distance of samples, weighted, to scenes, in RMS of a pixel.

    No pair holds a sample twice, so that a resample is no nearer or farther than what it resamples.

    Source: Székely & Rizzo 2013.
    """
    scale = samples.shape[1] ** 0.5
    apart = (torch.cdist(samples, samples) / scale).fill_diagonal_(0).numpy().astype(np.float64)
    across = (torch.cdist(samples, scenes) / scale).mean(1).numpy().astype(np.float64)
    among = torch.pdist(scenes).mean().item() / scale
    pairs = 1 - (weights**2).sum(1)
    return 2 * weights @ across - ((weights @ apart) * weights).sum(1) / pairs - among


def slope(
    sizes: Sequence[int], steps: Float[np.ndarray, "draw size"]
) -> Float[np.ndarray, " draw"]:
    """Return the slope of log steps in log N by least squares; NaN where a step is."""
    x = np.log(np.asarray(sizes, dtype=np.float64))
    x -= x.mean()
    return np.log(steps) @ x / (x @ x)


def begun(
    weights: Weights, steps: Float[np.ndarray, " look"], copied: Float[np.ndarray, "look sample"]
) -> Float[np.ndarray, " draw"]:
    """Return the step at which half of the samples, weighted, are copies."""
    return passing(steps, weights @ copied.T, HALF)


@dataclass(frozen=True)
class Size:
    """The networks that learned N pictures each.

    Attributes:
        pictures: N.
        looks: What each of them drew, by step.
    """

    pictures: int
    looks: tuple[Sequence[Drawn], ...]

    @property
    def steps(self) -> Float[np.ndarray, " look"]:
        """Return the steps of the looks."""
        return np.array([look.step for look in self.looks[0]], dtype=np.float64)

    @cached_property
    def own(self) -> Float[np.ndarray, "look sample"]:
        """Return the share of networks whose sample copies a picture they learned."""
        return self._copied(0)

    @cached_property
    def null(self) -> Float[np.ndarray, "look sample"]:
        """Return the share of networks whose sample copies one of as many that they did not."""
        return self._copied(1)

    def _copied(self, shift: int) -> Float[np.ndarray, "look sample"]:
        return np.mean(
            [
                [copies(look.samples, self._set(half + shift)) for look in looks]
                for half, looks in enumerate(self.looks)
            ],
            axis=0,
        )

    def _set(self, half: int) -> Float[Tensor, "picture 3 8 8"]:
        return pictures_of(half % HALVES, self.pictures)

    def distance(self, weights: Weights, at: int) -> Float[np.ndarray, " draw"]:
        """Return how far the samples of a look lie from scenes, the networks' mean."""
        scenes = _flat(pictures_of(HALVES, SCENES))
        apart = [energy(weights, _flat(looks[at].samples), scenes) for looks in self.looks]
        return np.stack(apart).mean(0)

    def onset(self, weights: Weights) -> Float[np.ndarray, " draw"]:
        """Return the step at which half of the samples are copies."""
        return begun(weights, self.steps, self.own)

    def settled(self, weights: Weights) -> Float[np.ndarray, " draw"]:
        """Return the step at which the distance to scenes has fallen for the most part."""
        looks = range(len(self.steps))
        distance = np.stack([self.distance(weights, at) for at in looks], axis=1)
        first, least = distance[:, 0], distance.min(1)
        return passing(self.steps, -distance, -(first + MOST * (least - first)))

    @property
    def turned(self) -> int:
        """Return the step of the look at which the loss on pictures not learned is least."""
        unseen = [[float(look.unseen.mean()) for look in looks] for looks in self.looks]
        return int(self.steps[np.mean(unseen, axis=0).argmin()])

    def agreement(self, shift: int = 0) -> Float[np.ndarray, " sample"]:
        """Return the cosine of the two networks' last samples.

        Args:
            shift: How many places the noise of the second lies beyond that of the first.
        """
        one, other = (_unit(looks[-1].samples) for looks in self.looks)
        return (one * other.roll(shift, 0)).sum(1).double().numpy()

    def nearest(self, shift: int = 0) -> Float[np.ndarray, " sample"]:
        """Return the largest cosine of last samples with pictures, the networks' mean.

        Args:
            shift: 0 for the pictures they learned, 1 for as many that they did not.
        """
        closest = [
            (_unit(looks[-1].samples) @ _unit(self._set(half + shift)).mT).amax(1)
            for half, looks in enumerate(self.looks)
        ]
        return torch.stack(closest).double().mean(0).numpy()


def _flat(rgb: Float[Tensor, "picture 3 8 8"]) -> Float[Tensor, "picture 192"]:
    return standardised(rgb).flatten(1)


def _unit(rgb: Float[Tensor, "picture 3 8 8"]) -> Float[Tensor, "picture 192"]:
    return torch.nn.functional.normalize(_flat(rgb), dim=1)


def estimate(of: Callable[[Weights], np.ndarray], samples: int, name: str) -> Estimate:
    """Return a number of weighted samples with its bootstrap interval."""

    def resampled(picks: Int[np.ndarray, "draw sample"]) -> np.ndarray:
        return of(np.stack([np.bincount(pick, minlength=samples) for pick in picks]) / samples)

    value = float(of(np.full((1, samples), 1 / samples))[0])
    method = f"{name}, percentile bootstrap over samples, 95%, 2000 draws"
    return interval(value, resampled, samples, method=method)


def _mean(values: Float[np.ndarray, " sample"], name: str) -> Estimate:
    return estimate(lambda weights: weights @ values, len(values), name)


def sizes_of(found: Found) -> list[Size]:
    """Return what networks without labels found, by N, where both halves were learned."""
    return [
        Size(n, tuple(found[Lesson(n, half)] for half in range(HALVES)))
        for n in sorted({lesson.pictures for lesson in found})
        if all(Lesson(n, half) in found for half in range(HALVES))
    ]


def labelled_of(found: Found) -> list[tuple[Size, Size]]:
    """Return the networks that learned the same pictures without labels, and with them."""
    return [
        (Size(n, (found[Lesson(n)],)), Size(n, (found[Lesson(n, labelled=True)],)))
        for n in sorted({lesson.pictures for lesson in found if lesson.labelled})
        if Lesson(n) in found
    ]


def _slope(sizes: Sequence[Size], of: Callable[[Size, Weights], np.ndarray], name: str) -> Estimate:
    ns = [size.pictures for size in sizes]

    def sloped(weights: Weights) -> np.ndarray:
        return slope(ns, np.stack([of(size, weights) for size in sizes], axis=1))

    return estimate(sloped, sizes[0].own.shape[1], name)


@dataclass(frozen=True)
class Laws:
    """Everything that is told of networks, of an evaluation and of a planting.

    Attributes:
        sizes: Networks without labels, by N.
        labels: Networks of the same pictures without labels, and with them.
        evaluation: What `lab evaluate` found; empty where not given.
        kept: What a planting had come to, by step.
    """

    sizes: Sequence[Size]
    labels: Sequence[tuple[Size, Size]]
    evaluation: Mapping[str, Any]
    kept: Sequence[Kept]

    @cached_property
    def onsets(self) -> dict[int, Estimate]:
        """Return the onset by N, NaN where too few samples are copies to the end."""
        return {
            size.pictures: estimate(size.onset, size.own.shape[1], "onset") for size in self.sizes
        }

    @cached_property
    def settled(self) -> dict[int, Estimate]:
        """Return the step at which samples have come near scenes, by N."""
        return {
            size.pictures: estimate(size.settled, size.own.shape[1], "settled")
            for size in self.sizes
        }

    @cached_property
    def reached(self) -> list[Size]:
        """Return the networks whose onset has an interval."""
        return [size for size in self.sizes if isfinite(self.onsets[size.pictures].low)]

    def rows(self) -> list[Row]:
        """Return the laws that small networks show."""
        told: list[Row] = []
        for sizes, of, name, published in (
            (self.reached, Size.onset, "onset", "1: in proportion to N (arXiv 2505.17638)"),
            (self.sizes, Size.settled, "settled", "0: does not move with N (arXiv 2505.17638)"),
        ):
            if len(sizes) > 1:
                ns = ", ".join(str(size.pictures) for size in sizes)
                slope_of = shown(_slope(sizes, of, f"slope of {name}"))
                told.append((f"slope of log {name} in log N (N = {ns})", slope_of, published))
        for size in self.sizes:
            told.append(
                (
                    f"step at which the loss on other pictures is least, N = {size.pictures}",
                    f"{size.turned}",
                    "grows with N (arXiv 2505.17638)",
                )
            )
        for size in self.sizes:
            told.append(
                (
                    f"share at the end, N = {size.pictures}; of pictures not learned",
                    f"{shown(_last(size.own))}; {shown(_last(size.null))}",
                    "falls with N (arXiv 2310.02664); 0",
                )
            )
        for without, within in self.labels:
            told.append(
                (
                    f"share at the end, N = {without.pictures}, without and with labels",
                    f"{shown(_last(without.own))}; {shown(_last(within.own))}",
                    "unique labels that say nothing make a network memorize (arXiv 2310.02664)",
                )
            )
        for size in self.sizes:
            told.append(
                (
                    f"agreement of two networks, N = {size.pictures}; from different noise",
                    f"{shown(_mean(size.agreement(), 'agreement'))}; "
                    f"{shown(_mean(size.agreement(1), 'agreement'))}",
                    "rises with N to near 1 (arXiv 2310.02557); 0",
                )
            )
        steps = np.array([kept.step for kept in self.kept], dtype=np.float64)
        for many, reproduced in self._planted().items():
            begins = estimate(
                partial(begun, steps=steps, copied=reproduced), reproduced.shape[1], "onset"
            )
            about = f"onset of pictures seen {many} times in all"
            told.append((about, shown(begins), "earlier if repeated"))
        return told

    def _planted(self) -> dict[int, Float[np.ndarray, "look picture"]]:
        """Return the share of samples that reproduce each planted picture, by its repetitions."""
        if not self.kept:
            return {}
        times = np.array([row.repetitions for row in self.kept[0].rows])
        return {
            int(many): np.stack([kept.reproduced[times == many].mean(1) for kept in self.kept])
            for many in np.unique(times)
        }

    def figures(self) -> dict[str, tuple[Panel, ...]]:
        """Return the panels of each figure, by name; those without numbers are left out."""
        drawn: dict[str, tuple[Panel, ...]] = {}
        if self.sizes:
            drawn["laws-onset"] = (self._shares(), self._distances(), self._times())
            drawn["laws-pictures"] = (self._ends(), *self._labels(), self._agreements())
        dose = (*self._doses(), *self._planting())
        return drawn | ({"laws-dose": dose} if dose else {})

    def _shares(self) -> CurvePanel:
        lines = [
            _line(f"N = {size.pictures}", size.steps, [_mean(look, "share") for look in size.own])
            for size in self.sizes
        ]
        nulls = np.mean([size.null for size in self.sizes], axis=0)
        null = [_mean(look, "share") for look in nulls]
        lines.append(_line("pictures not learned", self.sizes[0].steps, null, "schedule"))
        return CurvePanel(
            "The more pictures, the later it memorizes",
            "step of training",
            "share that are copies",
            f"A copy is nearer to a picture than a third of the distance to the next. {_BAND}",
            tuple(lines),
            log_x=True,
        )

    def _distances(self) -> CurvePanel:
        lines = [
            _line(
                f"N = {size.pictures}",
                size.steps,
                [
                    estimate(partial(size.distance, at=at), size.own.shape[1], "distance")
                    for at in range(len(size.steps))
                ],
            )
            for size in self.sizes
        ]
        return CurvePanel(
            "How near samples come to unseen scenes",
            "step of training",
            "energy distance to scenes",
            f"Energy distance of samples to {SCENES} scenes that no network learned. {_BAND}",
            tuple(lines),
            log_x=True,
        )

    def _times(self) -> CurvePanel:
        lines = [
            _line("half of the samples are copies", _sizes(self.onsets), [*self.onsets.values()],
                  "memorized"),
            _line("samples are near scenes", _sizes(self.settled), [*self.settled.values()],
                  "not memorized"),
        ]  # fmt: skip
        if self.reached:
            ns = np.array([size.pictures for size in self.reached], dtype=np.float64)
            first = self.onsets[self.reached[0].pictures].value
            lines.append(Series("in proportion to N", "schedule", ns, first * ns / ns[0], None,
                                None, ns))  # fmt: skip
        return CurvePanel(
            "When each begins",
            "number of pictures N",
            "step of training",
            f"Dashed: in proportion to N. {_BAND}",
            tuple(lines),
            log_y=True,
            log_x=True,
        )

    def _ends(self) -> CurvePanel:
        ns = _sizes(self.onsets)
        lines = [
            _line("pictures learned", ns, [_last(s.own) for s in self.sizes], "memorized"),
            _line("pictures not learned", ns, [_last(s.null) for s in self.sizes], "schedule"),
        ]
        return CurvePanel(
            f"What is memorized after {self.sizes[0].steps[-1]:g} steps",
            "number of pictures N",
            "share that are copies",
            f"{_BAND}",
            tuple(lines),
            log_x=True,
        )

    def _labels(self) -> list[BarPanel]:
        bars = [
            bar
            for without, within in self.labels
            for bar in (
                _bar("no labels", "not memorized", _last(without.own)),
                _bar("a label for each picture", "memorized", _last(within.own)),
                _bar("a label each; pictures not learned", "control", _last(within.null)),
            )
        ]
        if not bars:
            return []
        many = ", ".join(str(without.pictures) for without, _ in self.labels)
        return [
            BarPanel(
                f"Labels that say nothing, N = {many}",
                "",
                "share that are copies",
                "A label is the number of a picture. Bars: 95 % intervals over samples.",
                tuple(bars),
            )
        ]

    def _agreements(self) -> CurvePanel:
        ns = _sizes(self.onsets)

        def along(label: str, role: Role, of: Callable[[Size], np.ndarray]) -> Series:
            return _line(label, ns, [_mean(of(size), "cosine") for size in self.sizes], role)

        lines = (
            along("other network, same noise", "memorized", lambda s: s.agreement()),
            along("other network, other noise", "schedule", lambda s: s.agreement(1)),
            along("nearest learned", "not memorized", lambda s: s.nearest()),
            along("nearest not learned", "control", lambda s: s.nearest(1)),
        )
        return CurvePanel(
            "Two networks that share no picture",
            "number of pictures N",
            "cosine of samples",
            f"Samples of the last step with what is named. {_BAND}",
            lines,
            log_x=True,
        )

    def _doses(self) -> list[CurvePanel]:
        groups = [g for g in self.evaluation.get("groups", ()) if g["family"] == "verbatim"]
        if not groups:
            return []
        kinds: dict[str, Role] = {"describing": "not memorized", "meaningless": "memorized"}
        dose = [
            _line(
                f"{kind} captions",
                np.array([g["repetitions"] for g in mine], dtype=np.float64),
                [wilson(g["reproduced"] * g["prompts"], g["prompts"]) for g in mine],
                role,
            )
            for kind, role in kinds.items()
            if (mine := [g for g in groups if g["kind"] == kind])
        ]
        prompts = {(g["level"], g["kind"]): g["prompts"] for g in groups}
        times = {g["level"]: g["repetitions"] for g in groups}
        swept = [g for g in self.evaluation["by_guidance"] if g["family"] == "verbatim"]
        guidances = sorted({g["guidance"] for g in swept})

        def pooled(level: int, guidance: float) -> Estimate:
            here = [g for g in swept if (g["level"], g["guidance"]) == (level, guidance)]
            many = [prompts[level, g["kind"]] for g in here]
            copied = sum(g["reproduced"] * n for g, n in zip(here, many, strict=True))
            return wilson(copied, sum(many))

        by_guidance = [
            _line(
                f"seen {times[level]} times",
                np.array(guidances),
                [pooled(level, guidance) for guidance in guidances],
            )
            for level in sorted(times)[-4:]
        ]
        return [
            CurvePanel(
                "What is repeated more is reproduced more",
                "repetitions",
                "share reproduced",
                "The model inside at g = 7.5. Bands: 95 %, Wilson, a prompt as the unit.",
                tuple(dose),
                log_x=True,
            ),
            CurvePanel(
                "Guidance brings more of it out",
                "guidance scale g",
                "share reproduced",
                "The model inside, both kinds of caption. Bands: 95 %, Wilson, a prompt as the "
                "unit.",
                tuple(by_guidance),
            ),
        ]

    def _planting(self) -> list[CurvePanel]:
        if not self.kept:
            return []
        steps = np.array([kept.step for kept in self.kept], dtype=np.float64)
        lines = [
            _line(
                f"{many} times in all",
                steps,
                [_mean(look, "share") for look in reproduced],
            )
            for many, reproduced in self._planted().items()
        ]
        return [
            CurvePanel(
                "A planting on its way",
                "step of training",
                "share reproduced",
                "Planted pictures at g = 7.5. Bands: 95 %, bootstrap over pictures.",
                tuple(lines),
            )
        ]


_BAND = "Bands: 95 %, bootstrap over samples."


def _last(copied: Float[np.ndarray, "look sample"]) -> Estimate:
    return _mean(copied[-1], "share")


def _sizes(by_size: Mapping[int, Estimate]) -> Float[np.ndarray, " size"]:
    return np.array([*by_size], dtype=np.float64)


def _bar(label: str, role: Role, share: Estimate) -> Bar:
    return Bar(label, role, share.value, share.low, share.high)


def _line(
    label: str, x: Float[np.ndarray, " x"], found: Sequence[Estimate], role: Role = "other"
) -> Series:
    value, low, high = (np.array([getattr(e, end) for e in found]) for end in _ENDS)
    return Series(label, role, x, value, low, high, x)


_ENDS = ("value", "low", "high")
