"""A bank holds what all prompts of a run share: the sampler, and what is computed once.

Where prompts share their noise, the unconditional half of anything at that noise is the same for
all of them, so the bank computes it once.

Contents: `Bank`, `Earlier`, `reference_mean`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level, final_level, levels_of
from mnemoscope.core.predict import Kind, shown
from mnemoscope.core.record import Point
from mnemoscope.errors import InputError, ModelError
from mnemoscope.models.base import Model
from mnemoscope.sampling.batching import batch_of, keep_freed
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.exact import exact_path
from mnemoscope.sampling.loop import (
    Denoiser,
    Latents,
    Progress,
    generators_of,
    initial_noise,
    points_of,
    start_scale,
)
from mnemoscope.sampling.probes import predict
from mnemoscope.sampling.recipe import GIVEN, Recipe, given_noise, seed_of

NOWHERE = -1
"""Index of a call that is not on the path."""


MOST = 1e3
"""Largest sigma / alpha of a grid; at zero terminal SNR there is none."""


class Counted:
    """A denoiser that counts the rows it evaluates, and is called as the one within is.

    Args:
        inner: The denoiser.
        tick: Told of the rows of every call.
    """

    def __init__(self, inner: Denoiser, tick: Progress | None = None) -> None:
        self.inner = inner
        self.kind: Kind = inner.kind
        self.rows = 0
        self.tick = tick

    def __getattr__(self, name: str) -> Any:
        """Return what the denoiser within says of how it is called."""
        return getattr(self.inner, name)

    def __call__(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        """Evaluate, and count."""
        self.count(len(x))
        return self.inner(x, timestep, condition)

    def count(self, rows: int) -> None:
        """Count rows, evaluated here or by whoever works for us."""
        self.rows += rows
        if self.tick is not None:
            self.tick(rows)


@dataclass(frozen=True)
class Earlier:
    """An earlier checkpoint of the model.

    Attributes:
        network: Its denoiser; what it evaluates is counted with the model's own.
        encode: Turns prompts into its conditions.
    """

    network: Counted
    encode: Callable[[Sequence[str]], Condition]


class Bank:
    """What all prompts of a run share.

    Args:
        model: The model.
        recipe: How to sample.
        seeds: Samples a prompt.
        batch: Samples a network call; chosen by size and device where None.
        tick: Told after every network call how many rows it evaluated.
        earlier: An earlier checkpoint of the model, where a piece compares the two.

    Attributes:
        scheduler: The sampler with its timesteps set; copied before use.
        points: Where the network is called.
        final: Level of the final state, unit form.
        exact: Weights (w0, wT) of the exact unguided path at every state, the final one last.
        network: The denoiser, counted.
        earlier: The earlier checkpoint; None where none was given.
        mean: Reference mean of the unconditional clean estimate, where a study has set it.

    Raises:
        InputError: If a number is out of range.
        ModelError: If the model cannot sample so.
    """

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        seeds: int,
        batch: int | None = None,
        tick: Progress | None = None,
        earlier: Model | None = None,
    ) -> None:
        for name, value in (("seeds", seeds), ("batch", 1 if batch is None else batch)):
            if value < 1:
                raise InputError(f"{name} {value} given; expected at least 1")
        if model.guidance == "none" and recipe.guidance > 1:
            raise ModelError(
                f"guidance {recipe.guidance:g} means nothing to {model.name!r}: "
                f"{model.no_uncond}; give --guidance 1"
            )
        if recipe.intervention is not None and not model.has_uncond:
            raise ModelError(
                f"{recipe.intervention} combines two branches; {model.name!r} has one: "
                f"{model.no_uncond}"
            )
        if torch.device(model.device).type == "cpu":
            keep_freed()
        self.model = model
        self.recipe = recipe
        self.seeds = seeds
        self.scheduler = model.make_scheduler(recipe.scheduler, recipe.steps)
        self.points = tuple(points_of(self.scheduler))
        self.final = final_level(self.scheduler).unit()
        exact = exact_path(self.scheduler)
        self.exact = exact.w0, exact.wT
        self.batch = batch_of(model.d, model.device) if batch is None else batch
        self.network = Counted(model.denoiser, tick)
        self.earlier = None if earlier is None else self._before(earlier)
        self.mean: Float[Tensor, " d"] | None = None
        self._kept: dict[Any, Any] = {}
        self._given = self._noise_given()

    def _noise_given(self) -> dict[int, Float[Tensor, " *latent"]]:
        """Return the given initial noise of every seed of a generator; none where it is drawn."""
        if not self.recipe.noise.endswith(GIVEN):
            return {}
        noise, _ = given_noise(self.recipe.noise)
        if len(noise) < self.seeds or noise.shape[1:] != tuple(self.model.latent_shape):
            wanted = (self.seeds, *self.model.latent_shape)
            raise InputError(
                f"noise {self.recipe.noise!r} has the shape {tuple(noise.shape)}; {self.seeds} "
                f"seeds of {self.model.name!r} need {wanted}"
            )
        return {self.recipe.sample_seed("", 0, s): noise[s] for s in range(self.seeds)}

    def _before(self, earlier: Model) -> Earlier:
        if tuple(earlier.latent_shape) != tuple(self.model.latent_shape):
            raise InputError(
                f"the earlier checkpoint {earlier.name!r} has latents of shape "
                f"{tuple(earlier.latent_shape)}, {self.model.name!r} of "
                f"{tuple(self.model.latent_shape)}; give a checkpoint of the same network"
            )

        guidance = self.recipe.guidance
        return Earlier(
            Counted(earlier.denoiser, self.network.count),
            lambda texts: earlier.encode_prompts(texts, guidance),
        )

    @property
    def shared(self) -> bool:
        """Return whether seed s means the same noise for every prompt."""
        return self.recipe.shared

    @property
    def calls(self) -> int:
        """Return the number of calls of a whole path."""
        return len(self.points)

    @property
    def branches(self) -> int:
        """Return how many rows the network evaluates a sample and call."""
        asked = self.recipe.intervention
        return (2 if self.model.has_uncond else 1) + len(asked.branches_asked if asked else ())

    @property
    def before(self) -> int:
        """Return the most network calls an intervention makes a sample before the path."""
        asked = self.recipe.intervention
        return asked.calls_before if asked else 0

    @property
    def guidance(self) -> float:
        """Return the scale the loop applies; 1 where guidance is an input of the network."""
        return self.recipe.guidance if self.model.has_uncond else 1.0

    @property
    def knows_start(self) -> bool:
        """Return whether the unconditional branch of the first call is the same for all prompts.

        Under an intervention it need not be, for it may change the noise.
        """
        return self.shared and self.model.has_uncond and self.recipe.intervention is None

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is kept under a key, made at the first time it is asked for."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def blank(self, rows: int) -> Condition:
        """Return the unconditional condition, one row a sample."""
        blank: Condition = self.keep("blank", self.model.encode_blank)
        return blank.expand(rows)

    def point(self, call: int) -> Point:
        """Return a call's point, in the network's precision and on its device."""
        like = torch.zeros((), dtype=torch.float32, device=self.model.device)
        return self.points[call].to(like)

    def trained(self, timestep: int) -> Point:
        """Return where the network stands at a timestep of its training, whatever the path.

        Args:
            timestep: From 0; -1 is the last, the noisiest.

        Raises:
            InputError: If the network was not trained at timesteps, as a flow was not.
        """
        if self.network.kind == "flow":
            raise InputError("a flow was trained at no timesteps; ask the path for its points")
        scheduler = self.keep("trained", lambda: self.model.make_scheduler("ddim", 1))
        last = int(scheduler.config.num_train_timesteps) - 1
        at = torch.tensor(last + 1 + timestep if timestep < 0 else min(timestep, last))
        level = levels_of(scheduler, at[None]).unit().at(0)
        like = torch.zeros((), dtype=torch.float32, device=self.model.device)
        return Point(NOWHERE, at.to(self.model.device), level).to(like)

    def trained_along(self, levels: int) -> list[Point]:
        """Return points spread evenly over the logarithm of the noise of training, ascending.

        Raises:
            InputError: If the network was not trained at timesteps.
        """
        last = int(self.trained(-1).timestep)
        scheduler = self.keep("trained", lambda: self.model.make_scheduler("ddim", 1))
        # The first timestep is all but clean, and far from its neighbour in the logarithm.
        level = levels_of(scheduler, torch.arange(1, last + 1))
        ratio = (level.sigma / level.alpha).clamp_max(MOST).log()
        wanted = torch.linspace(float(ratio[0]), float(ratio[-1]), levels, dtype=torch.float64)
        nearest = (ratio[None] - wanted[:, None]).abs().argmin(dim=1)
        return [self.trained(int(at) + 1) for at in nearest]

    def late(self, before_last: int) -> int:
        """Return the index of a call counted from the end; 1 is the last."""
        return max(0, self.calls - before_last)

    def along(self, levels: int) -> list[Point]:
        """Return points spread evenly over the path."""
        levels = min(levels, self.calls)
        calls = torch.linspace(0, self.calls - 1, levels).round().long().unique().tolist()
        return [self.point(call) for call in calls]

    def noise(self, seeds: list[int]) -> tuple[Latents, list[torch.Generator]]:
        """Draw unit noise, with the generators that go on to draw what a sampler injects.

        Where the recipe gives the noise of a seed, that takes the place of what is drawn.
        """
        generators = generators_of(seeds)
        device = self.model.device
        noise = initial_noise(generators, self.model.latent_shape, device=device)
        for row, seed in enumerate(seeds if self._given else ()):
            if seed in self._given:
                noise[row] = self._given[seed].to(noise)
        return noise, generators

    def start(self, noise: Latents) -> Latents:
        """Return the states at the first call, unit form."""
        return noise * start_scale(self.scheduler) / float(levels_of(self.scheduler).scale[0])

    @torch.no_grad()
    def unconditional(self, x: Latents, point: Point) -> Latents:
        """Return the raw unconditional output at states in the unit form."""
        kind = self.network.kind
        return torch.cat(
            [
                self.network(shown(kind, part, point.level), point.timestep, self.blank(len(part)))
                for part in x.split(self.batch)
            ]
        )

    def shared_noise(self) -> Latents:
        """Return the unit noise of every seed, which prompts share."""
        return self.noise([self.recipe.sample_seed("", 0, s) for s in range(self.seeds)])[0]

    def unconditional_of_seeds(self, call: int) -> Latents:
        """Return the raw unconditional output for the shared noise, once computed.

        At the first call it is that of the path; at a later one the noise is shown as if it were
        a state of that level.

        Raises:
            InputError: If prompts do not share their noise.
        """
        if not self.shared:
            raise InputError("prompts do not share their noise; nothing is the same for all")

        def make() -> Latents:
            noise = self.shared_noise()
            x = self.start(noise) if call == 0 else noise
            return self.unconditional(x, self.point(call))

        return self.keep(("unconditional", call), make)

    def signs(self, name: str, probes: int) -> Float[Tensor, "probe seed *latent"]:
        """Draw vectors of -1 and 1 for every seed, the same for every prompt."""
        shape = (self.seeds, *self.model.latent_shape)
        drawn = [
            torch.randint(
                0, 2, shape, generator=generators_of([seed_of(self.recipe.seed, name, k)])[0]
            )
            for k in range(probes)
        ]
        return (2 * torch.stack(drawn) - 1).to(self.model.device, torch.float32)

    @property
    def level(self) -> Level:
        """Return the levels of all calls, unit form."""
        parts = zip(*(point.level for point in self.points), strict=True)
        return Level(*(torch.stack(part) for part in parts))


MEAN_DRAWS = 256
"""Noise draws of the reference mean; its standard error is 1/16 of a coordinate's deviation."""


@torch.no_grad()
def reference_mean(bank: Bank) -> Float[Tensor, " d"] | None:
    """Average the unconditional clean estimate at the first level over noise.

    Returns:
        The mean over `MEAN_DRAWS` draws, float32; None for a model without an unconditional branch,
        or where it is not finite.

    Source: ours, after the paper's reading of the unconditional estimate as a mean of the data.
    """
    if not bank.model.has_uncond:
        return None
    point = bank.points[0]
    total = torch.zeros(bank.model.d, dtype=torch.float64)
    for start in range(0, MEAN_DRAWS, bank.batch):
        draws = range(start, min(MEAN_DRAWS, start + bank.batch))
        x, _ = bank.noise([seed_of(bank.recipe.seed, "mean", draw) for draw in draws])
        clean = predict(bank.network, x, point, bank.blank(len(x))).x0
        total += clean.flatten(1).double().sum(dim=0).cpu()
    mean = (total / MEAN_DRAWS).float()
    return mean if bool(torch.isfinite(mean).all()) else None
