"""A study samples a model on prompts and leaves a run: tables of what happened, and what follows.

Flow of `run`: load model and prompts, say the price, run the units that are not on disk yet, then
derive severity and the mechanism's tables from what was recorded.

Contents: `Study`, `run`, `derived`; `study_prompts`, `seconds_a_row` and `duration`.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mnemoscope import mechanism
from mnemoscope.data.prompts import Prompt, PromptList, stratified
from mnemoscope.data.references import References, swapped
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.evidence import Bank, Piece, price_in
from mnemoscope.evidence.bank import MEAN_DRAWS, reference_mean
from mnemoscope.evidence.gather import gather, sit
from mnemoscope.evidence.pieces.convergence import Convergence
from mnemoscope.evidence.pieces.filmstrip import Filmstrip
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.evidence.pieces.probed import Probed
from mnemoscope.evidence.pieces.text import Text, word_frequency
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.evidence.sitting import told
from mnemoscope.flows.options import (
    Named,
    as_model,
    brought,
    given,
    listed,
    loaded,
    recipe_of,
    resolved,
    similarity_of,
    values_of,
)
from mnemoscope.flows.rows import (
    Sat,
    convergence_rows,
    failed_rows,
    filmstrip_rows,
    gram_rows,
    prompt_rows,
    reference_rows,
    sample_rows,
    similarity_rows,
)
from mnemoscope.flows.scores import choose, methods_of, score_rows, union, unscored
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.runs.crew import Make
from mnemoscope.runs.execute import (
    UNIT,
    Rows,
    Unit,
    chunk_of,
    size_of,
    units_of,
)
from mnemoscope.runs.executors import Execution, executor_of
from mnemoscope.runs.folder import CONSTANT, Run, Writer, begun
from mnemoscope.runs.manifest import Manifest, packages
from mnemoscope.runs.parts import chunks
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.batching import attempt
from mnemoscope.sampling.loop import Progress
from mnemoscope.sampling.recipe import Recipe, Sampling, checked_guidance
from mnemoscope.severity.grade import assess
from mnemoscope.similarity import Index, Similarity

Derive = Callable[[Writer, Manifest, Mapping[str, Similarity]], None]
"""Writes the tables that are arithmetic on the others."""

Notify = Callable[[str], None]
"""Told one line at a time what is going on."""

BLOCK = 2048
"""Rows of prompts that are written together."""

DELAY = 0.1
"""Seconds before a progress bar is drawn: the price comes first."""

CONTROL = "control"
"""Group of the prompts that were never planted."""

PICTURES = 256
"""Training images whose thumbnails are written together, and most whose latents are held."""


@dataclass(frozen=True)
class Study(Execution, Sampling, Source):
    """What to do. Every field is an option of `mnemoscope study`, with this default and help."""

    guidance: tuple[float, ...] = option(
        (1.0, 7.5), "Guidance scales, comma-separated; 1 is unguided."
    )
    prompts: str | Path | None = option(
        None, "Prompt file or image folder; the embedded model brings its own."
    )
    seeds: int = option(10, "Samples a prompt.")
    out: str | Path = option("runs/study", "Run folder; an unfinished run in it is continued.")
    subset: int | None = option(
        None, "Use this many of the prompts, one control in four, spread over all levels."
    )
    levels: tuple[float, ...] = option(
        (), "Use the prompts planted at these levels alone, comma-separated, and controls."
    )
    controls: int | None = option(None, "Use this many controls.")
    ids: tuple[str, ...] = option((), "Use the prompts of these names alone, comma-separated.")
    similarity: tuple[str, ...] = option(
        ("l2", "tiled_l2", "masked_l2"),
        "Similarity measures, comma-separated; the first says what counts as memorized.",
    )
    sscd: str | Path | None = option(None, "File of the SSCD network, TorchScript or ONNX.")
    probes: bool = option(True, "Also call the network on noised targets and on pure noise.")
    filmstrip: int = option(
        0,
        "Calls whose clean estimates are kept as pictures, for the report's scrubber; at most "
        "32 KiB a sample, and three decodings a call.",
    )
    detectors: tuple[str, ...] = option(
        ("free",),
        "Detectors that score what is gathered, comma-separated; 'free' is all that cost no "
        "further network call, 'none' is none.",
    )
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")
    retry: bool = option(False, "Do units again in which a sample failed or is not finite.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        brought(self)
        for scale in self.guidance:
            checked_guidance(scale)
        if self.filmstrip < 0:
            raise InputError(f"filmstrip {self.filmstrip} given; expected at least 0")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Study":
        """Make a study of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))

    def resolved(self) -> dict[str, Any]:
        """Return every option as JSON has it."""
        return resolved(self)

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return given(self)

    def recipes(self, model: Model) -> tuple[Recipe, ...]:
        """Return one recipe a guidance scale."""
        return tuple(recipe_of(self, model, guidance=scale) for scale in self.guidance)


def run(
    study: Study,
    *,
    model: Any = None,
    prompts: PromptList | None = None,
    known: PromptList | None = None,
    work: "Callable[..., StudyWorker] | None" = None,
    derive: Derive | None = None,
    notify: Notify | None = None,
    progress: bool = False,
) -> Run:
    """Run a study, or what is left of it.

    Args:
        study: The study.
        model: Its model, if it is loaded already; a pipeline object does as well.
        prompts: Its prompts, if they are in memory already.
        known: Prompts whose images are known, if more than its own.
        work: What does its units.
        derive: Writes the derived tables.
        notify: Told the price first, then what was found on disk and what is done.
        progress: Whether to draw a progress bar on standard error.

    Returns:
        The finished run.

    Raises:
        InputError: If prompts, images or an option cannot be used.
        ModelError: If the model cannot be loaded or cannot do what is asked.
        RunError: If the run folder is of another study, in use, or cannot be written.
        KeyboardInterrupt: If it was interrupted; the same study continues where it stopped.
    """
    say = notify or (lambda line: None)
    if prompts is None:
        prompts, known = study_prompts(study)
    detectors = choose(study.detectors)
    measures = {name: similarity_of(name, study.sscd) for name in study.similarity}
    model = loaded(study) if model is None else as_model(model)
    with tqdm(unit="call", unit_scale=True, disable=not progress, leave=False, delay=DELAY) as bar:
        made = work or StudyWorker
        worker = made(study, model, detectors, lambda rows: _update(bar, rows))
        worker.know(prompts, References(known or prompts, model.image_size), measures)
        manifest = worker.manifest(prompts)
        with Writer.open(Path(study.out), manifest) as writer:
            if study.retry:
                writer.discard_failed()
            done = writer.finished()
            left = [unit.name for unit in worker.units(prompts) if unit.name not in done]
            every = worker.count(prompts)
            say(worker.price(prompts))
            if len(left) < every:
                say(f"{every - len(left)} of {every} units are on disk already")
            with writer.noting(manifest):
                _write_inputs(writer, worker, prompts, done)
                worker.mean_from(writer)
                bar.reset(worker.calls(prompts) * len(left) // max(every, 1))
                todo = (unit for unit in worker.units(prompts) if unit.name not in done)
                executor_of(study)(writer, worker, todo, overlap=model.device.type != "cpu")
                (derive or derived)(writer, manifest, measures)
            return writer.close(manifest, "complete")


def derived(
    writer: Writer, manifest: Manifest, loaded: Mapping[str, Similarity] | None = None
) -> None:
    """Write the tables that are arithmetic on the others; no network is called."""
    writer.append("severity", assess(Run(writer.path, manifest), loaded=loaded))
    findings = mechanism.analyse(mechanism.read(Run(writer.path, manifest)))
    columns = mechanism.columns(findings)
    writer.append("mechanism", {name: TABLES[name].of(values) for name, values in columns.items()})


class StudyWorker:
    """Does a study's units.

    Args:
        study: The study.
        model: Its model.
        detectors: What scores the evidence.
        tick: Told after every network call how many rows it evaluated.

    Raises:
        ModelError: If the model cannot do what is asked.
    """

    def __init__(
        self,
        study: Study,
        model: Model,
        detectors: Sequence[Detector],
        tick: Progress | None = None,
    ) -> None:
        self.study = study
        self.model = model
        self.detectors = tuple(detectors)
        self.banks = {
            recipe.key: Bank(model, recipe, study.seeds, study.batch, tick)
            for recipe in study.recipes(model)
        }
        self.first = next(iter(self.banks.values()))
        self._latents: dict[int, Float[Tensor, " d"]] = {}

    def know(
        self, prompts: PromptList, references: References, measures: Mapping[str, Similarity]
    ) -> None:
        """Take in the list: its words where one asks, and its images."""
        asked = Text() in union(self.detectors)
        self.frequency = word_frequency(prompts) if asked else None
        self.files = [digest for m in measures.values() if (digest := getattr(m, "digest", ""))]
        self.swapped = swapped(prompts, references)
        self.compare_with(references, measures)

    def compare_with(self, references: References, measures: Mapping[str, Similarity]) -> None:
        """Make images ready for every measure."""
        self.references = references
        self.indices: dict[str, Index] = {
            name: measure.index(references) for name, measure in measures.items()
        }

    def elsewhere(self) -> Make:
        """Return what makes the same worker in another process.

        Raises:
            ModelError: If its model cannot be named there.
        """
        state = {"frequency": self.frequency, "swapped": self.swapped}
        told = self.study, Named.of(self.model), self.detectors, self.references
        return partial(_again, self.like, told, state)

    @property
    def like(self) -> "Callable[..., StudyWorker]":
        """Return what makes its like of a study, a model, detectors and a tick."""
        return type(self)

    def credit(self, rows: int) -> None:
        """Count rows that the network evaluated elsewhere."""
        self.first.network.count(rows)

    def pieces(self, first: bool) -> tuple[Piece[Any], ...]:
        """Return what is gathered at a recipe; the first one is also probed off the path."""
        study = self.study
        # Pictures first: a sample without one counts nowhere.
        pieces: list[Piece[Any]] = [Pictures(), WholePath(), Convergence()]
        if study.filmstrip:
            pieces.append(Filmstrip(study.filmstrip))
        if study.probes and first and self.model.has_uncond:
            pieces += [Probed("forward"), Probed("noise")]
        return (*pieces, *union(self.detectors))

    def units(self, prompts: PromptList) -> Any:
        """Yield the units of a list."""
        return units_of(prompts, (bank.recipe for bank in self.banks.values()), self.chunk)

    @cached_property
    def chunk(self) -> int:
        """Return how many prompts make a unit."""
        bank = self.first
        usual = chunk_of(
            batch=bank.batch,
            seeds=bank.seeds,
            calls=bank.calls,
            d=self.model.d,
            accelerator=self.model.device.type != "cpu",
        )
        return size_of(Path(self.study.out), usual)

    def count(self, prompts: PromptList) -> int:
        """Return how many units a list has."""
        return -(-len(prompts) // self.chunk) * len(self.banks)

    def calls(self, prompts: PromptList) -> int:
        """Return how many rows the network evaluates for all units of a list."""
        held = sum(bool(self.references.own[prompt.prompt_id]) for prompt in prompts)
        total = 0
        for bank in self.banks.values():
            pieces = self.pieces(bank is self.first)
            bare = [piece for piece in pieces if not piece.pair]
            total += held * price_in(bank, pieces).calls
            total += (len(prompts) - held) * price_in(bank, bare).calls
        return total

    def price(self, prompts: PromptList) -> str:
        """Say what a study of a list costs."""
        calls = self.calls(prompts)
        if self.model.has_uncond:
            calls += self.mean_draws + sum(b.seeds for b in self.banks.values() if b.knows_start)
        seconds = calls * seconds_a_row(self.first)
        scales = len(self.banks)
        return (
            f"{len(prompts)} prompts x {self.study.seeds} seeds x {scales} guidance scale"
            f"{'s' if scales > 1 else ''}, {calls:,} network calls, about {duration(seconds)} "
            f"on {torch.device(self.model.device)}"
        )

    def manifest(self, prompts: PromptList) -> Manifest:
        """Say what is asked of which model."""
        content = hashlib.sha256(f"{prompts.digest}{self.references.digest}".encode())
        alpha, sigma = self.first.final
        study, model = self.study, self.model
        return Manifest(
            given=study.given(),
            options=study.resolved()
            | {"batch": self.first.batch, "scheduler": self.first.recipe.scheduler}
            | {UNIT: self.chunk},
            methods=methods_of(self.detectors, self.files),
            packages=packages(),
            model={"name": model.name, "digest": model.digest},
            prompts=content.hexdigest(),
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            final_level=(float(alpha), float(sigma)),
            d=model.d,
            latent_shape=tuple(model.latent_shape),
            units={
                "inputs": 1,
                "inputs-prompts-*": -(-len(prompts) // BLOCK),
                "inputs-references-*": -(-len(self.references) // PICTURES),
                CONSTANT: 1,
                **{f"*-{key}": -(-len(prompts) // self.chunk) for key in self.banks},
                "severity": 1,
                "mechanism": 1,
            },
        )

    @property
    def mean_draws(self) -> int:
        """Return how many network calls the reference mean takes."""
        return MEAN_DRAWS

    def reference_mean(self) -> Float[Tensor, " d"] | None:
        """Make the reference mean."""
        return reference_mean(self.first)

    def mean_from(self, writer: Writer) -> None:
        """Take the reference mean from the run, or compute it and leave it there."""
        held = Run(writer.path, begun(writer.path))
        if not held.constants:
            w0, wT = self.first.exact
            constants = {"w0": w0[1:], "wT": wT[1:]}
            mean = self.reference_mean()
            writer.write_constants(constants if mean is None else constants | {"mean": mean})
            held = Run(writer.path, held.manifest)
        for bank in self.banks.values():
            bank.mean = held.mean

    def others(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt d"]:
        """Return the latents of the image that each prompt is swapped with; NaN where none is."""
        rows = torch.full((len(prompts), self.model.d), torch.nan)
        for row, prompt in enumerate(prompts):
            if prompt.prompt_id in self.swapped:
                rows[row] = self._latent(self.swapped[prompt.prompt_id])
        return rows

    def targets(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt d"]:
        """Return the latents of each prompt's first image; rows of NaN where it has none."""
        rows = torch.full((len(prompts), self.model.d), torch.nan)
        for row, prompt in enumerate(prompts):
            own = self.references.own[prompt.prompt_id]
            if own:
                rows[row] = self._latent(own[0])
        return rows

    def _latent(self, place: int) -> Float[Tensor, " d"]:
        if place not in self._latents:
            pixels = self.references[place].pixels[None].to(self.model.device)
            self._latents[place] = self.model.encode_images(pixels).flatten().float().cpu()
            # The recipes of a unit ask for the same ones in turn; no need to hold them all.
            while len(self._latents) > PICTURES:
                del self._latents[next(iter(self._latents))]
        return self._latents[place]

    def gather(self, unit: Unit) -> Sat:
        """Sample, record, decode."""
        bank = self.banks[unit.recipe.key]
        pieces = self.pieces(unit.first)
        spent: dict[Piece[Any], float] = {}
        sitting = sit(
            bank,
            unit.prompts,
            unit.places,
            pieces,
            frequency=self.frequency,
            targets=self.targets,
            others=self.others,
            spent=spent,
        )
        evidence = gather(sitting, pieces, spent)
        return Sat(bank, unit.prompts, tuple(sitting.keys), sitting.outcomes, evidence, spent)

    def reduce(self, unit: Unit, gathered: Sat) -> Rows:
        """Compare pictures, score evidence, make rows."""
        rows = {
            "samples": sample_rows(gathered, gathered.bank.calls),
            "gram": gram_rows(gathered, unit.first and self.study.probes),
            "convergence": convergence_rows(gathered),
            "similarities": similarity_rows(gathered, self.references, self.indices, self.swapped),
        }
        if self.study.filmstrip:
            rows["filmstrips"] = filmstrip_rows(gathered, self.study.filmstrip)
        if self.detectors:
            rows["scores"] = score_rows(
                self.detectors, gathered.evidence, unit.prompts, gathered.bank, gathered.spent
            )
        return rows

    def failed(self, unit: Unit, error: Exception) -> Rows:
        """Mark the samples of a prompt."""
        bank, reason = self.banks[unit.recipe.key], told(error)
        names = ["gram", "convergence", "similarities"]
        names += ["filmstrips"] if self.study.filmstrip else []
        rows = {name: TABLES[name].schema.empty_table() for name in names}
        rows["samples"] = failed_rows(bank, unit.prompts, reason)
        if self.detectors:
            rows["scores"] = unscored(self.detectors, unit.prompts, bank, reason)
        return rows


def _again(
    made: Callable[..., StudyWorker],
    told: tuple[Study, Named, tuple[Detector, ...], References],
    state: Mapping[str, Any],
    tick: Progress,
) -> StudyWorker:
    """Make a worker in another process; what took a pass over the list is taken as it was found."""
    study, named, detectors, references = told
    worker = made(study, named.load(), detectors, tick)
    vars(worker).update(state)
    measures = {name: similarity_of(name, study.sscd) for name in study.similarity}
    worker.compare_with(references, measures)
    worker.mean_from(Writer(Path(study.out)))
    return worker


def _update(bar: Any, rows: int) -> None:
    bar.update(rows)


def study_prompts(study: Study) -> tuple[PromptList, PromptList]:
    """Return the study's prompts, and those whose images are known.

    Raises:
        InputError: If a choice among embedded prompts is asked of a file.
    """
    if study.ids:
        known = listed(study.prompts, study.model)
        held = {prompt.prompt_id: prompt for prompt in known}
        if unknown := [name for name in study.ids if name not in held]:
            raise InputError(did_you_mean(unknown[0], held, "prompt"))
        return PromptList.of([held[name] for name in study.ids]), known
    prompts = listed(study.prompts, study.model)
    if study.subset is None and study.controls is None and not study.levels:
        return prompts, prompts
    return PromptList.of(_some(study, list(prompts))), prompts


def _some(study: Study, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return some prompts, spread evenly over levels, families and kinds, controls last.

    Raises:
        InputError: If there are not as many, or none of a level.
    """
    known = {prompt.level for prompt in prompts if prompt.level is not None}
    if unknown := set(study.levels) - known:
        raise InputError(f"levels {sorted(unknown)} given; the list has {sorted(known)}")
    controls = [prompt for prompt in prompts if prompt.group == CONTROL]
    others = [prompt for prompt in prompts if prompt.group != CONTROL]
    if study.levels:
        others = [prompt for prompt in others if prompt.level in study.levels]
    beside = study.controls
    if beside is None and study.subset is not None:
        beside = study.subset // 4
    count = None if study.subset is None else max(0, study.subset - (beside or 0))
    return [
        prompt
        for some, many, what in ((others, count, "planted"), (controls, beside, CONTROL))
        for prompt in stratified(some, [(p.level, p.family, p.kind) for p in some], many, what)
    ]


def _write_inputs(
    writer: Writer, worker: StudyWorker, prompts: PromptList, done: frozenset[str]
) -> None:
    """Write recipes, prompts and training images, block by block."""
    if "inputs" not in done:
        recipes = [bank.recipe.row for bank in worker.banks.values()]
        writer.append("inputs", {"recipes": TABLES["recipes"].of_rows(recipes)})
    for at, some in enumerate(chunks(prompts, BLOCK)):
        if (name := f"inputs-prompts-{at:06d}") not in done:
            rows = prompt_rows(worker.model, some, worker.references, worker.swapped)
            writer.append(name, {"prompts": rows})
    for at, places in enumerate(chunks(range(len(worker.references)), PICTURES)):
        if (name := f"inputs-references-{at:06d}") not in done:
            writer.append(name, {"references": reference_rows(worker.references, places)})


@torch.no_grad()
def seconds_a_row(bank: Bank) -> float:
    """Time one call of the network on a full batch, after one to warm up; seconds a row."""

    def timed(batch: Sequence[int]) -> float:
        rows = bank.branches * len(batch)
        x = torch.zeros(rows, *bank.model.latent_shape, device=bank.model.device)
        condition = bank.model.encode_prompts([""]).expand(rows)
        taken = 0.0
        for _ in range(2):
            start = time.perf_counter()
            # Reading a number waits for an accelerator to finish.
            float(bank.model.denoiser(x, bank.points[0].timestep, condition).sum())
            taken = time.perf_counter() - start
        return taken / rows

    # Too large a batch is halved here as it is on the path; what fails alone has no pace.
    found = next(pace for _, pace in attempt(range(bank.batch), timed))
    return math.nan if isinstance(found, Exception) else found


def duration(seconds: float) -> str:
    """Say how long something takes, in words."""
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
