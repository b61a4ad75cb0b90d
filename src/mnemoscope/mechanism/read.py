"""Reading turns a run into the record that analyses are computed on; no model is loaded.

A record speaks of guidance scales, so it is of recipes that are alike but for guidance; a run that
holds others as well is read apart, one record a way of sampling.

Groups, measured and never assumed, at the record's main guidance scale (see `severity.truth`): a
prompt that is *memorized*; of the others those the prompt file calls *control*, and, with an image
of their own, those *not memorized*. All else is *other*: prompts without a training image, and
prompts of which it cannot be told, since there were too few samples or unrelated images.

For what is evidence the same is decided again on the seeds with even numbers alone, so that the odd
ones measure what they did not choose.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level, log_snr
from mnemoscope.errors import InputError, NeedsError, did_you_mean
from mnemoscope.mechanism.base import (
    GROUPS,
    LAWS,
    PATH_GUIDANCE,
    Convergence,
    Exact,
    Law,
    Ratings,
    Record,
    Samples,
    exact_unguided,
)
from mnemoscope.severity.truth import NOT_JUDGED, Judgement, judge

SAMPLER = ("scheduler", "steps", "eta")
"""What of a recipe the exact path depends on."""

VARIED = ("recipe", "guidance")
"""In what recipes of one record may differ."""

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

    @property
    def recipes(self) -> Any:
        """Return the recipes by key, as rows of table `recipes`."""
        ...

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table, whole or in some columns."""
        ...

    def gram(
        self, law: str = "path", guidance: float | None = None, recipe: str | None = None
    ) -> tuple[Gram, Mapping[str, Any]]:
        """Return the record of one law and recipe with its keys, prompt_id and seed."""
        ...


def read(run: Readable, *, recipe: str | None = None) -> Record:
    """Collect what a run holds.

    Args:
        run: An open run.
        recipe: Key of a recipe, to be read with those that differ from it in guidance alone; has
            to be given where the run holds others as well.

    Returns:
        The record; what the run lacks is absent from it, and analyses say so.

    Raises:
        InputError: If the run holds no such recipe, or none is given and two differ in more than
            guidance.

    Source: ours.
    """
    measure = str(run.manifest.options["similarity"][0])
    recipes = _alike(run.recipes, recipe)
    sampled = set(run.table("samples", ["recipe"])["recipe"].unique().to_pylist())
    scales = {g: key for g, key in sorted(recipes.items()) if key in sampled}
    samples: dict[tuple[Law, float | None], Samples] = {}
    for g, key in scales.items():
        if (found := _samples(run, "path", g, key)) is not None:
            samples["path", g] = found
    first = next(iter(run.recipes.values()), {})
    mine = next((run.recipes[key] for key in recipes.values()), {})
    # Beside the path the network is called at the levels and the noise of the run's first recipe.
    for law in LAWS[1:] if _way(mine) == _way(first) else ():
        if (found := _samples(run, law)) is not None:
            samples[law, None] = found
    main = PATH_GUIDANCE if PATH_GUIDANCE in scales else max(scales, default=None)
    paths = [found for (law, _), found in samples.items() if law == "path"]
    path = paths[0].gram if paths else None
    if path is not None:
        for law in LAWS[1:]:
            if (law, None) in samples:
                samples[law, None] = _placed(samples[law, None], path.level)
    sampler = all(mine.get(name) == first.get(name) for name in SAMPLER)
    exact, stochastic = _exact(run, path) if sampler else (None, False)
    return Record(
        samples,
        _groups(run, measure, None if main is None else scales[main]),
        _severity(run, measure, recipes),
        measure,
        _convergence(run, recipes),
        exact,
        stochastic,
        _tokens(run),
        _swaps(run),
        _ratings(run, measure, "own", recipes),
        _ratings(run, measure, "other", recipes),
        _decided(run, measure, None if main is None else scales[main]),
    )


def _tokens(run: Readable) -> dict[str, float]:
    rows = run.table("prompts", ["prompt_id", "tokens"]).to_pylist()
    return {row["prompt_id"]: float(row["tokens"]) for row in rows if row["tokens"] is not None}


def _swaps(run: Readable) -> dict[str, str]:
    rows = run.table("prompts", ["prompt_id", "references", "other"]).to_pylist()
    whose: dict[str, str] = {}
    for row in rows:
        if row["references"]:
            whose.setdefault(row["references"][0], row["prompt_id"])
    return {row["prompt_id"]: whose[row["other"]] for row in rows if row["other"] in whose}


def _ratings(
    run: Readable, measure: str, relation: str, recipes: Mapping[float, str]
) -> Mapping[float, Ratings]:
    columns = ["prompt_id", "seed", "recipe", "measure", "relation", "value"]
    rows = _rows(run.table("similarities", columns), measure=measure, relation=relation)
    scales = {key: g for g, key in recipes.items()}
    found: dict[float, dict[tuple[str, int], float]] = {}
    for row in rows:
        if row["recipe"] in scales:
            here = found.setdefault(scales[row["recipe"]], {})
            key = row["prompt_id"], row["seed"]
            here[key] = max(row["value"], here.get(key, row["value"]))
    return found


def _decided(run: Readable, measure: str, recipe: str | None) -> dict[str, frozenset[str]]:
    """Group prompts by their even seeds; none where a run does not say which samples are copies."""
    counts: dict[str, int] = {}
    samples = run.table("samples", ["prompt_id", "seed", "recipe", "status"])
    for row in _rows(samples, recipe=recipe, status="ok"):
        counts[row["prompt_id"]] = counts.get(row["prompt_id"], 0) + (row["seed"] % 2 == 0)
    halved = [
        row | {"share": sum(seed % 2 == 0 for seed in row["own_seeds"]) / even}
        for row in _rows(run.table("severity"), recipe=recipe)
        if row["own_seeds"] is not None and (even := counts.get(row["prompt_id"], 0))
    ]
    return _grouped(run, judge(halved, measure))


def _alike(recipes: Mapping[str, Mapping[str, Any]], chosen: str | None) -> dict[float, str]:
    """Return the keys, by guidance scale, of recipes that are alike but for guidance."""
    if chosen is not None and chosen not in recipes:
        raise InputError(did_you_mean(chosen, recipes, "recipe"))
    ways: dict[tuple[Any, ...], dict[float, str]] = {}
    for key, row in recipes.items():
        ways.setdefault(_way(row), {})[row["guidance"]] = key
    if chosen is not None:
        return ways[_way(recipes[chosen])]
    if len(ways) > 1:
        one, other = (next(iter(keys.values())) for keys in list(ways.values())[:2])
        apart = [name for name in recipes[one] if recipes[one][name] != recipes[other][name]]
        apart = [name for name in apart if name not in ("recipe", "guidance")]
        raise InputError(
            f"the run holds {len(ways)} ways of sampling, which differ in more than guidance "
            f"({one!r} and {other!r} in {', '.join(apart)}); read them apart: name a recipe"
        )
    return next(iter(ways.values()), {})


def _way(recipe: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a recipe says apart from guidance."""
    return tuple(sorted((name, str(value)) for name, value in recipe.items() if name not in VARIED))


def _samples(
    run: Readable, law: Law, guidance: float | None = None, recipe: str | None = None
) -> Samples | None:
    try:
        gram, keys = run.gram(law, guidance, recipe)
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


def _groups(run: Readable, measure: str, recipe: str | None) -> dict[str, frozenset[str]]:
    return _grouped(run, judge(_rows(run.table("severity"), recipe=recipe), measure))


def _grouped(run: Readable, judged: Mapping[str, Judgement]) -> dict[str, frozenset[str]]:
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


def _severity(
    run: Readable, measure: str, recipes: Mapping[float, str]
) -> dict[float, dict[str, float]]:
    rows = [row for row in _rows(run.table("severity"), measure=measure) if row["mean"] is not None]
    severity: dict[float, dict[str, float]] = {}
    for g, key in recipes.items():
        if here := {row["prompt_id"]: row["mean"] for row in rows if row["recipe"] == key}:
            severity[g] = here
    return severity


def _convergence(run: Readable, recipes: Mapping[float, str]) -> dict[float, Convergence]:
    rows = [row for row in run.table("convergence").to_pylist() if row["seeds"] >= 2]
    spread: dict[float, Convergence] = {}
    for g, key in sorted(recipes.items()):
        here = [row for row in rows if row["recipe"] == key]
        if not here:
            continue
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
            for kind in ("variance", "variance_odd", "distance", "cosine", "rank")
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
