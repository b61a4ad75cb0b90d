r"""The quantities of a page are those of the founding paper, for each sample and call by itself.

Formulas, at the state that call t is shown::

    (w0, wT) = argmin ||x_t - w0·x - wT·x_T||²           beside alpha_t and sigma_t
    k        = <x0_g, x> / ||x||²                        beside 1
    gap      = ||eps_c - eps_u|| / sqrt(d)
    variance = across the seeds of a prompt, of x0_g

x is the training image, or the sample's own end where a prompt has none.

Contents: `Quantities`, `quantities`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import REFERENCES, Record, Samples, departures, weights, with_target

Key = tuple[str, float]
"""A prompt and a guidance scale."""

CURVES = ("w0", "wT", "k", "gap")


@dataclass(frozen=True)
class PathCurves:
    """The curves of the samples of one guidance scale.

    Attributes:
        values: By curve, a row a sample and a column a call.
        seeds: Seed of each sample.
        rows: Rows of each prompt.
        reference: What stands for x, by prompt: "target" or "final sample".
    """

    values: Mapping[str, Float[np.ndarray, "sample call"]]
    seeds: np.ndarray
    rows: Mapping[str, np.ndarray]
    reference: Mapping[str, str]


@dataclass(frozen=True)
class Quantities:
    """What the record says of every prompt.

    Attributes:
        paths: By guidance scale.
        variance: Variance across seeds at each call, by prompt and guidance.
        schedule: alpha, sigma and log SNR of every call, JSON-ready.
        scores: Label, meaning and values of the numbers a prompt can be sorted by.
    """

    paths: Mapping[float, PathCurves]
    variance: Mapping[Key, Float[np.ndarray, " call"]]
    schedule: Mapping[str, list[float]]
    scores: Sequence[tuple[str, str, Mapping[Key, float | None]]]

    def curves(self, prompt: str, guidance: float) -> dict[str, Any] | None:
        """Return the curves of a prompt, JSON-ready; None where the run recorded none."""
        path = self.paths.get(guidance)
        if path is None or prompt not in path.rows:
            return None
        rows = path.rows[prompt]
        found: dict[str, Any] = {
            name: [_numbers(values[row]) for row in rows] for name, values in path.values.items()
        }
        variance = self.variance.get((prompt, guidance))
        found["variance"] = [] if variance is None else [_numbers(variance)]
        return found | {
            "seeds": path.seeds[rows].tolist(),
            "reference": path.reference[prompt],
        }


def quantities(record: Record) -> Quantities:
    """Compute the quantities of a run's record.

    Source: Kim, Kim & Lee 2025, for the quantities.
    """
    paths: dict[float, PathCurves] = {}
    schedule: dict[str, list[float]] = {}
    first: dict[Key, float | None] = {}
    gap: dict[Key, float | None] = {}
    deviation: dict[str, dict[Key, float | None]] = {"D1": {}, "D2": {}}
    for g in record.guidances:
        samples = record.take("path", g)
        path = paths[g] = _path(samples)
        level = samples.gram.level
        schedule = {
            "alpha": _numbers(level.alpha.numpy()),
            "sigma": _numbers(level.sigma.numpy()),
            "log_snr": _numbers(samples.gram.log_snr.numpy()),
        }
        for prompt, rows in path.rows.items():
            if path.reference[prompt] == "target":
                first[prompt, g] = _mean(path.values["k"][rows, 0])
            gap[prompt, g] = _mean(path.values["gap"][rows])
        for name, values in _deviations(record, samples).items():
            deviation[name] |= {(prompt, g): value for prompt, value in values.items()}
    variance = {
        (prompt, g): found.values["x0_g_variance"][row]
        for g, found in record.convergence.items()
        for row, prompt in enumerate(found.prompts)
    }
    apart: dict[Key, float | None] = {
        (prompt, g): float(found.values["x0_g_distance"][row, -1])
        for g, found in record.convergence.items()
        for row, prompt in enumerate(found.prompts)
    }
    scores = (
        (
            "D1",
            "how far the image runs ahead of the schedule, summed over updates",
            deviation["D1"],
        ),
        ("D2", "how far the noise leaves ahead of the schedule, summed", deviation["D2"]),
        ("k at start", "factor of the image in the guided estimate at the first call", first),
        ("gap", "mean over calls of the difference the prompt makes to the noise estimate", gap),
        ("apart", "distance between the seeds' clean estimates at the last call", apart),
    )
    return Quantities(paths, variance, schedule, scores)


def _path(samples: Samples) -> PathCurves:
    gram = samples.gram
    has = torch.isfinite(gram.inner("target", "target")).all(dim=1)
    values: dict[str, Any] = {}
    for reference, mask in (("target", has), ("x_0", ~has)):
        part = gram.select(mask)
        fit = part.fit("x", [reference, "x_T"]).weights
        found = {
            "w0": fit[..., 0],
            "wT": fit[..., 1],
            "k": part.fit("x0_g", [reference]).weights[..., 0],
        }
        for name, numbers in found.items():
            whole = values.setdefault(name, np.full((*has.shape, gram.calls), np.nan))
            whole[mask.numpy()] = numbers.numpy()
    # At the first call the state is the noise itself: nothing of an image is in it.
    values["gap"] = gram.rms("gap").numpy()
    rows: dict[str, Any] = {}
    for row, prompt in enumerate(samples.prompts.tolist()):
        rows.setdefault(prompt, []).append(row)
    targets = has.tolist()
    return PathCurves(
        values,
        samples.seeds,
        {
            prompt: np.array(sorted(at, key=lambda r: samples.seeds[r]))
            for prompt, at in rows.items()
        },
        {prompt: "target" if targets[at[0]] else "final sample" for prompt, at in rows.items()},
    )


def _deviations(record: Record, samples: Samples) -> dict[str, dict[str, float | None]]:
    states = samples.states()
    try:
        w0, wT, _ = weights(record, with_target(states), next(iter(REFERENCES)))
    except NeedsError:
        return {}
    level = states.gram.level
    summands = departures(w0, wT, level.alpha.numpy(), level.sigma.numpy())[:2]
    return {
        name: {p: float(v) for p, v in zip(trace.prompts, trace.values.sum(axis=1), strict=True)}
        for name, trace in zip(("D1", "D2"), summands, strict=True)
    }


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _numbers(values: np.ndarray) -> list[Any]:
    """Round to four digits, finer than a curve is drawn; None where there is no number."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values.tolist()]
