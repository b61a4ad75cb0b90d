r"""A training audit says at each checkpoint what a model gives back, and which to take.

Formulas, with t the seconds that were trained so far, s those spent here, p the most that a network
call took at a checkpoint, all else included, the first left out once there is another, and B the
budget, a share::

    allowance   B·t - s
    captions    (allowance / p - fixed) / each      fixed: held-out loss; each: in full
    least       p·(fixed + each·FEWEST)
    margin      a caption's similarity to its image, less what counts as giving it back
    safe        no caption that was sampled gives an image back, as an audit says it
    vouching    all sampled at a checkpoint and later, before the first that is not safe
    last safe   the last that VOUCHING vouch for; the first that is safe, where so many are not

A checkpoint whose allowance is below the least is passed over, untouched once that is known, and
what it leaves goes to the next, so the budget holds over the training whatever a call turns out to
cost.

What is given back grows with the training, so what was sampled later vouches for what came before.
A sample of the captions is drawn once, in an order. Each checkpoint samples as many of them in full
as it can pay for: half of these are the captions that came nearest to their images when they were
last sampled, the others have their turn. What comes near is what is given back later, and is seen
before; scores of the first call do not find what an adapter has learned by heart of forty pictures
shown alike. Training notices nothing: weights, modes, gradients and random numbers are as they
were.

Contents: `TrainingAudit`, `Checkpoint`.

Source: ours.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate, takewhile
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mnemoscope.core.panels import CurvePanel, Role, Series
from mnemoscope.data.images import decode, load_image
from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.data.sets import Captions, DataSet, read_set
from mnemoscope.errors import InputError, MemorizingError, RunError, did_you_mean
from mnemoscope.evidence import Bank, Piece, price_in
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.flows.alignment import DESCRIBING, judges_of
from mnemoscope.flows.audit import gives_back
from mnemoscope.flows.detect import detect
from mnemoscope.flows.options import recipe_of
from mnemoscope.flows.rows import Sat, sample_rows, similarity_rows
from mnemoscope.flows.scores import choose, union
from mnemoscope.flows.study import Study, StudyWorker, seconds_a_row
from mnemoscope.flows.study import run as run_study
from mnemoscope.models.adapter import folded
from mnemoscope.models.base import Model
from mnemoscope.models.load import load_model
from mnemoscope.ranking.prevalence import Stratum, stratified
from mnemoscope.reporting.figures import save_png
from mnemoscope.runs.execute import Rows, Unit
from mnemoscope.runs.folder import CONSTANT, Run, Writer
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.records import write_atomically
from mnemoscope.sampling.recipe import Recipe
from mnemoscope.severity.grade import assess
from mnemoscope.severity.truth import NOT_JUDGED, judge
from mnemoscope.similarity import Similarity

LOSS = "denoising_loss:5"
"""Detector that is the negative loss."""
HELD_OUT = 4
"""Held-out items whose loss is looked at, at most: 5 calls each, from the same noise always."""
FEWEST = 8
"""Fewest captions that a checkpoint is judged by; of fewer, what a look costs once weighs most."""
VOUCHING = 24
"""Fewest captions, some of them more than once, that vouch for a step by giving nothing back."""
TIMED = 4
"""Samples by which calls are timed before any was paid for."""
MEASURE = "l2"
"""Similarity that says what is given back."""

RECORD, FIGURE = "checkpoints.jsonl", "training.png"
"""Files of a training audit, beside a folder a checkpoint."""

Log = Callable[[dict[str, float], int], Any]
"""Takes numbers and the step, as the trackers of accelerate do."""


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a checkpoint. One line of `checkpoints.jsonl`.

    Attributes:
        step: The training step.
        trained: Seconds that were trained so far, those spent here not counted.
        spent: Seconds that were spent here so far.
        calls: Network calls at this checkpoint; 0 where it was passed over.
        sampled: Captions that were sampled in full.
        given_back: Those that give a training image back.
        margins: How much nearer to its image each came than counts as giving it back, by prompt_id;
            None where that cannot be told.
        share: Share of the captions that do; None where none was judged.
        low: Lower end of its 95 % interval.
        high: Upper end.
        quality: What was measured of the pictures: "right", the share that show what their caption
            names; "alignment", by CLIP; "held_out_loss", on pictures that are not trained on.
    """

    step: int
    trained: float
    spent: float
    calls: int = 0
    sampled: int = 0
    given_back: tuple[str, ...] = ()
    margins: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    share: float | None = None
    low: float | None = None
    high: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def safe(self) -> bool | None:
        """Return whether no caption that was sampled gives an image back; None if none was."""
        return not self.given_back if self.share is not None else None

    @property
    def numbers(self) -> dict[str, float]:
        """Return what a tracker is told."""
        told = {"share": self.share, "share_low": self.low, "share_high": self.high}
        known = {name: value for name, value in told.items() if value is not None}
        return {f"mnemoscope/{name}": v for name, v in (known | dict(self.quality)).items()}


class _Worker(StudyWorker):
    """Samples captions, and compares pictures; nothing is recorded of the path."""

    def pieces(self, first: bool) -> tuple[Piece[Any], ...]:
        """Return the pictures."""
        del first
        return (Pictures(),)

    def manifest(self, prompts: PromptList) -> Manifest:
        """Say what is asked; neither mechanism nor constants follow."""
        manifest = super().manifest(prompts)
        units = {k: n for k, n in manifest.units.items() if k not in ("mechanism", CONSTANT)}
        return manifest.model_copy(update={"units": units})

    def mean_from(self, writer: Writer) -> None:
        """Leave the reference mean alone: nothing here asks for it."""
        del writer

    def price(self, prompts: PromptList) -> str:
        """Say how many captions are sampled; timing a call would cost more than some of them."""
        return f"{len(prompts)} captions"

    def reduce(self, unit: Unit, gathered: Sat) -> Rows:
        """Compare pictures."""
        del unit
        return {
            "samples": sample_rows(gathered, gathered.bank.calls),
            "similarities": similarity_rows(gathered, self.references, self.indices, self.swapped),
        }


def _graded(writer: Writer, manifest: Manifest, loaded: Mapping[str, Similarity]) -> None:
    writer.append("severity", assess(Run(writer.path, manifest), loaded=loaded))


class TrainingAudit:
    """Audits a model while it is trained; framework-free.

    The folder holds `checkpoints.jsonl`, a line a checkpoint, `training.png`, memorization and
    quality against steps, and a run folder for each checkpoint. A training that is resumed goes on
    in it: lines of steps that are trained again are dropped, the time stays.

    Args:
        dataset: What is trained on: images with captions in any layout that an audit reads.
        out: Folder of the results.
        captions: Captions that are looked at, drawn from the set once.
        budget: Most seconds spent here, as a share of those trained.
        seeds: Samples a caption.
        held_out: Images of the same kind that are not trained on, whose denoising loss is measured.
        judge: "lab" where the lab's judge says what pictures show.
        clip: Folder of a CLIP model, by which alignment is measured.
        log: Told the numbers of each checkpoint and its step, such as `accelerator.log`.
        stop: Whether to raise where a training image is given back.
        **sampling: How to sample, the fields of `Recipe`; 10 steps where not given.

    Raises:
        InputError: If the data set holds no caption with a picture, or an option means nothing.
        RunError: If the folder holds the audit of another training.
    """

    def __init__(
        self,
        dataset: str | Path,
        out: str | Path = "runs/training",
        *,
        captions: int = 40,
        budget: float = 0.05,
        seeds: int = 1,
        held_out: str | Path | None = None,
        judge: str = "none",
        clip: str | Path | None = None,
        log: Log | None = None,
        stop: bool = False,
        **sampling: Any,
    ) -> None:
        if not 0 < budget <= 1:
            raise InputError(f"budget {budget} given; expected a share of the training, as 0.05")
        if captions < FEWEST or seeds < 1:
            raise InputError(
                f"captions {captions} and seeds {seeds} given; expected at least {FEWEST} and 1"
            )
        known = [each.name for each in fields(Recipe)]
        if unknown := sampling.keys() - set(known):
            raise InputError(did_you_mean(min(unknown), known, "option of sampling"))
        given: dict[str, Any] = {"steps": 10, **sampling}
        self.recipe = Recipe(**given)
        self.out, self.budget, self.seeds = Path(out), budget, seeds
        self.judges = judges_of("", judge, clip)
        self.log, self.stop = log, stop
        held = read_set(dataset)
        self.prompts = _drawn(held, captions, self.recipe.seed)
        others = None if held_out is None else read_set(held_out)
        self.held_out = () if others is None else _drawn(others, HELD_OUT, self.recipe.seed)
        self.digest = hashlib.sha256(
            json.dumps([held.digest, seeds, captions, self.recipe.key]).encode()
        ).hexdigest()
        self.checkpoints, self._trained, self._spent = self._resumed()
        self._paid: list[float] = []
        self._pace, self._least = 0.0, 0
        self._since = time.perf_counter()

    def _resumed(self) -> tuple[list[Checkpoint], float, float]:
        record = self.out / RECORD
        if not record.exists():
            return [], 0.0, 0.0
        found: list[Checkpoint] = []
        try:
            for line in record.read_text("utf-8").splitlines():
                row: dict[str, Any] = json.loads(line)
                if row.pop("audit") != self.digest:
                    raise RunError(
                        f"{str(record)!r} is of another data set or other options; choose another "
                        "folder"
                    )
                row["given_back"] = tuple(row["given_back"])
                found.append(Checkpoint(**row))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{str(record)!r} cannot be read: {error}; move it away to begin anew"
            ) from error
        times = [(one.trained, one.spent) for one in found]
        return found, *max(times, default=(0.0, 0.0))

    def on_checkpoint(self, pipe: Any, step: int) -> Checkpoint:
        """Audit a model as it stands.

        Args:
            pipe: The pipeline of diffusers that holds the networks being trained, adapters and all.
            step: The training step.

        Returns:
            What was found; `safe` says whether to go on.

        Raises:
            MemorizingError: If an image is given back and `stop` was asked for.
            ModelError: If the pipeline cannot be sampled.
            RunError: If the folder cannot be written.
        """
        began = time.perf_counter()
        self._trained += began - self._since
        # What is trained again after a resumption is audited again.
        self.checkpoints = [one for one in self.checkpoints if one.step < step]
        found = Checkpoint(step, self._trained, self._spent)
        allowance = self.budget * self._trained - self._spent
        try:
            if allowance > self._pace * self._least:
                with _untouched(pipe):
                    found = self._look(pipe, found, allowance)
            found = replace(found, spent=self._spent + time.perf_counter() - began)
            self.checkpoints.append(found)
            self._write()
            if found.calls:
                self._draw()
            if self.log is not None and found.numbers:
                self.log(found.numbers, step)
        finally:
            self._since = time.perf_counter()
            self._spent += self._since - began
        if found.calls:
            self._paid.append((self._since - began) / found.calls)
            # What is done once alone, such as loading a judge, is in the first.
            self._pace = max(self._paid[1:] or self._paid)
        if self.stop and found.safe is False:
            raise MemorizingError(self.advice)
        return found

    def follow(self, accelerator: Any, pipeline: Callable[[], Any]) -> None:
        """Audit whenever a script saves its state by accelerate, as those of diffusers do.

        Args:
            accelerator: The accelerator; its trackers are told the numbers, unless `log` was given.
            pipeline: Makes the pipeline with the networks as they stand, called at each checkpoint.
        """
        if self.log is None:
            self.log = accelerator.log

        def saved(models: Any, weights: Any, folder: str) -> None:
            del models, weights
            number = re.search(r"(\d+)\D*$", Path(folder).name)
            if accelerator.is_main_process and number:
                self.on_checkpoint(pipeline(), int(number[1]))

        accelerator.register_save_state_pre_hook(saved)

    @property
    def last_safe(self) -> int | None:
        """Return the last step that enough samples vouch for; None where none was judged safe."""
        safe = self._safe
        later = [*accumulate(one.sampled for one in reversed(safe))][::-1]
        enough = [one.step for one, count in zip(safe, later, strict=True) if count >= VOUCHING]
        steps = enough or [one.step for one in safe[:1]]
        return steps[-1] if steps else None

    @property
    def _safe(self) -> list[Checkpoint]:
        """Return the checkpoints that were judged before the first that is not safe."""
        judged = (one for one in self.checkpoints if one.safe is not None)
        return list(takewhile(lambda one: bool(one.safe), judged))

    @property
    def advice(self) -> str:
        """Say which step to take."""
        judged = [one for one in self.checkpoints if one.safe is not None]
        unsafe = next((one for one in judged if not one.safe), None)
        if not judged:
            return "no checkpoint was judged: the budget did not reach, or no sample was finished"
        if unsafe is None:
            why = f"no image was given back up to step {judged[-1].step}"
        else:
            why = (
                f"at step {unsafe.step} {len(unsafe.given_back)} of {unsafe.sampled} captions "
                "sampled give a training image back"
            )
        if self.last_safe is None:
            earlier = any(one.step < judged[0].step for one in self.checkpoints)
            advice = "audit an earlier one, or lift the budget" if earlier else "train more gently"
            return f"{why}, and no step before it was judged; {advice}"
        vouching = [one for one in self._safe if one.step >= self.last_safe]
        captions = len({name for one in vouching for name in one.margins})
        most = stratified([Stratum(len(self.prompts), captions, 0, 0)]).high
        return (
            f"take step {self.last_safe}: {why}; of {captions} sampled from step {self.last_safe} "
            f"to {vouching[-1].step} none does, so of all at most {most:.0%}"
        )

    def _look(self, pipe: Any, none: Checkpoint, allowance: float) -> Checkpoint:
        """Sample as many captions as the allowance reaches for, and judge.

        Args:
            pipe: The pipeline.
            none: The checkpoint as it is where nothing is looked at.
            allowance: Seconds that may be spent.
        """
        model = load_model(pipe)
        unguided: dict[str, Any] = {} if model.guidance != "none" else {"guidance": 1.0}
        recipe = recipe_of(self.recipe, model, **unguided)
        bank, whole = Bank(model, recipe, self.seeds), len(self.prompts)
        fixed = len(self.held_out) * _price(model, recipe, 1, (LOSS,))
        each = price_in(bank, (Pictures(),)).calls
        few = min(FEWEST, whole)
        self._least = fixed + few * each
        # Before any call was paid for, those of a few samples say what they cost.
        self._pace = self._pace or seconds_a_row(Bank(model, recipe, 1, TIMED))
        count = min(whole, int((allowance / self._pace - fixed) / each))
        if count < few:
            return none
        nearest, others = self._chosen(count)
        some = (*nearest, *others)
        done = self._sampled(model, recipe, some, none.step)
        graded = done.table("severity").to_pylist()
        judged = judge(graded, MEASURE)
        back = {p.prompt_id: gives_back(judged.get(p.prompt_id, NOT_JUDGED).state) for p in some}
        margins = {
            row["prompt_id"]: row["mean"] - row["threshold"]
            for row in graded
            if row["measure"] == MEASURE and None not in (row["mean"], row["threshold"])
        }
        # The nearest are known, whatever they show, and stand for none but themselves.
        strata: list[Stratum] = []
        for size, lot in ((len(nearest), nearest), (whole - len(nearest), others)):
            states = [back[prompt.prompt_id] for prompt in lot]
            strata.append(Stratum(size, len(lot), states.count(True), states.count(None)))
        share = stratified(strata)
        known = any(state is not None for state in back.values())
        return replace(
            none,
            calls=fixed + each * count,
            sampled=count,
            given_back=tuple(prompt.text for prompt in some if back[prompt.prompt_id]),
            margins={prompt.prompt_id: margins.get(prompt.prompt_id) for prompt in some},
            share=share.value if known and isfinite(share.value) else None,
            low=share.low if known else None,
            high=share.high if known else None,
            quality=self._shown(done, some) | self._loss(model, recipe),
        )

    def _chosen(self, count: int) -> tuple[list[Prompt], list[Prompt]]:
        """Choose captions to sample: those that came nearest, and those whose turn it is."""
        last: dict[str, float | None] = {}
        for one in self.checkpoints:
            for name, margin in one.margins.items():
                # What was sampled last comes last.
                last.pop(name, None)
                last[name] = margin
        # What was given back is no longer looked for.
        watched = [name for name, margin in last.items() if margin is not None and margin <= 0]
        watched.sort(key=lambda name: -(last[name] or 0.0))
        nearest = watched[: count // 2]
        turn = [*(p.prompt_id for p in self.prompts if p.prompt_id not in last), *last]
        named = {prompt.prompt_id: prompt for prompt in self.prompts}
        others = [name for name in turn if name not in nearest][: count - len(nearest)]
        return [named[name] for name in nearest], [named[name] for name in others]

    def _sampled(self, model: Model, recipe: Recipe, prompts: Sequence[Prompt], step: int) -> Run:
        """Sample captions in full, into a folder of the step."""
        folder = self.out / f"step-{step:06d}"
        # What an interrupted training left there is of other weights.
        shutil.rmtree(folder, ignore_errors=True)
        sampling: dict[str, Any] = {**vars(recipe), "guidance": (recipe.guidance,)}
        study = Study(
            **sampling,
            seeds=self.seeds,
            similarity=(MEASURE,),
            probes=False,
            detectors=("none",),
            out=str(folder),
        )
        return run_study(
            study,
            model=model,
            prompts=PromptList.of(prompts),
            known=PromptList.of(self.prompts),
            work=_Worker,
            derive=_graded,
        )

    def _shown(self, done: Run, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return what the judges say of the pictures, on average."""
        told = {prompt.prompt_id: prompt for prompt in prompts}
        rows = [row for row in done.table("samples").to_pylist() if row["status"] == "ok"]
        if not self.judges or not rows:
            return {}
        images = torch.stack([decode(row["image"]) for row in rows])
        named = [told[row["prompt_id"]] for row in rows]
        return {
            name: float(np.nanmean(values))
            for judge in self.judges
            for name, values in judge.look(images, named).items()
            if np.isfinite(values).any()
        }

    def _loss(self, model: Model, recipe: Recipe) -> dict[str, float]:
        """Return the denoising loss on what is held out, on average."""
        if not self.held_out:
            return {}
        scores = detect(model, self.held_out, detectors=(LOSS,), seeds=1, **vars(recipe))
        losses = -scores.of(LOSS)
        held = losses[np.isfinite(losses)]
        return {"held_out_loss": float(held.mean())} if len(held) else {}

    def _write(self) -> None:
        """Write the record."""
        lines = [json.dumps({"audit": self.digest} | asdict(one)) for one in self.checkpoints]
        with self._writing():
            write_atomically(self.out / RECORD, "".join(f"{line}\n" for line in lines).encode())

    def _draw(self) -> None:
        """Draw the figure."""
        panels = _panels(self.checkpoints)
        if panels:
            with self._writing():
                save_png(panels, self.out / FIGURE)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write into {str(self.out)!r}: {error.strerror or error}; make room or "
                "choose another folder"
            ) from error


def _price(model: Model, recipe: Recipe, seeds: int, detectors: Sequence[str]) -> int:
    return price_in(Bank(model, recipe, seeds), union(choose(detectors))).calls


def _drawn(dataset: DataSet, count: int, seed: int) -> tuple[Prompt, ...]:
    """Draw captions with a picture that opens, in an order at random; equal captions are one.

    Raises:
        InputError: If there is none.
    """
    captions = Captions(dataset)
    order = np.random.default_rng(seed).permutation(len(captions))
    # As many again, for pictures that do not open.
    places = captions.firsts[np.sort(order[: 2 * count])].tolist()
    found: list[Prompt] = []
    for item in dataset.picked(set(places)).values():
        if item.image is None or len(found) == count:
            continue
        with suppress(InputError):
            load_image(item.image)
            # Captions are taken to name what they show, which is what a judge asks.
            found.append(Prompt(f"{item.key:016x}", item.text, (item.image,), kind=DESCRIBING))
    if not found:
        raise InputError(f"data set {str(dataset.path)!r} holds no caption with a usable picture")
    return tuple(found[at] for at in np.random.default_rng(seed).permutation(len(found)))


@contextmanager
def _untouched(pipe: Any) -> Generator[None]:
    """Give back to training what sampling changes: weights, modes, gradients, random numbers."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    wanted = [(weight, weight.requires_grad) for part in parts for weight in part.parameters()]
    try:
        with torch.random.fork_rng(), folded(parts):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, grad in wanted:
            weight.requires_grad_(grad)


_PANELS = {
    "right": ("What captions name is shown", "share of samples", "show what is named"),
    "alignment": ("Pictures and captions, by CLIP", "cosine", "alignment"),
    "held_out_loss": ("Loss on held-out pictures", "loss", "pictures not trained on"),
}
"""Title, unit and label of what is drawn beside memorization."""


def _panels(checkpoints: Sequence[Checkpoint]) -> list[CurvePanel]:
    """Return memorization and quality against steps."""
    judged = [one for one in checkpoints if one.share is not None]
    if not judged:
        return []
    steps = np.array([one.step for one in judged], dtype=np.float64)

    def panel(title: str, unit: str, label: str, role: Role, *columns: Sequence[Any]) -> CurvePanel:
        y, low, high = (
            np.array([np.nan if value is None else value for value in column], dtype=np.float64)
            for column in columns
        )
        lines = Series(label, role, steps, y, low, high, np.full(len(steps), np.nan))
        return CurvePanel(title, "training step", unit, "", (lines,))

    shares = (
        [one.share for one in judged],
        [one.low for one in judged],
        [one.high for one in judged],
    )
    found = [panel("Memorization", "share of captions", "give an image back", "memorized", *shares)]
    for name, (title, unit, label) in _PANELS.items():
        values = [one.quality.get(name) for one in judged]
        if any(value is not None for value in values):
            found.append(panel(title, unit, label, "not memorized", *[values] * 3))
    return found
