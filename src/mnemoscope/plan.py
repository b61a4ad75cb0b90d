r"""A plan is a study made concrete: its units of work, what is shared among them, and its price.

Formulas::

    unit    a chunk of prompts at one guidance scale, with all seeds
    price   prompts·seeds·guidances·calls·branches + probes + mean     network calls (rows)

A unit depends on the study and the model alone, never on batch size or device, so a run continues
on another machine. Chunks are as large as a tape of `TAPE` bytes allows.

Contents: `Library` (training images), `Unit`, `Plan`, `make_plan`, `make_library`.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level, final_level
from mnemoscope.core.predict import Prediction
from mnemoscope.core.record import Point
from mnemoscope.sampling.loop import (
    ExactPath,
    exact_path,
    generators_of,
    initial_noise,
    points_of,
)
from mnemoscope.errors import InputError, ModelError
from mnemoscope.data.images import fit, load_image, load_mask
from mnemoscope.models.base import Model
from mnemoscope.data.prompts import Prompt
from mnemoscope.similarity import Index, Reference, Similarity, get_similarity

TAPE = 64 * 2**20
"""Bytes of tape a unit may hold: 8 prompts with 10 seeds of the embedded model, one of SD 1.4."""

MAX_CHUNK = 8
"""Most prompts a unit holds, so that a killed run loses little."""

MEAN_DRAWS = 256
"""Noise draws of the reference mean; its standard error is 1/16 of a coordinate's deviation."""

PROBE_SEEDS, PROBE_STRIDE, PROBE_CALLS = 4, 5, 10
"""Seeds a prompt that are probed off the path, and the sub-grid of calls."""

ROWS = 2**16
"""Latent coordinates a batch on the CPU, 4 samples of SD 1.4; 4 times as many on an accelerator."""


@dataclass(frozen=True)
class Library:
    """The training images a study knows.

    Attributes:
        references: The images, each once, shrunk to the model's size.
        rows: One row of table `references` for each, without its prompts.
        own: Positions of each prompt's own images, by prompt_id.
        trained: Whether an image was trained on, as far as the study knows; a control's was not.
        latents: Latents of images that were encoded already, by position.
    """

    references: tuple[Reference, ...]
    rows: tuple[dict[str, Any], ...]
    own: dict[str, tuple[int, ...]]
    trained: tuple[bool, ...]
    latents: dict[int, Tensor] = field(default_factory=dict[int, Tensor], repr=False)

    @property
    def digest(self) -> str:
        """Return the SHA-256 over the names of the images."""
        names = "\n".join(reference.reference_id for reference in self.references)
        return hashlib.sha256(names.encode()).hexdigest()

    def targets(self, model: Model, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt d"]:
        """Return the latents of each prompt's first image; rows of NaN where it has none."""
        rows = torch.full((len(prompts), model.d), torch.nan)
        for row, prompt in enumerate(prompts):
            if not self.own[prompt.prompt_id]:
                continue
            first = self.own[prompt.prompt_id][0]
            if first not in self.latents:
                pixels = self.references[first].pixels[None]
                with torch.no_grad():
                    encoded = model.encode_images(pixels.to(model.device))
                self.latents[first] = encoded.flatten().float().cpu()
            rows[row] = self.latents[first]
        return rows


def make_library(prompts: Sequence[Prompt], size: int) -> Library:
    """Read the training images of prompts.

    Args:
        prompts: All prompts whose images count as known.
        size: Side of the model's images in pixels; larger ones are shrunk to it.

    Raises:
        InputError: If an image cannot be read.
    """
    references: list[Reference] = []
    rows: list[dict[str, Any]] = []
    trained: list[bool] = []
    place: dict[str, int] = {}
    own: dict[str, tuple[int, ...]] = {}
    for prompt in prompts:
        mine: list[int] = []
        for source in prompt.images:
            image = load_image(source)
            if image.reference_id not in place:
                place[image.reference_id] = len(references)
                height, width = image.pixels.shape[-2:]
                mask = None if prompt.mask is None else load_mask(prompt.mask)
                large = min(height, width) > size
                pixels = fit(image.pixels, (size, size)) if large else image.pixels
                if mask is not None and mask.shape != pixels.shape[-2:]:
                    mask = fit(mask, (pixels.shape[-2], pixels.shape[-1]))
                references.append(Reference(image.reference_id, pixels, mask))
                rows.append(
                    {
                        "reference_id": image.reference_id,
                        "prompt_ids": list[str](),
                        "digest": image.digest,
                        "width": width,
                        "height": height,
                        "masked": mask is not None,
                    }
                )
                trained.append(False)
            index = place[image.reference_id]
            mine.append(index)
            rows[index]["prompt_ids"].append(prompt.prompt_id)
            trained[index] |= prompt.group != "control"
        own[prompt.prompt_id] = tuple(dict.fromkeys(mine))
    return Library(tuple(references), tuple(rows), own, tuple(trained))


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done whole or not at all.

    Attributes:
        name: Name of its parts.
        prompts: Its prompts.
        guidance: Its guidance scale.
        probed: Whether its prompts are also probed off the path.
    """

    name: str
    prompts: tuple[Prompt, ...]
    guidance: float
    probed: bool


@dataclass(frozen=True)
class Plan:
    """A study made concrete.

    Attributes:
        units: All units, in order.
        library: The training images.
        measures: Similarities with their images made ready, by name.
        similarities: The same similarities, bare.
        scheduler: Scheduler with its timesteps set; copied before use.
        name: Name of the scheduler.
        points: Where the network is called.
        final: Level of the final state, unit form.
        exact: The exact unguided path.
        seeds: Samples a prompt.
        seed: Seed of the study.
        shared_noise: Whether a seed index means the same noise for every prompt.
        batch: Samples a batch.
        mean: Reference mean of the unconditional clean estimate; None before it is known, and for a
            model without an unconditional branch.
        filmstrip: Calls of which each sample's clean estimates are kept as pictures.
    """

    units: tuple[Unit, ...]
    library: Library
    measures: dict[str, Index]
    similarities: dict[str, Similarity]
    scheduler: Any
    name: str
    points: tuple[Point, ...]
    final: Level
    exact: ExactPath
    seeds: int
    seed: int
    shared_noise: bool
    batch: int
    mean: Float[Tensor, " d"] | None = None
    filmstrip: int = 0

    @property
    def probes(self) -> tuple[Point, ...]:
        """Return where the network is probed off the path."""
        return self.points[::PROBE_STRIDE][:PROBE_CALLS]

    def network_calls(self, unit: Unit, branches: int) -> int:
        """Return how many rows the network evaluates for a unit."""
        path = len(unit.prompts) * self.seeds * len(self.points) * branches
        if not unit.probed:
            return path
        laws = sum(2 if self.library.own[p.prompt_id] else 1 for p in unit.prompts)
        return path + laws * min(PROBE_SEEDS, self.seeds) * len(self.probes) * 2

    def sample_seed(self, prompt_id: str, index: int) -> int:
        """Return the seed of a sample's generator, from 0 to 2^63 - 1."""
        named = "" if self.shared_noise else prompt_id
        return seed_of(self.seed, named, index)


def seed_of(*parts: Any) -> int:
    """Return a seed from the SHA-256 of its parts, from 0 to 2^63 - 1."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_plan(
    model: Model,
    prompts: Sequence[Prompt],
    library: Library,
    *,
    seeds: int,
    guidance: Sequence[float],
    steps: int,
    scheduler: str,
    seed: int,
    shared_noise: bool,
    probes: bool,
    similarity: Sequence[str],
    sscd: str | Path | None,
    batch: int | None,
    filmstrip: int = 0,
) -> Plan:
    """Make a study concrete.

    Raises:
        ModelError: If the scheduler is unknown, or guidance is asked of a model that has none.
        InputError: If a number is out of range or a similarity is unknown.
    """
    if not model.has_uncond and max(guidance) > 1:
        raise ModelError(
            f"{model.name!r} has no unconditional branch, so guidance {max(guidance):g} means "
            "nothing to it; give --guidance 1"
        )
    path = model.make_scheduler(scheduler, steps)
    points = tuple(points_of(path))
    tape = seeds * len(points) * model.d * 16
    chunk = max(1, min(MAX_CHUNK, TAPE // tape))
    units = tuple(
        Unit(
            f"{start // chunk:05d}-g{g:g}",
            tuple(prompts[start : start + chunk]),
            g,
            probes and model.has_uncond and g == guidance[0],
        )
        for start in range(0, len(prompts), chunk)
        for g in guidance
    )
    measures = {
        name: get_similarity(name, weights=sscd if name.startswith("sscd") else None)
        for name in similarity
    }
    if batch is None:
        rows = ROWS if model.device.type == "cpu" else 4 * ROWS
        batch = max(1, min(32, rows // model.d))
    if batch < 1:
        raise InputError(f"batch {batch} given; expected at least 1")
    return Plan(
        units,
        library,
        {name: measure.index(library.references) for name, measure in measures.items()},
        measures,
        path,
        scheduler,
        points,
        final_level(path).unit(),
        exact_path(path),
        seeds,
        seed,
        shared_noise,
        batch,
        filmstrip=filmstrip,
    )


@torch.no_grad()
def seconds_a_row(model: Model, plan: Plan) -> float:
    """Time one call of the network on a full batch, after one to warm up.

    Returns:
        Seconds a row, both branches counted.
    """
    rows = 2 * plan.batch
    x = torch.zeros(rows, *model.latent_shape, device=model.device)
    condition = model.encode_prompts([""] * rows)
    taken = 0.0
    for _ in range(2):
        start = time.perf_counter()
        # Reading a number waits for an accelerator to finish.
        float(model.denoiser(x, plan.points[0].timestep, condition).sum())
        taken = time.perf_counter() - start
    return taken / rows


@torch.no_grad()
def reference_mean(model: Model, plan: Plan) -> Float[Tensor, " d"] | None:
    """Average the unconditional clean estimate at the first level over noise.

    Returns:
        The mean over `MEAN_DRAWS` draws, float32; None for a model without an unconditional branch,
        or where it is not finite.

    Source: ours, after the paper's reading of the unconditional estimate as a mean of the data.
    """
    if not model.has_uncond:
        return None
    point = plan.points[0]
    total = torch.zeros(model.d, dtype=torch.float64)
    for start in range(0, MEAN_DRAWS, plan.batch):
        draws = range(start, min(MEAN_DRAWS, start + plan.batch))
        generators = generators_of([seed_of(plan.seed, "mean", draw) for draw in draws])
        x = initial_noise(generators, model.latent_shape, device=model.device)
        raw = model.denoiser(x, point.timestep, model.encode_prompts([""] * len(x)))
        clean = Prediction.from_raw(model.denoiser.kind, raw, x, point.level).x0
        total += clean.flatten(1).double().sum(dim=0).cpu()
    mean = (total / MEAN_DRAWS).float()
    return mean if bool(torch.isfinite(mean).all()) else None
