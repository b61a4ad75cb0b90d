"""Detection scores prompts by every detector asked for, from one set of network calls.

Flow of `detect`: take the union of what the detectors need, gather it for some prompts at a time,
let each detector score what it declared, write the scores and drop the evidence. What is written is
a run folder of its own, so that an interrupted detection goes on, and no list is held in memory.

Contents: `Detection`, `detect`, `Scores`; `checkpoint`, another one of a model.
"""

import io
import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float
from tqdm import tqdm

from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, Piece, path_calls, price_in
from mnemoscope.evidence.gather import gather, sit
from mnemoscope.evidence.pieces.text import Text, word_frequency
from mnemoscope.evidence.sitting import told
from mnemoscope.flows.options import (
    Named,
    brought,
    given,
    listed,
    loaded,
    name_of,
    of_one_kind,
    opened,
    recipe_of,
    resolved,
    values_of,
)
from mnemoscope.flows.ordinary import Known, Ordinary
from mnemoscope.flows.rows import Sat, failed_rows, prompt_rows, sample_rows
from mnemoscope.flows.scores import choose, methods_of, score_rows, union, unscored
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.ranking.metrics import FPR
from mnemoscope.reporting.export import csv
from mnemoscope.reporting.scores import RECOMMENDED
from mnemoscope.runs.crew import Make
from mnemoscope.runs.execute import UNIT, Rows, Unit, chunk_of, size_of, units_of
from mnemoscope.runs.executors import Execution, executor_of
from mnemoscope.runs.folder import Run, Writer, open_run
from mnemoscope.runs.manifest import Manifest, packages
from mnemoscope.runs.records import write_atomically
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.loop import Progress
from mnemoscope.sampling.recipe import Recipe

Notify = Callable[[str], None]
"""Told one line at a time what is going on."""

DELAY = 0.1
"""Seconds before a progress bar is drawn: the price comes first."""

FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Detection(Execution, Recipe, Source):
    """What to score. Every field is an option of `mnemoscope detect`."""

    noise: str = option(
        "shared",
        "Initial noise: shared among prompts (half of the first call is then computed once), "
        "independent for every prompt, or fresh for every row of the list.",
    )
    prompt: tuple[str, ...] = option((), "Prompt; give it several times for several.")
    prompts: str | Path | None = option(
        None, "Prompt file or image folder; the embedded model brings its own."
    )
    detectors: tuple[str, ...] = option(
        (RECOMMENDED,), "Detectors, comma-separated; 'first-step', 'free' or 'all' are many."
    )
    ordinary: str | Path | None = option(
        None,
        "A run folder of ordinary prompts, that of bench detectors, or a calibration file, of the "
        "same model: says how high a score is.",
    )
    false_positives: float = option(
        FPR, "Share of ordinary prompts that may be flagged as memorized."
    )
    seeds: int = option(4, "Samples a prompt.")
    earlier: str | None = option(
        None, "Earlier checkpoint of the model, for detectors that compare the two."
    )
    out: str | Path | None = option(
        None,
        "Where to: a .parquet, .csv or .jsonl file, or a run folder; what is interrupted goes on.",
    )
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")
    retry: bool = option(False, "Do units again in which a sample failed or is not finite.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        if isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", (self.prompt,))
        brought(self)
        of_one_kind(self)
        if self.out is not None and not _is_folder(Path(self.out)):
            _checked_ending(Path(self.out), ", or a folder")
        if not 0 < self.false_positives < 1:
            raise InputError(
                f"false positives {self.false_positives} given; expected a share between 0 and 1"
            )

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Detection":
        """Make a detection of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        texts = tuple(options.get("prompt") or ())
        return cls(**values_of(cls, {**options, "prompt": texts}))


def _is_folder(path: Path) -> bool:
    """Tell whether a path names a folder: one that is there, or one without an ending, as sd1.4."""
    return path.is_dir() or not path.suffix.strip(".0123456789")


def _checked_ending(path: Path, more: str = "") -> None:
    if path.suffix not in FORMATS:
        raise InputError(f"cannot write {str(path)!r}; expected {', '.join(FORMATS)}{more}")


@dataclass(frozen=True)
class Scores:
    """What detectors say of prompts.

    Attributes:
        table: Rows of table `scores`, prompt by prompt.
        prompt_ids: The prompts, in order.
        texts: Their texts, in order; a column, since a list of any length is scored.
        detectors: The detectors, in order.
        recipe: How they were sampled, as a row of table `recipes`.
        ordinary: Scores of ordinary prompts, by detector, where they are known.
        network_calls: Network calls that were made, evaluations only; what an interrupted run had
            made before is not counted again.
        truncated: Prompts longer than the model's window, of which only the beginning was seen.
        marked: Samples that failed or are not finite, by status; they are in no score.
    """

    table: pa.Table
    prompt_ids: tuple[str, ...]
    texts: pa.ChunkedArray
    detectors: tuple[Detector, ...]
    recipe: Mapping[str, Any]
    ordinary: Mapping[str, Ordinary]
    network_calls: int
    truncated: tuple[str, ...]
    marked: Mapping[str, int]

    def of(self, detector: str) -> Float[np.ndarray, " prompt"]:
        """Return a detector's scores in the order of the prompts; NaN is not scored."""
        names = [known.name for known in self.detectors]
        if detector not in names:
            raise InputError(f"detector {detector!r} was not run; there is {', '.join(names)}")
        rows = self.table["score"].to_numpy(zero_copy_only=False)
        return rows.reshape(len(self.prompt_ids), -1)[:, names.index(detector)].astype(np.float64)

    def mean(self, detector: str, column: str) -> float:
        """Return the mean of a numeric column over a detector's rows."""
        names = [known.name for known in self.detectors]
        values = self.table[column].to_numpy(zero_copy_only=False).astype(np.float64)
        each = values.reshape(len(self.prompt_ids), -1)[:, names.index(detector)]
        return float(each.mean())

    def told(self) -> pa.Table:
        """Return the table with the caption beside its name, and what ordinary scores say.

        `above` is the share of ordinary prompts that score lower, `flagged` whether the score
        exceeds the threshold; both are null where that is not known.
        """
        places = np.repeat(np.arange(len(self.prompt_ids)), len(self.detectors))
        table = self.table.add_column(1, "prompt", self.texts.take(pa.array(places)))
        if not self.ordinary:
            return table
        above: list[float | None] = []
        flagged: list[bool | None] = []
        for row in self.table.select(["detector", "score"]).to_pylist():
            known = None if row["score"] is None else self.ordinary.get(row["detector"])
            above.append(None if known is None else known.above(row["score"]))
            flagged.append(None if known is None else known.flagged(row["score"]))
        at = table.column_names.index("score") + 1
        table = table.add_column(at, "above", pa.array(above, pa.float64()))
        return table.add_column(at + 1, "flagged", pa.array(flagged, pa.bool_()))

    def write(self, path: str | Path) -> None:
        """Write what a reader is told as .parquet, .csv or .jsonl.

        Raises:
            InputError: If the ending is another.
        """
        path = Path(path)
        _checked_ending(path)
        write_atomically(path, encoded(self.told(), path.suffix))


def encoded(table: pa.Table, ending: str) -> bytes:
    """Return a table as the bytes of a file with one of the endings in `FORMATS`."""
    if ending == ".csv":
        return csv(table).encode("utf-8", "replace")
    if ending == ".jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def detect(
    model: Any,
    prompts: Sequence[str | Prompt] | PromptList | str | Path | None = None,
    *,
    detectors: Sequence[str | Detector] | str | Detector = (RECOMMENDED,),
    earlier: Model | str | None = None,
    out: str | Path | None = None,
    ordinary: str | Path | None = None,
    false_positives: float = FPR,
    notify: Notify | None = None,
    progress: bool = False,
    **options: Any,
) -> Scores:
    """Score prompts by how memorized they are.

    Args:
        model: The model, its name, or a pipeline object.
        prompts: Prompts, or a prompt file; those the embedded model brings where not given.
        detectors: Names or instances; "first-step", "free" and "all" stand for many.
        earlier: An earlier checkpoint of the model, or its name, for what compares the two.
        out: Run folder that holds the scores so far, from which the same question goes on after an
            interruption; a temporary one where not given.
        ordinary: A run folder of ordinary prompts, that of `bench detectors`, or a calibration
            file, of the same model: says how high scores are.
        false_positives: Share of ordinary prompts that may be flagged as memorized.
        notify: Told the price, and what to mind.
        progress: Whether to draw a progress bar on standard error.
        **options: Further fields of `Detection`: seeds, guidance, steps, scheduler, seed, noise ...

    Returns:
        The scores, prompt by prompt.

    Raises:
        InputError: If a prompt, a detector or an option cannot be used.
        ModelError: If the model cannot do what is asked.
        RunError: If a folder is of another detection or model, in use, or cannot be written.
    """
    chosen = choose(detectors)
    if not chosen:
        raise InputError("no detector given, and there is nothing to do without")
    asked = _asked(
        model,
        chosen,
        options,
        earlier=earlier if earlier is None else name_of(earlier),
        ordinary=ordinary,
        false_positives=false_positives,
    )
    _enough(chosen, asked.seeds)
    held = listed(prompts, asked.model)
    reference = None if ordinary is None else Known.of(ordinary)
    with _folder(out) as folder:
        known = opened(model, asked)
        before = checkpoint(earlier, asked) if isinstance(earlier, str) else earlier
        with tqdm(total=len(held), unit="prompt", disable=not progress, delay=DELAY) as bar:
            words = word_frequency(held) if Text() in union(chosen) else None
            worker = DetectionWorker(asked, known, chosen, folder, words, earlier=before)
            scale = worker.held_to(reference, false_positives)
            _score_all(worker, held, folder, notify or (lambda line: None), bar)
        return _read(open_run(folder), worker, scale)


HANDED = (
    "model",
    "prompt",
    "prompts",
    "detectors",
    "earlier",
    "out",
    "ordinary",
    "false_positives",
)
"""Fields of `Detection` that `detect` takes as arguments of its own."""


def _asked(
    model: Any, chosen: Sequence[Detector], options: Mapping[str, Any], **handed: Any
) -> Detection:
    known = Detection.__dataclass_fields__
    for option_name in options:
        if option_name not in known or option_name in HANDED:
            raise InputError(
                f"detect takes no option {option_name!r}; it takes "
                f"{', '.join(sorted(set(known) - set(HANDED)))}"
            )
    names = tuple(detector.name for detector in chosen)
    return Detection(model=name_of(model), detectors=names, **options, **handed)


def checkpoint(name: str, beside: Source) -> Model:
    """Load another checkpoint of a model, to where and as that is loaded."""
    return loaded(Source(model=name, device=beside.device, dtype=beside.dtype))


def _enough(chosen: Sequence[Detector], seeds: int) -> None:
    """Refuse what no detector could score, before anything is computed."""
    fewest = min(detector.needs.seeds for detector in chosen)
    if seeds < fewest:
        raise InputError(
            f"seeds {seeds} given; {', '.join(d.name for d in chosen)} takes at least {fewest}"
        )


@contextmanager
def _folder(out: str | Path | None) -> Generator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="mnemoscope-") as folder:
        yield Path(folder) / "run"


class DetectionWorker:
    """Does a detection's units.

    Args:
        detection: What to score, its detectors by name.
        model: The model.
        detectors: The detectors.
        folder: Where to; units are as they were begun there.
        frequency: How often the list has each word, where a detector asks for it.
        tick: Told after every network call how many rows it evaluated.
        earlier: An earlier checkpoint of the model.
    """

    def __init__(
        self,
        detection: Detection,
        model: Model,
        detectors: Sequence[Detector],
        folder: Path,
        frequency: Mapping[str, float] | None = None,
        tick: Progress | None = None,
        earlier: Model | None = None,
    ) -> None:
        changes: dict[str, Any] = {} if model.guidance != "none" else {"guidance": 1.0}
        recipe = recipe_of(detection, model, **changes)
        self.detection = detection
        self.model = model
        self.earlier = earlier
        self.detectors = tuple(detectors)
        self.pieces = union(self.detectors)
        self.bank = Bank(model, recipe, detection.seeds, detection.batch, tick, earlier)
        self.length = path_calls(self.pieces, self.bank.calls)
        self.folder = folder
        self.frequency = frequency
        usual = chunk_of(
            batch=self.bank.batch,
            seeds=self.bank.seeds,
            calls=self.length,
            d=model.d,
            accelerator=model.device.type != "cpu",
        )
        self.chunk = size_of(folder, usual)

    def held_to(self, reference: Known | None, rate: float) -> dict[str, Ordinary]:
        """Return the ordinary scores that these are held to, by detector."""
        if reference is None:
            return {}
        names = [detector.name for detector in self.detectors]
        seeds, recipe = self.bank.seeds, self.bank.recipe
        return reference.held(names, self.model.digest, recipe, seeds, rate)

    def elsewhere(self) -> Make:
        """Return what makes the same worker in another process.

        Raises:
            ModelError: If its model cannot be named there.
        """
        earlier = None if self.earlier is None else Named.of(self.earlier)
        models = Named.of(self.model), earlier
        return partial(_again, self.detection, models, self.detectors, self.folder, self.frequency)

    def credit(self, rows: int) -> None:
        """Count rows that the network evaluated elsewhere."""
        self.bank.network.count(rows)

    def _warm(self) -> None:
        """Compute what depends on no prompt, so that no prompt pays for it."""
        if self.length and self.bank.knows_start:
            self.bank.unconditional_of_seeds(0)
        for piece in self.pieces:
            piece.warm(self.bank)

    def manifest(self, prompts: PromptList) -> Manifest:
        """Say what is asked of which model."""
        alpha, sigma = self.bank.final
        recipe, model = self.bank.recipe, self.model
        return Manifest(
            flow="detection",
            given=given(self.detection),
            options=resolved(self.detection)
            | {"batch": self.bank.batch, "scheduler": recipe.scheduler}
            # A score that looks across the prompts of a unit depends on how many there are.
            | {UNIT: self.chunk}
            | ({} if self.earlier is None else {"earlier_digest": self.earlier.digest}),
            methods=methods_of(self.detectors),
            packages=packages(),
            model={"name": model.name, "digest": model.digest},
            prompts=prompts.digest,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            final_level=(float(alpha), float(sigma)),
            d=model.d,
            latent_shape=tuple(model.latent_shape),
            units={"inputs": 1, f"*-{recipe.key}": -(-len(prompts) // self.chunk)},
        )

    def gather(self, unit: Unit) -> tuple[Sat, pa.Table]:
        """Gather the union of what detectors need."""
        self.bank.keep("warm", self._warm)
        spent: dict[Piece[Any], float] = {}
        sitting = sit(
            self.bank,
            unit.prompts,
            unit.places,
            self.pieces,
            frequency=self.frequency,
            spent=spent,
        )
        evidence = gather(sitting, self.pieces, spent)
        keys, outcomes = tuple(sitting.keys), sitting.outcomes
        sat = Sat(self.bank, unit.prompts, keys, outcomes, evidence, spent)
        return sat, prompt_rows(self.model, unit.prompts)

    def reduce(self, unit: Unit, gathered: tuple[Sat, pa.Table]) -> Rows:
        """Score the evidence; samples that are not ok are told of."""
        sat, prompts = gathered
        scores = score_rows(self.detectors, sat.evidence, unit.prompts, self.bank, sat.spent)
        rows = {"prompts": prompts, "scores": scores}
        if len(sat.ok) < len(sat.outcomes):
            samples = sample_rows(sat, self.length)
            rows["samples"] = samples.filter(pc.field("status") != "ok")
        return rows

    def failed(self, unit: Unit, error: Exception) -> Rows:
        """Mark a prompt."""
        reason = told(error)
        return {
            "prompts": prompt_rows(self.model, unit.prompts),
            "scores": unscored(self.detectors, unit.prompts, self.bank, reason),
            "samples": failed_rows(self.bank, unit.prompts, reason),
        }


def _again(
    detection: Detection,
    models: tuple[Named, Named | None],
    detectors: tuple[Detector, ...],
    folder: Path,
    frequency: Mapping[str, float] | None,
    tick: Progress,
) -> DetectionWorker:
    """Make a worker in another process."""
    model, earlier = models
    before = None if earlier is None else earlier.load()
    return DetectionWorker(detection, model.load(), detectors, folder, frequency, tick, before)


def _score_all(
    worker: DetectionWorker, prompts: PromptList, folder: Path, say: Notify, bar: Any
) -> None:
    """Run the units that are not on disk yet."""
    manifest = worker.manifest(prompts)
    bank = worker.bank
    with Writer.open(folder, manifest) as writer:
        if worker.detection.retry:
            writer.discard_failed()
        done = writer.finished()
        if "inputs" not in done:
            writer.append("inputs", {"recipes": TABLES["recipes"].of_rows([bank.recipe.row])})
        say(_price(worker, prompts))
        with writer.noting(manifest):
            units = units_of(prompts, [bank.recipe], worker.chunk)

            def left() -> Iterator[Unit]:
                for unit in units:
                    if unit.name in done:
                        bar.update(len(unit.prompts))
                    else:
                        yield unit

            executor_of(worker.detection)(
                writer,
                worker,
                left(),
                overlap=worker.model.device.type != "cpu",
                done=lambda unit: bar.update(len(unit.prompts)),
            )
        writer.close(manifest, "complete")


def _price(worker: DetectionWorker, prompts: PromptList) -> str:
    bank = worker.bank
    each = price_in(bank, worker.pieces).calls
    detectors = [detector.name for detector in worker.detectors]
    return (
        f"{len(prompts)} prompt{'s' * (len(prompts) != 1)} x {bank.seeds} seeds x "
        f"{detectors[0] if len(detectors) == 1 else f'{len(detectors)} detectors'}, "
        f"{each * len(prompts):,} network calls, {worker.length} of {bank.calls} calls of the "
        f"path, on {bank.model.device}"
    )


def _read(run: Run, worker: DetectionWorker, ordinary: Mapping[str, Ordinary]) -> Scores:
    """Read the scores of a finished detection."""
    held = run.table("prompts", ["prompt_id", "prompt", "truncated"])
    return Scores(
        run.table("scores"),
        tuple(held["prompt_id"].to_pylist()),
        held["prompt"],
        worker.detectors,
        worker.bank.recipe.row,
        ordinary,
        worker.bank.network.rows,
        tuple(held.filter(held["truncated"])["prompt_id"].to_pylist()),
        run.manifest.samples,
    )
