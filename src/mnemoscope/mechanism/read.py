"""Reading turns a run into the record that analyses are computed on; no model is loaded.

Groups, measured and never assumed, at the record's main guidance scale (see `severity.truth`): a
prompt that is *memorized*; of the others those the prompt file calls *control*, and, with an image
of their own, those *not memorized*. All else is *other*: prompts without a training image, and
prompts of which it cannot be told, since there were too few samples or unrelated images.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level, log_snr
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    GROUPS,
    LAWS,
    PATH_GUIDANCE,
    Convergence,
    Exact,
    Law,
    Record,
    Samples,
    exact_unguided,
)
from mnemoscope.severity.truth import NOT_JUDGED, judge

NOISELESS = 1e-3
"""Largest difference of a sampler's exact wT from sigma/sigma_T that is not injected noise."""


@runtime_checkable
class Readable(Protocol):
    """What is needed of a run."""

    @property
    def manifest(self) -> Any:
        """Return the manifest, which holds the study."""
        ...

    @property
    def exact(self) -> Any:
        """Return weights (w0, wT) of the exact unguided predictor after every update, or None."""
        ...

    def table(self, name: str) -> pa.Table:
        """Return a whole table."""
        ...

    def gram(
        self, law: str = "path", guidance: float | None = None
    ) -> tuple[Gram, Mapping[str, Any]]:
        """Return the record of one law and guidance with its keys, prompt_id and seed."""
        ...


def read(run: Readable) -> Record:
    """Collect what a run holds.

    Args:
        run: An open run.

    Returns:
        The record; what the run lacks is absent from it, and analyses say so.

    Source: ours.
    """
    measure = str(run.manifest.options["similarity"][0])
    scales = sorted(set(run.table("samples").column("guidance").to_pylist()))
    samples: dict[tuple[Law, float | None], Samples] = {}
    for law in LAWS:
        for g in scales if law == "path" else [None]:
            found = _samples(run, law, g)
            if found is not None:
                samples[law, g] = found
    main = PATH_GUIDANCE if PATH_GUIDANCE in scales else scales[-1] if scales else None
    paths = [found for (law, _), found in samples.items() if law == "path"]
    path = paths[0].gram if paths else None
    if path is not None:
        for law in LAWS[1:]:
            if (law, None) in samples:
                samples[law, None] = _placed(samples[law, None], path.level)
    exact, stochastic = _exact(run, path)
    return Record(
        samples,
        _groups(run, measure, main),
        _severity(run, measure),
        measure,
        _convergence(run),
        exact,
        stochastic,
    )


def _samples(run: Readable, law: Law, guidance: float | None) -> Samples | None:
    try:
        gram, keys = run.gram(law, guidance)
    except NeedsError:
        return None
    if not len(gram.products):
        return None
    return Samples.of(gram, keys["prompt_id"], keys["seed"], guidance=guidance)


def _placed(probe: Samples, path: Level) -> Samples:
    """Find the calls of a probe on the path by their level, of which it has a selection."""
    # As an angle a level is finite everywhere, pure noise included.
    theirs, ours = (torch.atan2(*level).numpy() for level in (probe.gram.level, path))
    apart = np.abs(theirs[:, None] - ours[None])
    return Samples.of(probe.gram, probe.prompts, probe.seeds, apart.argmin(axis=1))


def _exact(run: Readable, path: Gram | None) -> tuple[Exact | None, bool]:
    if path is None or run.exact is None:
        return None, False
    # The state at the first call, (0, 1), may lead; the record speaks of destinations only.
    w0, wT = (np.asarray(part, dtype=np.float64)[-path.calls :] for part in run.exact)
    noiseless = exact_unguided(path.level.at(0), path.states().level)
    return Exact(w0, wT), bool(np.abs(wT - noiseless.wT).max() > NOISELESS)


def _rows(table: pa.Table, **where: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def _groups(run: Readable, measure: str, guidance: float | None) -> dict[str, frozenset[str]]:
    judged = judge(_rows(run.table("severity"), guidance=guidance), measure)
    groups: dict[str, set[str]] = {name: set() for name in GROUPS}
    for row in run.table("prompts").to_pylist():
        memorized = judged.get(row["prompt_id"], NOT_JUDGED).memorized
        if memorized is None:
            group = "other"
        elif memorized:
            group = "memorized"
        elif row["group"] == "control":
            group = "control"
        else:
            group = "not memorized" if row["references"] else "other"
        groups[group].add(row["prompt_id"])
    return {name: frozenset(prompts) for name, prompts in groups.items()}


def _severity(run: Readable, measure: str) -> dict[float, dict[str, float]]:
    severity: dict[float, dict[str, float]] = {}
    for row in _rows(run.table("severity"), measure=measure):
        if row["mean"] is not None:
            severity.setdefault(row["guidance"], {})[row["prompt_id"]] = row["mean"]
    return severity


def _convergence(run: Readable) -> dict[float, Convergence]:
    rows = [row for row in run.table("convergence").to_pylist() if row["seeds"] >= 2]
    spread: dict[float, Convergence] = {}
    for g in sorted({row["guidance"] for row in rows}):
        here = [row for row in rows if row["guidance"] == g]
        prompts = sorted({row["prompt_id"] for row in here})
        calls = sorted({row["call"] for row in here})
        level = {row["call"]: (row["alpha"], row["sigma"]) for row in here}
        alpha, sigma = np.array([level[call] for call in calls], dtype=np.float64).T
        seeds = {row["prompt_id"]: row["seeds"] for row in here}
        at = {prompt: index for index, prompt in enumerate(prompts)}
        column = {call: index for index, call in enumerate(calls)}
        values: dict[str, Any] = {
            f"{vector}_{kind}": np.full((len(prompts), len(calls)), np.nan)
            for vector in ("x", "x0_g")
            for kind in ("variance", "distance", "cosine", "rank")
        }
        for row in here:
            for name, table in values.items():
                if row[name] is not None:
                    table[at[row["prompt_id"]], column[row["call"]]] = row[name]
        spread[g] = Convergence(
            tuple(prompts),
            np.array(calls, dtype=np.int64),
            log_snr(Level(torch.from_numpy(alpha), torch.from_numpy(sigma))).numpy(),
            sigma,
            values,
            np.array([seeds[prompt] for prompt in prompts], dtype=np.int64),
        )
    return spread
