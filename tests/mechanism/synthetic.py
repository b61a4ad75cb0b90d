"""Runs with a known mechanism: an unconditional Wiener filter, and a conditional that leaks x.

The unconditional estimate is the posterior mean of a Gaussian whose coordinates have a decaying
variance; the conditional one is ``lam·x + (1 - lam)·x0_u``. Sampled with DDIM on Stable Diffusion's
schedule, in float64, without the package's own sampler.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level, log_snr
from mnemoscope.core.record import Trajectory
from mnemoscope.mechanism.base import Convergence, Exact, Law, Record, Samples, averaged

D = 512
PROBED = slice(None, None, 5)


def schedule(steps: int = 50, *, zero: bool = False) -> tuple[Level, Level]:
    """Return the levels of Stable Diffusion's calls ("leading", offset 1) and of its end.

    With `zero` the first call is at pure noise, as Lin et al. 2024 rescale the schedule.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    times = torch.arange(steps).flip(0) * (1000 // steps) + 1
    if zero:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
        times = torch.arange(1000, 0, -1000 // steps) - 1
    return (
        Level(abar[times].sqrt(), (1 - abar[times]).sqrt()),
        Level(abar[0].sqrt(), (1 - abar[0]).sqrt()),
    )


@dataclass(frozen=True)
class World:
    """The closed-form model; `mean` and `variance` are of all images, a value a coordinate."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, d: int = D) -> "World":
        generator = torch.Generator().manual_seed(0)
        # A few coordinates hold most of the variance, as low frequencies do in a picture.
        variance = 1 / torch.arange(1, d + 1, dtype=torch.float64)
        mean = 0.1 * torch.randn(d, generator=generator).double()
        return cls(mean, variance * d / variance.sum())

    def image(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + seed)
        # float32 values: the record keeps targets in float32, and nothing may be lost to rounding.
        noise = torch.randn(len(self.mean), generator=generator).double()
        return (self.mean + self.variance.sqrt() * noise).float().double()

    def estimates(
        self, x: Tensor, level: Level, target: Tensor, lam: float
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = level
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        uncond = self.mean + gain * (x - alpha * self.mean)
        return uncond, lam * target + (1 - lam) * uncond


def v_of(x: Tensor, clean: Tensor, level: Level) -> Tensor:
    """Return the prediction whose clean estimate is given."""
    return (level.alpha * x - clean) / level.sigma


def walk(
    world: World,
    target: Tensor,
    lam: float,
    g: float,
    seeds: range,
    *,
    exact: bool = False,
    zero: bool = False,
) -> Trajectory:
    """Sample one prompt; `exact` makes both estimates the target itself."""
    levels, final = schedule(zero=zero)
    x = torch.stack(
        [torch.randn(len(target), generator=torch.Generator().manual_seed(s)) for s in seeds]
    ).double()
    x_T, tape = x, []
    for call in range(len(levels.alpha)):
        level = levels.at(call)
        uncond, cond = world.estimates(x, level, target, lam)
        if exact:
            uncond = cond = target.expand_as(x)
        guided = uncond + g * (cond - uncond)
        tape.append((x, *(v_of(x, clean, level) for clean in (uncond, cond, guided))))
        there = levels.at(call + 1) if call + 1 < len(levels.alpha) else final
        x = there.alpha * guided + there.sigma * (x - level.alpha * guided) / level.sigma
    states, *predictions = (torch.stack(part, dim=1) for part in zip(*tape, strict=True))
    return Trajectory(levels, states, *predictions, x_T=x_T, x_0=x)


def probe(
    world: World, target: Tensor, lam: float, seeds: range, law: Law, *, zero: bool = False
) -> Trajectory:
    """Evaluate the model off the path, at every fifth level."""
    levels, _ = schedule(zero=zero)
    levels = Level(levels.alpha[PROBED], levels.sigma[PROBED])
    noise = torch.stack(
        [torch.randn(len(target), generator=torch.Generator().manual_seed(s)) for s in seeds]
    ).double()
    tape = []
    for call in range(len(levels.alpha)):
        level = levels.at(call)
        x = level.alpha * target + level.sigma * noise if law == "forward" else noise
        uncond, cond = world.estimates(x, level, target, lam)
        tape.append((x, *(v_of(x, clean, level) for clean in (uncond, cond))))
    states, v_u, v_c = (torch.stack(part, dim=1) for part in zip(*tape, strict=True))
    nothing = torch.full_like(noise, torch.nan)
    return Trajectory(levels, states, v_u, v_c, v_c * torch.nan, x_T=noise, x_0=nothing)


def join(grams: list[Gram]) -> Gram:
    first = grams[0]
    return Gram(
        first.level,
        torch.cat([gram.products for gram in grams]),
        first.d,
        first.final,
        first.names,
    )


def spread(tapes: dict[str, Trajectory], levels: Level) -> Convergence:
    columns: dict[str, list[np.ndarray]] = {}
    for tape in tapes.values():
        for name, vector in (("x", tape.x), ("x0_g", tape.x0("g"))):
            n, calls, d = vector.shape
            a = vector.numpy()
            pairs = [(i, j) for i in range(n) for j in range(i)]
            dots = np.einsum("icd,jcd->cij", a, a)
            norm = np.sqrt(np.einsum("cii->ci", dots))
            centred = a - a.mean(0)
            kernel = np.einsum("icd,jcd->cij", centred, centred)
            odd = a[1::2]
            rows = {
                "variance": a.var(axis=0, ddof=1).mean(-1),
                "variance_odd": odd.var(axis=0, ddof=1).mean(-1)
                if len(odd) > 1
                else np.full(calls, np.nan),
                "distance": np.mean(
                    [np.linalg.norm(a[i] - a[j], axis=-1) / np.sqrt(d) for i, j in pairs], axis=0
                ),
                "cosine": np.mean(
                    [dots[:, i, j] / norm[:, i] / norm[:, j] for i, j in pairs], axis=0
                ),
                "rank": np.einsum("cii->c", kernel) ** 2 / (kernel**2).sum((1, 2)),
            }
            for kind, row in rows.items():
                columns.setdefault(f"{name}_{kind}", []).append(row)
    calls = len(levels.alpha)
    return Convergence(
        tuple(tapes),
        np.arange(calls),
        log_snr(levels).numpy(),
        levels.sigma.numpy(),
        {name: np.stack(rows) for name, rows in columns.items()},
        np.array([len(tape.x) for tape in tapes.values()]),
    )


def record(
    strengths: dict[str, float],
    groups: dict[str, frozenset[str]],
    *,
    guidances: tuple[float, ...] = (1.0, 7.5),
    seeds: int = 4,
    probes: bool = True,
    target: bool = True,
    severity: bool = True,
    mean: bool = True,
    zero: bool = False,
    swap: bool = True,
) -> Record:
    """Make a run: each prompt has its own image, and `strengths` says how much of it leaks."""
    world = World.of()
    levels, final = schedule(zero=zero)
    prompts = list(strengths)
    images = {prompt: world.image(i) for i, prompt in enumerate(prompts)}
    samples: dict[tuple[Law, float | None], Samples] = {}
    rated: dict[float, dict[tuple[str, int], float]] = {}
    other: dict[float, dict[tuple[str, int], float]] = {}
    # Each prompt is judged with the image of the next one, the last with that of the first.
    swaps = dict(zip(prompts, [*prompts[1:], prompts[0]], strict=True))
    convergence: dict[float, Convergence] = {}

    def reduce(tapes: dict[str, Trajectory], g: float, calls: np.ndarray) -> Samples:
        grams = [
            Gram.of(
                tape,
                final=final,
                target=images[prompt].expand(seeds, D) if target else None,
                mean=world.mean if mean else None,
                other=images[swaps[prompt]].expand(seeds, D) if target and swap else None,
            )
            for prompt, tape in tapes.items()
        ]
        names = [prompt for prompt in tapes for _ in range(seeds)]
        kept = list(range(seeds)) * len(tapes)
        return Samples.of(join(grams), names, kept, calls.tolist(), g)

    for g in guidances:
        tapes = {
            prompt: walk(world, images[prompt], lam, g, range(100 * i, 100 * i + seeds), zero=zero)
            for i, (prompt, lam) in enumerate(strengths.items())
        }
        samples["path", g] = reduce(tapes, g, np.arange(len(levels.alpha)))
        if seeds > 1:
            convergence[g] = spread(tapes, levels)
        if severity and target:
            for into, image_of in ((rated, {p: p for p in prompts}), (other, swaps)):
                into[g] = {
                    (prompt, seed): -float(((x_0 - images[image_of[prompt]]) ** 2).mean().sqrt())
                    for prompt, tape in tapes.items()
                    for seed, x_0 in enumerate(tape.x_0)
                }
    if probes:
        laws: tuple[Law, ...] = ("forward", "noise") if target else ("noise",)
        for law in laws:
            tapes = {
                prompt: probe(
                    world, images[prompt], lam, range(100 * i, 100 * i + seeds), law, zero=zero
                )
                for i, (prompt, lam) in enumerate(strengths.items())
            }
            samples[law, None] = reduce(tapes, float("nan"), np.arange(50)[PROBED])
    path = samples["path", guidances[0]].gram
    leaving = path.states().level.sigma / levels.sigma[0]
    w0 = path.states().level.alpha - levels.alpha[0] * leaving
    return Record(
        samples,
        groups,
        {g: averaged(values) for g, values in rated.items()},
        "-rmse",
        convergence,
        Exact(w0.numpy(), leaving.numpy()),
        tokens={prompt: float(5 + 3 * at % 7) for at, prompt in enumerate(prompts)},
        swaps=swaps if target and swap else {},
        rated=rated,
        rated_other=other if swap else {},
    )
