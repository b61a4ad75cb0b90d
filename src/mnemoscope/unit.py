r"""A unit of work turns some prompts at one guidance scale into rows of tables.

Formulas, across the S seeds of a prompt, with K the Gram matrix of a vector over seeds and C the
same of the centred vectors::

    variance  tr C / ((S - 1)·d)             distance  mean over pairs of |v_s - v_s'| / sqrt(d)
    cosine    mean over pairs of cos         rank      (tr C)² / |C|²  =  (sum l)² / sum l²

`run_unit` is a pure function of model, plan and unit, and the only thing an executor ever calls.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope import filmstrip
from mnemoscope.core.gram import NAMES, PAIRS, Gram
from mnemoscope.sampling.probes import forward_noised, pure_noise
from mnemoscope.core.record import Call, Recorder, Trajectory
from mnemoscope.sampling.loop import generators_of, initial_noise, sample
from mnemoscope.errors import MnemoscopeError
from mnemoscope.data.images import thumbnail
from mnemoscope.models.base import Model
from mnemoscope.plan import PROBE_SEEDS, Plan, Unit
from mnemoscope.runs.tables import TABLES

Parts = Mapping[str, pa.Table]
"""Rows by table."""

Tick = Callable[[int], None]
"""Told after every network call how many rows it evaluated."""


@dataclass(frozen=True)
class _Batch:
    """What sampling a batch left.

    Attributes:
        rows: Positions of its samples in the unit.
        status: Status and reason of each sample.
        seconds: Seconds a sample.
        latents: Final latents of the ok samples.
        tape: Tape of the ok samples; None where there is none.
    """

    rows: list[int]
    status: list[tuple[str, str | None]]
    seconds: float
    latents: Tensor | None
    tape: Trajectory | None


def run_unit(model: Model, plan: Plan, unit: Unit, tick: Tick | None = None) -> Parts:
    """Sample, record, decode, compare.

    Args:
        model: The model.
        plan: The plan the unit is of.
        unit: The unit.
        tick: Told of progress.

    Returns:
        Rows of tables samples, gram, convergence and similarities, and of filmstrips where the plan
        asks for them.
    """
    keys = [(p, s) for p in range(len(unit.prompts)) for s in range(plan.seeds)]
    cond = model.encode_prompts([prompt.text for prompt in unit.prompts])
    blank = model.encode_prompts([""]) if model.has_uncond else None
    targets = plan.library.targets(model, unit.prompts)
    told = tick or (lambda rows: None)

    def sampled(rows: list[int]) -> _Batch:
        return _sample(model, plan, unit, rows, keys, cond, blank, told)

    batches = [
        _failed(rows, found) if isinstance(found, RuntimeError) else found
        for rows, found in _batched(list(range(len(keys))), plan.batch, sampled)
    ]
    ok = [
        row
        for batch in batches
        for row, (status, _) in zip(batch.rows, batch.status, strict=True)
        if status == "ok"
    ]
    tape = _join([batch.tape for batch in batches if batch.tape is not None])
    latents = [batch.latents for batch in batches if batch.latents is not None]
    images = _decode(model, torch.cat(latents), plan.batch) if latents else None
    gram: list[pa.Table] = []
    if tape is not None:
        gram.append(_path_rows(plan, unit, keys, ok, tape, targets))
    if unit.probed and blank is not None:
        gram += _probe_rows(model, plan, unit, keys, cond, blank, targets, told)
    parts = {
        "samples": _sample_rows(model, plan, unit, keys, batches, ok, images),
        "gram": pa.concat_tables([TABLES["gram"].schema.empty_table(), *gram]),
        "convergence": _convergence_rows(unit, keys, ok, tape),
        "similarities": _similarity_rows(plan, unit, keys, ok, images),
    }
    return {**parts, **_filmstrips(model, plan, unit, keys, ok, tape)}


def _attempt(rows: Sequence[Any], work: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Do a batch of work; where the network fails, halve it until the row at fault stands alone.

    Yields:
        Rows with what the work returned for them, or with the error for a row at fault.
    """
    try:
        yield rows, work(rows)
        return
    except MnemoscopeError:
        raise
    except RuntimeError as error:
        # RuntimeError is what torch raises, running out of memory included.
        if len(rows) == 1:
            yield rows, error
            return
    half = len(rows) // 2
    yield from _attempt(rows[:half], work)
    yield from _attempt(rows[half:], work)


def _batched(
    rows: Sequence[Any], batch: int, work: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(rows), batch):
        yield from _attempt(rows[start : start + batch], work)


def _failed(rows: list[int], error: Exception) -> _Batch:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return _Batch(rows, [("error", reason)], 0.0, None, None)


def _sample(
    model: Model,
    plan: Plan,
    unit: Unit,
    rows: list[int],
    keys: list[tuple[int, int]],
    cond: Tensor,
    blank: Tensor | None,
    tick: Tick,
) -> _Batch:
    start = time.perf_counter()
    generators = _generators(plan, unit, [keys[row] for row in rows])
    noise = initial_noise(generators, model.latent_shape, device=model.device)
    recorder = Recorder()

    def progress(call: Call) -> None:
        tick(len(rows) * (1 if call.uncond is None else 2))

    sampled = sample(
        model.denoiser,
        plan.scheduler,
        noise,
        cond[[keys[row][0] for row in rows]],
        None if blank is None else blank.expand(len(rows), *blank.shape[1:]),
        unit.guidance,
        generators,
        observers=[recorder, progress],
    )
    tape = recorder.trajectory(sampled.latents)
    seconds = (time.perf_counter() - start) / len(rows)
    calls = len(plan.points)
    status: list[tuple[str, str | None]] = []
    for call in sampled.nonfinite.tolist():
        if call < 0:
            status.append(("ok", None))
        else:
            where = f"at call {call}" if call < calls else "after the last update"
            status.append(("nonfinite", f"a number that is not finite {where}"))
    ok = sampled.ok.cpu()
    if not bool(ok.any()):
        return _Batch(rows, status, seconds, None, None)
    return _Batch(rows, status, seconds, sampled.latents[ok.to(model.device)], _take(tape, ok))


def _generators(plan: Plan, unit: Unit, keys: Sequence[tuple[int, int]]) -> list[torch.Generator]:
    return generators_of([plan.sample_seed(unit.prompts[p].prompt_id, s) for p, s in keys])


_PER_SAMPLE = tuple(f.name for f in fields(Trajectory) if f.name != "level")


def _take(tape: Trajectory, samples: Tensor) -> Trajectory:
    if samples.dtype == torch.bool and bool(samples.all()):
        return tape
    return replace(tape, **{name: getattr(tape, name)[samples] for name in _PER_SAMPLE})


def _join(tapes: list[Trajectory]) -> Trajectory | None:
    if not tapes:
        return None
    return replace(
        tapes[0],
        **{name: torch.cat([getattr(tape, name) for tape in tapes]) for name in _PER_SAMPLE},
    )


@torch.no_grad()
def _decode(model: Model, latents: Tensor, batch: int) -> Float[Tensor, "image 3 h w"]:
    return torch.cat([model.decode(part).float().cpu() for part in latents.split(batch)])


def _sample_rows(
    model: Model,
    plan: Plan,
    unit: Unit,
    keys: list[tuple[int, int]],
    batches: list[_Batch],
    ok: list[int],
    images: Tensor | None,
) -> pa.Table:
    pictures = {} if images is None else dict(zip(ok, map(thumbnail, images), strict=True))
    calls = len(plan.points) * (2 if model.has_uncond else 1)
    return TABLES["samples"].of_rows(
        [
            {
                "prompt_id": unit.prompts[keys[row][0]].prompt_id,
                "seed": keys[row][1],
                "guidance": unit.guidance,
                "scheduler": plan.name,
                "status": status,
                "reason": reason,
                "network_calls": calls,
                "seconds": batch.seconds,
                "image": pictures.get(row),
            }
            for batch in batches
            for row, (status, reason) in zip(batch.rows, batch.status, strict=True)
        ]
    )


def _gram_rows(
    gram: Gram, law: str, guidance: float | None, calls: Sequence[int], keys: list[tuple[str, int]]
) -> pa.Table:
    samples, count = len(keys), len(calls)
    products = gram.products.reshape(samples * count, len(NAMES), len(NAMES)).numpy()

    def each(values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(count)]

    columns: dict[str, Any] = {
        "prompt_id": each([prompt for prompt, _ in keys]),
        "seed": each([seed for _, seed in keys]),
        "guidance": [guidance] * (samples * count),
        "law": [law] * (samples * count),
        "call": list(calls) * samples,
        "alpha": gram.level.alpha.repeat(samples).numpy(),
        "sigma": gram.level.sigma.repeat(samples).numpy(),
    }
    for a, b in PAIRS:
        values = products[:, NAMES.index(a), NAMES.index(b)]
        columns[f"{a}·{b}"] = pa.array(values, from_pandas=True)
    return TABLES["gram"].of(columns)


def _path_rows(
    plan: Plan,
    unit: Unit,
    keys: list[tuple[int, int]],
    ok: list[int],
    tape: Trajectory,
    targets: Tensor,
) -> pa.Table:
    gram = Gram.of(
        tape,
        target=targets[[keys[row][0] for row in ok]],
        mean=plan.mean,
        guidance=unit.guidance,
        final=plan.final,
    )
    named = [(unit.prompts[p].prompt_id, s) for p, s in (keys[row] for row in ok)]
    return _gram_rows(gram, "path", unit.guidance, range(len(plan.points)), named)


def _probe_rows(
    model: Model,
    plan: Plan,
    unit: Unit,
    keys: list[tuple[int, int]],
    cond: Tensor,
    blank: Tensor,
    targets: Tensor,
    tick: Tick,
) -> list[pa.Table]:
    probed = [key for key in keys if key[1] < PROBE_SEEDS]
    with_target = [key for key in probed if bool(torch.isfinite(targets[key[0]]).all())]

    def probe(law: str, here: list[tuple[int, int]]) -> pa.Table:
        prompts = [p for p, _ in here]
        generators = _generators(plan, unit, here)
        noise = initial_noise(generators, model.latent_shape, device=model.device)
        uncond = blank.expand(len(here), *blank.shape[1:])
        if law == "forward":
            target = targets[prompts].reshape(noise.shape).to(noise)
            tape = forward_noised(model.denoiser, plan.probes, target, noise, cond[prompts], uncond)
        else:
            tape = pure_noise(model.denoiser, plan.probes, noise, cond[prompts], uncond)
        finite = torch.isfinite(tape.eps_c + tape.eps_u).flatten(1).all(dim=1)
        tick(2 * len(here) * len(plan.probes))
        if not bool(finite.any()):
            return TABLES["gram"].schema.empty_table()
        gram = Gram.of(
            _take(tape, finite),
            target=targets[prompts][finite],
            mean=plan.mean,
            guidance=float("nan"),
            final=plan.final,
        )
        named = [
            (unit.prompts[p].prompt_id, s)
            for (p, s), fine in zip(here, finite.tolist(), strict=True)
            if fine
        ]
        return _gram_rows(gram, law, None, [point.call for point in plan.probes], named)

    return [
        rows
        for law, able in (("forward", with_target), ("noise", probed))
        for _, rows in _batched(able, plan.batch, partial(probe, law))
        if not isinstance(rows, RuntimeError)
    ]


def across_seeds(
    vectors: Float[Tensor, "seed call d"],
) -> dict[str, Float[Tensor, " call"]]:
    """Say how far the vectors of several seeds agree at each call.

    Args:
        vectors: At least two seeds.

    Returns:
        `variance`, `distance`, `cosine` and `rank`, as the module defines them, float64.

    Source: ours; the rank is the participation ratio, invariant under rotation and scale.
    """
    seeds, _, d = vectors.shape
    v = vectors.transpose(0, 1).double()
    gram = v @ v.mT
    centred = v - v.mean(dim=1, keepdim=True)
    spread = centred @ centred.mT
    trace = spread.diagonal(dim1=1, dim2=2).sum(dim=1)
    i, j = torch.triu_indices(seeds, seeds, 1)
    size = gram.diagonal(dim1=1, dim2=2)
    own = spread.diagonal(dim1=1, dim2=2)
    # Distances from the centred products: the mean, which all seeds share, would eat the digits.
    square = (own[:, i] + own[:, j] - 2 * spread[:, i, j]).clamp_min(0)
    return {
        "variance": trace / ((seeds - 1) * d),
        "distance": (square / d).sqrt().mean(dim=1),
        "cosine": (gram[:, i, j] / (size[:, i] * size[:, j]).sqrt()).mean(dim=1),
        "rank": trace.square() / spread.square().sum(dim=(1, 2)),
    }


def _convergence_rows(
    unit: Unit, keys: list[tuple[int, int]], ok: list[int], tape: Trajectory | None
) -> pa.Table:
    tables = [TABLES["convergence"].schema.empty_table()]
    for p, prompt in enumerate(unit.prompts):
        here = [place for place, row in enumerate(ok) if keys[row][0] == p]
        if tape is None or len(here) < 2:
            continue
        mine = _take(tape, torch.tensor(here))
        calls = mine.x.shape[1]
        columns: dict[str, Any] = {
            "prompt_id": [prompt.prompt_id] * calls,
            "guidance": [unit.guidance] * calls,
            "call": range(calls),
            "alpha": mine.level.alpha.numpy(),
            "sigma": mine.level.sigma.numpy(),
            "seeds": [len(here)] * calls,
        }
        for name in ("x", "x0_g"):
            for kind, values in across_seeds(getattr(mine, name)).items():
                columns[f"{name}_{kind}"] = pa.array(values.numpy(), from_pandas=True)
        tables.append(TABLES["convergence"].of(columns))
    return pa.concat_tables(tables)


def _filmstrips(
    model: Model,
    plan: Plan,
    unit: Unit,
    keys: list[tuple[int, int]],
    ok: list[int],
    tape: Trajectory | None,
) -> Parts:
    if not plan.filmstrip or tape is None:
        return {}
    calls = filmstrip.spread(plan.filmstrip, len(plan.points))
    alpha, sigma = (part.to(tape.x)[calls, None] for part in tape.level)
    shown = filmstrip.branches(tape, unit.guidance)
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(ok):
        p, seed = keys[row]
        x = tape.x[place, calls]
        estimates = torch.cat([(x - sigma * eps[place, calls]) / alpha for eps in shown.values()])
        latents = estimates.reshape(-1, *model.latent_shape).to(model.device)
        frames = _decode(model, latents, plan.batch).unflatten(0, (len(shown), len(calls)))
        image, side = filmstrip.encode(frames)
        rows.append(
            {
                "prompt_id": unit.prompts[p].prompt_id,
                "seed": seed,
                "guidance": unit.guidance,
                "calls": calls,
                "branches": list(shown),
                "side": side,
                "image": image,
            }
        )
    return {"filmstrips": TABLES["filmstrips"].of_rows(rows)}


def _similarity_rows(
    plan: Plan,
    unit: Unit,
    keys: list[tuple[int, int]],
    ok: list[int],
    images: Tensor | None,
) -> pa.Table:
    library = plan.library
    rows: list[dict[str, Any]] = []
    if images is None or not library.references:
        return TABLES["similarities"].schema.empty_table()
    trained = torch.tensor(library.trained)
    for measure, index in plan.measures.items():
        values = index.compare(images)
        candidates = torch.where(trained & torch.isfinite(values), values, -torch.inf)
        for place, row in enumerate(ok):
            p, seed = keys[row]
            prompt_id = unit.prompts[p].prompt_id
            own = library.own[prompt_id]
            others = candidates[place].clone()
            others[list(own)] = -torch.inf
            nearest = int(others.argmax())
            pairs = [(at, "own") for at in own if torch.isfinite(values[place, at])]
            if torch.isfinite(others[nearest]):
                pairs.append((nearest, "nearest"))
            rows += [
                {
                    "prompt_id": prompt_id,
                    "seed": seed,
                    "guidance": unit.guidance,
                    "measure": measure,
                    "reference_id": library.references[at].reference_id,
                    "relation": relation,
                    "value": float(values[place, at]),
                }
                for at, relation in pairs
            ]
    return TABLES["similarities"].of_rows(rows)
