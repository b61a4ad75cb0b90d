"""Detection scores prompts by every detector asked for, from one set of network calls.

Flow of `detect`: take the union of what the detectors need, gather it for some prompts at a time,
let each detector score what it declared, keep the scores and drop the evidence.

Contents: `Scores`, `detect`, `choose`, `first_step`.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mnemoscope import __version__
from mnemoscope.collect import NO_IMAGE, NO_UNCOND, Collector
from mnemoscope.detectors import Detector, all_detectors, get_detector
from mnemoscope.detectors.base import Evidence, MissingEvidence, Price, path_calls, price
from mnemoscope.errors import InputError
from mnemoscope.data.images import load_image
from mnemoscope.models.base import Model
from mnemoscope.data.prompts import Prompt, load_prompts
from mnemoscope.runs.folder import write_atomically
from mnemoscope.runs.tables import TABLES

Notify = Callable[[str], None]
"""Told one line at a time what is going on."""

FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Scores:
    """What detectors say of prompts.

    Attributes:
        table: Rows of table `scores`, prompt by prompt.
        prompts: The prompts, in order.
        detectors: The detectors, in order.
        network_calls: Network calls that were made, evaluations only, noise bank included; what an
            interrupted run had made before is not counted again.
        truncated: Prompts longer than the model's window, of which only the beginning was seen.
    """

    table: pa.Table
    prompts: tuple[Prompt, ...]
    detectors: tuple[Detector, ...]
    network_calls: int
    truncated: tuple[str, ...]

    def of(self, detector: str) -> Float[np.ndarray, " prompt"]:
        """Return a detector's scores in the order of the prompts; NaN is not scored."""
        names = [known.name for known in self.detectors]
        if detector not in names:
            raise InputError(f"detector {detector!r} was not run; there is {', '.join(names)}")
        rows = self.table["score"].to_numpy(zero_copy_only=False).reshape(len(self.prompts), -1)
        return rows[:, names.index(detector)].astype(np.float64)

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


def choose(names: Sequence[str | Detector]) -> tuple[Detector, ...]:
    """Return detectors by name; "all" stands for all, "first-step" for the quick ones.

    Variants that compute what a released code does are among all, not among the quick ones.

    Raises:
        InputError: If a name is unknown, or nothing is named.
    """
    found: dict[str, Detector] = {}
    for name in names:
        if isinstance(name, Detector):
            found[name.name] = name
        elif name == "all":
            found |= {detector.name: detector for detector in all_detectors()}
        elif name == "first-step":
            found |= {d.name: d for d in all_detectors() if first_step(d) and not d.released}
        else:
            found[name] = get_detector(name)
    if not found:
        raise InputError("no detector given; expected names, 'first-step' or 'all'")
    return tuple(found.values())


def first_step(detector: Detector) -> bool:
    """Return whether the first call of the path is all that a detector takes."""
    pieces = detector.needs.pieces
    return all(piece.calls in (0, 1) and piece.extra(1) == Price() for piece in pieces)


def detect(
    model: Model,
    prompts: Sequence[str | Prompt] | str | Path,
    *,
    detectors: Sequence[str | Detector] = ("first-step",),
    seeds: int = 4,
    guidance: float = 7.5,
    steps: int = 50,
    scheduler: str = "ddim",
    seed: int = 0,
    batch: int | None = None,
    keep: Path | None = None,
    notify: Notify | None = None,
    progress: bool = False,
) -> Scores:
    """Score prompts by how memorized they are.

    Args:
        model: The model.
        prompts: Prompts, or a prompt file.
        detectors: Names or instances; "first-step" (the default) and "all" stand for many.
        seeds: Samples a prompt; seed s means the same noise for every prompt.
        guidance: Guidance scale of the sampling path.
        steps: Sampler updates of a whole path; detectors of the first step take one call of it.
        scheduler: Sampler.
        seed: Seed that all noise derives from.
        batch: Rows a network call; chosen by size where not given.
        keep: Folder that holds the scores so far, from which the same question goes on after an
            interruption.
        notify: Told the price, and what to mind.
        progress: Whether to draw a progress bar on standard error.

    Returns:
        The scores.

    Raises:
        InputError: If prompts, detectors or an option cannot be used.
        ModelError: If the scheduler is unknown.
    """
    say = notify or (lambda line: None)
    listed = _listed(prompts)
    chosen = choose(detectors)
    pieces = list(dict.fromkeys(piece for d in chosen for piece in d.needs.pieces))
    collector = Collector(
        model,
        listed,
        pieces,
        seeds=seeds,
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        batch=batch,
    )
    long = tuple(p.prompt_id for p, cut in zip(listed, collector.truncated, strict=True) if cut)
    if long:
        say(
            f"{len(long)} of {len(listed)} prompts exceed the model's window of {model.window} "
            f"tokens; what is beyond it has no effect (first: {long[0]})"
        )
    each = price(pieces, calls=collector.calls, seeds=seeds, branches=collector.branches)
    say(
        f"{len(listed)} prompts x {seeds} seeds x {len(chosen)} detectors, "
        f"{len(listed) * each.calls:,} network calls, "
        f"{path_calls(pieces, collector.calls)} of {collector.calls} calls of the path, "
        f"on {torch.device(model.device)}"
    )
    collector.warm()
    values: dict[str, list[tuple[float, str | None]]] = {d.name: [] for d in chosen}
    scoring = dict.fromkeys(values, 0.0)
    gathered: dict[str, float] = {}
    options = (collector.chunk, seeds, collector.guidance, steps, scheduler, seed)
    question = "" if keep is None else _question(model, listed, chosen, *options)
    with tqdm(total=len(listed), unit="prompt", disable=not progress) as bar:
        for start in range(0, len(listed), collector.chunk):
            some = listed[start : start + collector.chunk]
            part = None if keep is None else keep / f"{start:06d}.json"
            done = None if part is None else _kept(part, question)
            if done is None:
                gathering = dict(collector.seconds)
                evidence = collector.gather(some)
                done = _Part({}, {}, {})
                for detector in chosen:
                    before = time.perf_counter()
                    done.scores[detector.name] = _score(detector, evidence, some, model)
                    done.scoring[detector.name] = time.perf_counter() - before
                for piece, total in collector.seconds.items():
                    done.gathering[str(piece)] = total - gathering.get(piece, 0.0)
                if part is not None:
                    _keep(part, question, done)
            for name, found in done.scores.items():
                values[name] += found
                scoring[name] += done.scoring[name]
            for piece, seconds in done.gathering.items():
                gathered[piece] = gathered.get(piece, 0.0) + seconds
            bar.update(len(some))
    rows: list[dict[str, Any]] = []
    for at, prompt in enumerate(listed):
        for detector in chosen:
            score, reason = values[detector.name][at]
            needs = detector.needs
            free = reason == NO_IMAGE
            alone = price(
                needs.pieces, calls=collector.calls, seeds=seeds, branches=collector.branches
            )
            taken = sum(gathered.get(str(piece), 0.0) for piece in needs.pieces)
            rows.append(
                {
                    "prompt_id": prompt.prompt_id,
                    "detector": detector.name,
                    "kind": detector.kind,
                    "score": None if reason else score,
                    "reason": reason,
                    "seeds": seeds,
                    "network_calls": 0 if free else alone.calls,
                    "seconds": (taken + scoring[detector.name]) / len(listed),
                }
            )
    return Scores(TABLES["scores"].of_rows(rows), listed, chosen, collector.network.rows, long)


@dataclass(frozen=True)
class _Part:
    """What became of some prompts: scores with reasons, and seconds, of each detector and piece."""

    scores: dict[str, list[tuple[float, str | None]]]
    scoring: dict[str, float]
    gathering: dict[str, float]


def _question(
    model: Model, prompts: Sequence[Prompt], detectors: Sequence[Detector], *options: object
) -> str:
    """Return the digest of all that scores depend on; detectors show their variants and source."""
    images = [[load_image(image).reference_id for image in prompt.images] for prompt in prompts]
    parts = [
        __version__,
        model.digest,
        [(p.prompt_id, p.text, names) for p, names in zip(prompts, images, strict=True)],
        [(repr(d), d.formula, str(d.needs)) for d in detectors],
        options,
    ]
    return hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()


def _kept(path: Path, question: str) -> _Part | None:
    """Return a part kept earlier; None where there is none, or it answers another question."""
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["question"] != question:
            return None
        scores = {
            name: [(float("nan") if score is None else score, reason) for score, reason in rows]
            for name, rows in held["scores"].items()
        }
        return _Part(scores, held["scoring"], held["gathering"])
    except (ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, question: str, part: _Part) -> None:
    scores = {
        name: [(None if reason else score, reason) for score, reason in rows]
        for name, rows in part.scores.items()
    }
    held = {"question": question, **asdict(part), "scores": scores}
    write_atomically(path, json.dumps(held).encode())


def _score(
    detector: Detector, evidence: Evidence, prompts: Sequence[Prompt], model: Model
) -> list[tuple[float, str | None]]:
    """Return score and reason of each prompt."""
    needs = detector.needs
    if needs.uncond and not model.has_uncond:
        return [(float("nan"), NO_UNCOND)] * len(prompts)
    if evidence.seeds < needs.seeds:
        reason = f"{evidence.seeds} seeds given; it takes at least {needs.seeds}"
        return [(float("nan"), reason)] * len(prompts)
    try:
        scores: Tensor = detector.score(evidence.only(needs))
    except MissingEvidence as missing:
        return [(float("nan"), str(missing))] * len(prompts)
    told: list[tuple[float, str | None]] = []
    for prompt, score in zip(prompts, scores.double().tolist(), strict=True):
        if np.isfinite(score):
            told.append((score, None))
        elif detector.kind == "pair" and not prompt.images:
            told.append((float("nan"), NO_IMAGE))
        else:
            told.append((float("nan"), "the score is not finite"))
    return told


def _listed(prompts: Sequence[str | Prompt] | str | Path) -> tuple[Prompt, ...]:
    if isinstance(prompts, str | Path):
        return load_prompts(prompts)
    if not prompts:
        raise InputError("no prompt given; expected at least one")
    return tuple(
        prompt if isinstance(prompt, Prompt) else Prompt(f"p{at:05d}", prompt)
        for at, prompt in enumerate(prompts)
    )
