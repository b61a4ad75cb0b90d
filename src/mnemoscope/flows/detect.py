"""Detection scores prompts by every detector asked for, from one set of network calls.

Flow of `detect`: take the union of what the detectors need, gather it for some prompts at a time,
let each detector score what it declared, write the scores and drop the evidence. What is written is
a run folder of its own, so that an interrupted detection goes on, and no list is held in memory.

Contents: `Detection`, `detect`, `Scores`.
"""

import io
import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from jaxtyping import Float
from tqdm import tqdm

from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, Piece, path_calls, price_in
from mnemoscope.evidence.gather import gather, sit
from mnemoscope.evidence.pieces.text import Text, word_frequency
from mnemoscope.flows.options import (
    brought,
    given,
    listed,
    loaded,
    recipe_of,
    resolved,
    values_of,
)
from mnemoscope.flows.scores import choose, methods_of, score_rows, union
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.runs.execute import UNIT, Rows, Unit, chunk_of, execute, size_of, units_of
from mnemoscope.runs.folder import Run, Writer, open_run, write_atomically
from mnemoscope.runs.manifest import Manifest, packages
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.loop import Progress
from mnemoscope.sampling.recipe import Recipe

Notify = Callable[[str], None]
"""Told one line at a time what is going on."""

DELAY = 0.1
"""Seconds before a progress bar is drawn: the price comes first."""

FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Detection(Recipe, Source):
    """What to score. Every field is an option of `mnemoscope detect`."""

    noise: str = option(
        "shared",
        "Initial noise: shared among prompts (half of the first call is then computed once), "
        "independent for every prompt, or fresh for every row of the list.",
    )
    prompts: str | Path | None = option(
        None, "Prompt file or image folder; the embedded model brings its own."
    )
    detectors: tuple[str, ...] = option(
        ("first-step",), "Detectors, comma-separated; 'first-step', 'free' or 'all' are many."
    )
    seeds: int = option(4, "Samples a prompt.")
    out: str | Path | None = option(
        None,
        "Where to: a .parquet, .csv or .jsonl file, or a run folder; what is interrupted goes on.",
    )
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        brought(self)
        if self.out is not None and Path(self.out).suffix not in ("", *FORMATS):
            raise InputError(
                f"cannot write {str(self.out)!r}; expected {', '.join(FORMATS)}, or a folder"
            )

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Detection":
        """Make a detection of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


@dataclass(frozen=True)
class Scores:
    """What detectors say of prompts.

    Attributes:
        table: Rows of table `scores`, prompt by prompt.
        prompt_ids: The prompts, in order.
        detectors: The detectors, in order.
        network_calls: Network calls that were made, evaluations only; what an interrupted run had
            made before is not counted again.
        truncated: Prompts longer than the model's window, of which only the beginning was seen.
    """

    table: pa.Table
    prompt_ids: tuple[str, ...]
    detectors: tuple[Detector, ...]
    network_calls: int
    truncated: tuple[str, ...]

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

    def write(self, path: str | Path) -> None:
        """Write the table as .parquet, .csv or .jsonl.

        Raises:
            InputError: If the ending is another.
        """
        path = Path(path)
        if path.suffix not in FORMATS:
            raise InputError(f"cannot write {str(path)!r}; expected {', '.join(FORMATS)}")
        sink = io.BytesIO()
        if path.suffix == ".parquet":
            pq.write_table(self.table, sink, compression="zstd")
        elif path.suffix == ".csv":
            pcsv.write_csv(self.table, sink)
        else:
            for row in self.table.to_pylist():
                sink.write(json.dumps(row).encode() + b"\n")
        write_atomically(path, sink.getvalue())


def detect(
    model: Model | str,
    prompts: Sequence[str | Prompt] | PromptList | str | Path | None = None,
    *,
    detectors: Sequence[str | Detector] | str | Detector = ("first-step",),
    out: str | Path | None = None,
    notify: Notify | None = None,
    progress: bool = False,
    **options: Any,
) -> Scores:
    """Score prompts by how memorized they are.

    Args:
        model: The model, or its name.
        prompts: Prompts, or a prompt file; those the embedded model brings where not given.
        detectors: Names or instances; "first-step" (the default), "free" and "all" stand for many.
        out: Run folder that holds the scores so far, from which the same question goes on after an
            interruption; a temporary one where not given.
        notify: Told the price, and what to mind.
        progress: Whether to draw a progress bar on standard error.
        **options: Further fields of `Detection`: seeds, guidance, steps, scheduler, seed, noise ...

    Returns:
        The scores, prompt by prompt.

    Raises:
        InputError: If a prompt, a detector or an option cannot be used.
        ModelError: If the model cannot do what is asked.
        RunError: If the folder is of another detection, in use, or cannot be written.
    """
    chosen = choose(detectors)
    if not chosen:
        raise InputError("no detector given, and there is nothing to do without")
    asked = _asked(model, chosen, options)
    held = listed(prompts, asked.model)
    with _folder(out) as folder:
        known = loaded(asked) if isinstance(model, str) else model
        with tqdm(total=len(held), unit="prompt", disable=not progress, delay=DELAY) as bar:
            worker = DetectionWorker(asked, known, chosen, held, folder)
            _score_all(worker, held, folder, notify or (lambda line: None), bar)
        return _read(open_run(folder), chosen, worker.bank.network.rows)


def _asked(model: Model | str, chosen: Sequence[Detector], options: Mapping[str, Any]) -> Detection:
    name = model if isinstance(model, str) else model.name
    known = Detection.__dataclass_fields__
    for option_name in options:
        if option_name not in known or option_name in ("model", "prompts", "detectors", "out"):
            raise InputError(
                f"detect takes no option {option_name!r}; it takes "
                f"{', '.join(sorted(set(known) - {'model', 'prompts', 'detectors', 'out'}))}"
            )
    return Detection(model=name, detectors=tuple(d.name for d in chosen), **options)


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
        prompts: The list, in which words are counted where a detector asks for it.
        folder: Where to; units are as they were begun there.
        tick: Told after every network call how many rows it evaluated.
    """

    def __init__(
        self,
        detection: Detection,
        model: Model,
        detectors: Sequence[Detector],
        prompts: PromptList,
        folder: Path,
        tick: Progress | None = None,
    ) -> None:
        changes: dict[str, Any] = {} if model.guidance != "none" else {"guidance": 1.0}
        recipe = recipe_of(detection, model, **changes)
        self.detection = detection
        self.model = model
        self.detectors = tuple(detectors)
        self.pieces = union(self.detectors)
        self.bank = Bank(model, recipe, detection.seeds, detection.batch, tick)
        self.length = path_calls(self.pieces, self.bank.calls)
        self.frequency = word_frequency(prompts) if Text() in self.pieces else None
        usual = chunk_of(
            batch=self.bank.batch,
            seeds=self.bank.seeds,
            calls=self.length,
            d=model.d,
            accelerator=model.device.type != "cpu",
        )
        self.chunk = size_of(folder, usual)

    def warm(self) -> None:
        """Compute what depends on no prompt."""
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
            | {UNIT: self.chunk},
            methods=methods_of(self.detectors),
            packages=packages(),
            model={"name": model.name, "digest": model.digest},
            prompts=prompts.digest,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            final_level=(float(alpha), float(sigma)),
            d=model.d,
            latent_shape=tuple(model.latent_shape),
        )

    def gather(self, unit: Unit) -> Any:
        """Gather the union of what detectors need."""
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
        tokens = sitting.token_counts
        return evidence, spent, tokens, self.model.truncated([p.text for p in unit.prompts])

    def reduce(self, unit: Unit, gathered: Any) -> Rows:
        """Score the evidence."""
        evidence, spent, tokens, truncated = gathered
        prompts = TABLES["prompts"].of_rows(
            [
                {
                    "prompt_id": prompt.prompt_id,
                    "prompt": prompt.text,
                    "group": prompt.group,
                    "kind": prompt.kind,
                    "family": prompt.family,
                    "level": prompt.level,
                    "overfit_type": prompt.overfit_type,
                    "tokens": length,
                    "truncated": cut,
                    "references": list[str](),
                }
                for prompt, length, cut in zip(unit.prompts, tokens, truncated, strict=True)
            ]
        )
        rows = score_rows(self.detectors, evidence, unit.prompts, self.bank, spent)
        return {"prompts": prompts, "scores": rows}


def _score_all(
    worker: DetectionWorker, prompts: PromptList, folder: Path, say: Notify, bar: Any
) -> None:
    """Run the units that are not on disk yet."""
    manifest = worker.manifest(prompts)
    bank = worker.bank
    with Writer.open(folder, manifest) as writer:
        done = writer.finished()
        if "inputs" not in done:
            writer.append("inputs", {"recipes": TABLES["recipes"].of_rows([bank.recipe.row])})
        say(_price(worker, prompts))
        with writer.noting(manifest):
            begun = False
            units = units_of(prompts, [bank.recipe], worker.chunk)

            def left() -> Iterator[Unit]:
                nonlocal begun
                for unit in units:
                    if unit.name in done:
                        bar.update(len(unit.prompts))
                        continue
                    if not begun:
                        worker.warm()
                        begun = True
                    yield unit

            execute(
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
    return (
        f"{len(prompts)} prompts x {bank.seeds} seeds x {len(worker.detectors)} detectors, "
        f"{each * len(prompts):,} network calls, {worker.length} of {bank.calls} calls of the "
        f"path, on {bank.model.device}"
    )


def _read(run: Run, chosen: Sequence[Detector], network_calls: int) -> Scores:
    """Read the scores of a finished detection."""
    held = run.table("prompts", ["prompt_id", "truncated"])
    names = tuple(held["prompt_id"].to_pylist())
    truncated = tuple(held.filter(held["truncated"])["prompt_id"].to_pylist())
    return Scores(run.table("scores"), names, tuple(chosen), network_calls, truncated)
