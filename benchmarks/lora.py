"""What a LoRA of the lab memorizes: while it is trained, by scale, and after a filter.

    python -m benchmarks.lora DIR [--steps N] [--lr X] [--seed S]

trains the lab's LoRA under a training audit that may take a twentieth of the time, replays it from
the checkpoints, by CPU time, with captions and noise drawn anew and at larger budgets, then samples
every caption with the adapter of every checkpoint, with the last one at several scales, and with
the last one filtered at several strengths. What is interrupted goes on. Of each::

    given back    captions that give a training image back, as an audit says it
    right         samples that show what their caption names, by the lab's judge
    learned       (d0 - d) / (d0 - d1), d the mean distance of samples' upper and lower edge from
                  the ground that all pictures share, d0 that of the base, d1 the whole adapter's
    loss          denoising loss on the pictures that are held out

Limits: the training audit keeps its budget, and the step that it says to take gives nothing back.

Contents: `main`.
"""

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.table import Row, show
from mnemoscope import TrainingAudit, detect, load_model
from mnemoscope.core.panels import CurvePanel, Points, ScatterPanel, Series
from mnemoscope.data.images import decode
from mnemoscope.data.sets import Captions, read_set
from mnemoscope.flows import training
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.flows.lora import Filtering, filter_lora
from mnemoscope.lab.judge import recognised
from mnemoscope.lab.lora import DUSK, train_lora
from mnemoscope.ranking.markdown import table
from mnemoscope.ranking.metrics import auc
from mnemoscope.reporting.audit import found_of
from mnemoscope.reporting.figures import save
from mnemoscope.runs.folder import Run, open_run

BASE, FILE = "embedded:base", "pytorch_lora_weights.safetensors"
SAMPLING: dict[str, Any] = {"scheduler": "dpmsolver++", "steps": 10}
SEEDS = 4
STRENGTHS = (0.05, 0.1, 0.25, 0.5, 0.75)
SCALES = (0, 0.25, *(round(sqrt(1 - t), 3) for t in (0.75, 0.5, 0.25)), 1, 1.2)
"""Scales, three of which take out as much as a filter does."""
LOSS = "denoising_loss:5"
"""What is measured on held-out pictures."""
BUDGET = 0.05
"""Share of the training that its audit may take."""
REPLAYS = (*((BUDGET, draw) for draw in range(1, 10)), (0.1, 0), (0.2, 0))
"""Shares and seeds at which it is replayed."""
EDGE = 4
"""Rows of pixels by which the ground of a picture is told."""


@dataclass(frozen=True)
class Told:
    """What an adapter gives back, what its pictures show, and what it learned.

    Attributes:
        name: Which adapter.
        back: Captions that give an image back.
        captions: Captions that were sampled.
        right: Share of samples that show what is named.
        ground: Mean distance of samples' edges from the ground.
        loss: Denoising loss on held-out pictures.
    """

    name: str
    back: int
    captions: int
    right: float
    ground: float
    loss: float


def trained(out: Path, steps: int, lr: float, seed: int) -> TrainingAudit:
    """Train under a training audit."""
    pipe: Any = load_model(BASE).pipeline
    train_lora(out, steps=0, seed=seed)
    watched = watching(out, out / "training", BUDGET, 0)

    def look(unet: Any, step: int) -> None:
        pipe.unet = unet
        found = watched.on_checkpoint(pipe, step)
        print(f"step {step}: {found.sampled} sampled, {len(found.given_back)} given back")

    train_lora(out, steps=steps, lr=lr, seed=seed, look=look)
    return watched


def watching(out: Path, folder: Path, budget: float, seed: int) -> TrainingAudit:
    """Return an audit of the training, its captions and noise drawn by a seed."""
    return TrainingAudit(
        out / "pictures", folder, held_out=out / "held-out", judge="lab", budget=budget, seed=seed,
        **SAMPLING,
    )  # fmt: skip


class Clock:
    """CPU time, and that of a training that is only told of.

    Attributes:
        ahead: Seconds by which it is ahead of the CPU's.
    """

    def __init__(self) -> None:
        self.ahead = 0.0

    def perf_counter(self) -> float:
        """Return the time."""
        return self.ahead + time.process_time()


def replayed(out: Path, budget: float, seed: int, pace: float) -> TrainingAudit:
    """Audit a training anew from its checkpoints.

    Args:
        out: Folder of the training.
        budget: Share of it that may be taken.
        seed: Seed of captions and noise.
        pace: Seconds that a step of training took.
    """
    clock, before = Clock(), 0
    with TemporaryDirectory() as folder, patch.object(training, "time", clock):
        watched = watching(out, Path(folder), budget, seed)
        for at in sorted((out / "checkpoints").iterdir()):
            began, step = time.process_time(), int(at.name.removeprefix("step-"))
            pipe: Any = load_model(BASE).pipeline
            pipe.load_lora_weights(at, weight_name=FILE)
            clock.ahead += (step - before) * pace - (time.process_time() - began)
            watched.on_checkpoint(pipe, step)
            before = step
    return watched


def measured(out: Path, name: str, file: Path, scale: float = 1.0) -> Told:
    """Sample every caption with an adapter, and measure what comes."""
    model = load_model(BASE, lora=file, lora_scale=scale)
    asked = Audit(
        model=BASE, dataset=out / "pictures", seeds=SEEDS, finalists=1.0,
        detectors=("gap_norm",), screening_seeds=1, similarity=("l2",),
        out=out / "audit" / name.replace(" ", "-"), **SAMPLING,
    )  # fmt: skip
    found = found_of(audit(asked, model=model))
    right, ground = looked(open_run(found.run.path / "confirm"))
    held = read_set(out / "held-out")
    everyone = list(Captions(held, np.ones(len(held), dtype=bool)))
    scores = detect(model, everyone, detectors=(LOSS,), seeds=1, **SAMPLING)
    loss = float(-np.nanmean(scores.of(LOSS)))
    told = Told(name, len(found.given_back), len(found.captions), right, ground, loss)
    print(told)
    return told


def foretold(out: Path, steps: dict[int, Told]) -> list[list[str]]:
    """Return how well what a checkpoint shows ranks what is given back at a later one.

    AUC of how near the first sample of a caption came to its image, and of `gap_norm` at the first
    call, for the captions that give an image back at the first step where a quarter of all do; or
    at the last.
    """
    late = next((s for s, one in steps.items() if 4 * one.back >= one.captions), max(steps))
    runs = {step: open_run(out / "audit" / f"step-{step:06d}") for step in steps if step <= late}
    back = {row["prompt_id"] for row in found_of(runs[late]).given_back}
    rows: list[list[str]] = []
    for step, run in runs.items():
        near = {
            row["prompt_id"]: row["value"]
            for row in open_run(run.path / "confirm").table("similarities").to_pylist()
            if (row["relation"], row["seed"]) == ("own", 0)
        }
        first = {
            row["prompt_id"]: row["score"]
            for row in open_run(run.path / "screen").table("scores").to_pylist()
        }
        labels = np.array([name in back for name in near])
        told = [auc(np.array([by[name] for name in near]), labels).value for by in (near, first)]
        rows.append([f"{step}", *(f"{value:.2f}" for value in told), f"{len(back)} at {late}"])
    return rows


def looked(run: Run) -> tuple[float, float]:
    """Return how many samples show what is named, and how far their edges are from the ground.

    Of the first samples of each caption alone: further ones are those of some.
    """
    texts = {row["prompt_id"]: row["prompt"] for row in run.table("prompts").to_pylist()}
    rows = [row for row in run.table("samples").to_pylist() if row["status"] == "ok"]
    images = [decode(row["image"]) for row in rows]
    right = [
        bool(recognised(image[None], [texts[row["prompt_id"]]])[0])
        for image, row in zip(images, rows, strict=True)
    ]
    edges = np.array(
        [[image[:, part].mean((1, 2)).tolist() for part in ENDS] for image in images]
    )  # sample end colour
    apart = np.sqrt(np.square(edges - np.array(DUSK)).mean((1, 2)))
    return float(np.mean(right)), float(apart.mean())


ENDS = slice(None, EDGE), slice(-EDGE, None)


def draw(out: Path, steps: dict[int, Told], ways: dict[str, list[Told]], learned: Any) -> None:
    """Draw what is given back and kept, by step, and by scale and strength."""
    x = np.array(list(steps), dtype=np.float64)

    def panel(title: str, unit: str, values: list[float], role: Any, label: str) -> CurvePanel:
        nan = np.full(len(x), np.nan)
        line = Series(label, role, x, np.array(values), None, None, nan)
        return CurvePanel(title, "training step", unit, "", (line,))

    by_step = [
        panel("Memorization", "share of captions",
              [one.back / one.captions for one in steps.values()], "memorized",
              "give an image back"),
        panel("What the pictures share", "share of the ground",
              [learned(one) for one in steps.values()], "not memorized", "learned"),
        panel("Loss on held-out pictures", "loss",
              [one.loss for one in steps.values()], "not memorized", "pictures not trained on"),
    ]  # fmt: skip
    points = tuple(
        Points(
            label, role, np.array([learned(one) for one in ways[label]]),
            np.array([one.back / one.captions for one in ways[label]]),
            tuple(one.name.split()[1] for one in ways[label]),
        )
        for label, role in (("LoRA scaled", "not memorized"), ("LoRA filtered", "memorized"))
    )  # fmt: skip
    names = tuple(name for some in points for name in some.prompt_ids)
    of_both = ScatterPanel(
        "What is given back, and what is kept", "share of the ground that was learned",
        "share of captions", "", points, named=names,
    )  # fmt: skip
    save({"lora-training": by_step, "lora-filter": [of_both]}, out / "lora.pdf")


def main(out: Path, length: int, lr: float, seed: int) -> bool:
    """Measure, print, and return whether every limit is kept."""
    logging.getLogger("mnemoscope").setLevel(logging.WARNING)
    watched = trained(out, length, lr, seed)
    last_step = watched.checkpoints[-1]
    pace = last_step.trained / last_step.step
    again = {
        f"{budget:.0%}, draw {draw}": replayed(out, budget, draw, pace) for budget, draw in REPLAYS
    }
    steps: dict[int, Told] = {}
    for folder in sorted((out / "checkpoints").iterdir()):
        steps[int(folder.name.removeprefix("step-"))] = measured(out, folder.name, folder / FILE)
    whole = out / FILE
    scaled = [measured(out, f"scale {scale:g}", whole, scale) for scale in SCALES]
    filters: list[Told] = []
    for strength in STRENGTHS:
        left = out / f"filter-{strength:g}.safetensors"
        filter_lora(Filtering(BASE, str(whole), strength=strength, out=left))
        filters.append(measured(out, f"filter {strength:g}", left))
    none, last = (next(one for one in scaled if one.name == f"scale {s}") for s in (0, 1))

    def learned(one: Told) -> float:
        return (none.ground - one.ground) / (none.ground - last.ground)

    rows = [
        [one.name, f"{one.back} of {one.captions}", f"{one.right:.2f}", f"{learned(one):.2f}",
         f"{one.loss:.4f}"]
        for one in (*steps.values(), *scaled, *filters)
    ]  # fmt: skip
    print(table(["adapter", "given back", "right", "learned", "loss"], rows))
    told = foretold(out, steps)
    print(table(["step", "AUC of nearness", "AUC of gap_norm", "given back"], told))
    draw(out, steps, {"LoRA scaled": scaled, "LoRA filtered": filters}, learned)
    return limits(watched, again, steps)


def limits(watched: TrainingAudit, again: dict[str, TrainingAudit], steps: dict[int, Told]) -> bool:
    """Print what the training audit cost and said, beside what there was."""
    live = {f"{BUDGET:.0%}, live": watched}
    rows = [looks(name, one, steps) for name, one in (live | again).items()]
    print(table(["budget", "taken", "looks", "captions a look", "advice", "in truth"], rows))
    last, safe = watched.checkpoints[-1], watched.last_safe
    given = float("inf") if safe is None else float(steps[safe].back)
    kept = [
        Row("audit over training", f"{last.spent:.1f} s", f"{last.trained:.1f} s",
            last.spent / last.trained, BUDGET),
        Row("captions given back at the step to take", f"{given:g}", "", given, 0.0),
    ]  # fmt: skip
    return show("A LoRA of the lab", kept, watched.advice)


def looks(name: str, watched: TrainingAudit, steps: dict[int, Told]) -> list[str]:
    """Return what a training audit cost and said, and what is given back at the step to take."""
    seen = [one.sampled for one in watched.checkpoints if one.calls]
    last, safe = watched.checkpoints[-1], watched.last_safe
    return [
        name, f"{last.spent / last.trained:.1%}", f"{len(seen)}",
        f"{min(seen)} to {max(seen)}" if seen else "", watched.advice,
        "" if safe is None else f"{steps[safe].back} of {steps[safe].captions}",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="folder of everything")
    parser.add_argument("--steps", type=int, default=2400, help="length of the training")
    parser.add_argument("--lr", type=float, default=1e-3, help="its peak learning rate")
    parser.add_argument("--seed", type=int, default=40, help="seed of its pictures")
    given = parser.parse_args()
    sys.exit(not main(given.out, given.steps, given.lr, given.seed))
