"""An audit says which images of a data set a model gives back, and how many it may have missed.

Flow of `audit`, each stage a run folder that goes on where it was stopped::

    DIR          what each item is, and in the end what was found: tables items, suspects, funnel,
                 audited and statistics
    DIR/screen   every distinct caption by a few network calls: a detection
    DIR/closer   a fifth of them, the most suspicious, by a few more at their image: likewise
    DIR/members  where another data set is held out, items of both by membership scores: a detection
    DIR/confirm  the suspicious captions in full, every picture against the whole set: a study;
                 DIR/confirm-2 and so on, further samples of those that the first ones do not
                 settle, and more captions as long as they give images back;
                 DIR/confirm-drawn, a sample of the others, and ordinary prompts; likewise
    DIR/scale-*  with a LoRA, the same captions from the same noise at other scales of it, without
                 it first: studies likewise

The suspicious are those whose scores lie furthest out (`ranking.funnel`), and those that stand out
before any call, since they repeat or lie alone (`ranking.suspects`). What was dropped is drawn from
at random, so what the funnel misses is measured (`ranking.prevalence`). A caption gives an image
back where it is memorized, or copies another image of the set, in the words of a study
(`severity.truth`). No more samples of a caption are taken than settle that: half of them first.

Contents: `Audit`, `audit`; `gives_back`, which a training audit shares; `labels_of`,
`prevalence_of`.
"""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from mnemoscope.core.stats import Estimate
from mnemoscope.data.prompts import Prompt, PromptList, read_prompts
from mnemoscope.data.sets import Captions, DataSet, Item, read_set
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError, OtherRunError
from mnemoscope.evidence import Bank, price_in
from mnemoscope.evidence.bank import MEAN_DRAWS
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.flows.confirming import ConfirmWorker, Images, certain, known_prompts
from mnemoscope.flows.detect import Notify, Scores, detect
from mnemoscope.flows.items import ITEMS, Opened, embedding_of, open_items
from mnemoscope.flows.options import (
    as_model,
    brought,
    given,
    loaded,
    recipe_of,
    resolved,
    values_of,
)
from mnemoscope.flows.scores import choose, methods_of, union
from mnemoscope.flows.study import Study
from mnemoscope.flows.study import run as run_study
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.ranking.funnel import (
    FROM_NEAREST,
    ROUND,
    STRATA,
    SUSPICIOUS,
    Plan,
    nearest,
    plan,
    refined,
    strata_of,
    tails,
    widens,
)
from mnemoscope.ranking.inference import Inference, inferred
from mnemoscope.ranking.prevalence import Prevalence, Stratum, drawn_for, exact, prevalence
from mnemoscope.ranking.suspects import TWINNED, Suspects, suspects
from mnemoscope.reporting.audit import (
    ADDED,
    ANALYSIS,
    GIVEN_BACK,
    INFERRED,
    LAST,
    ORDINARY,
    RECALL,
    SHARE,
    SURE,
    TOLD,
    at_scale,
)
from mnemoscope.runs.executors import Execution
from mnemoscope.runs.folder import Run, Writer
from mnemoscope.runs.manifest import Manifest, packages
from mnemoscope.runs.tables import TABLES
from mnemoscope.runs.verify import runs_in
from mnemoscope.sampling.recipe import GIVEN, Recipe
from mnemoscope.severity.nearest import NOTHING
from mnemoscope.severity.truth import NOT_JUDGED, Judgement, judge, pooled, until_settled
from mnemoscope.similarity import Describing, Similarity

T = TypeVar("T")

LEAST = 20
"""Fewest captions that are taken as suspicious, and that are drawn from the others."""
OWN = 8
"""Most images that a caption counts as its own; of one that repeats more often, the first."""
MEMBERSHIP = ("sima", "pia", "secmi", "score_norm")
"""Membership scores of dataset inference: 16 network calls an item together, at four samples."""
INFERRED_ON = 200
"""Items of either data set that dataset inference looks at."""
EMBEDDED = "embedded"
"""The model that brings a data set."""
FURTHER = 1832
"""Captions of it that the planting showed once, beside 168 planted ones."""
WIDEST = 0.1
"""Share of the captions that is sampled as suspicious at most."""
CLOSER = 0.2
"""Share of the captions at which a closer look is taken, the most suspicious."""
LOOKS = 4
"""How often a caption is sampled further at most; the last time, all that is left."""
FEWEST = 4
"""Fewest captions that a budget has to reach for: suspicious, repeated, and one of each stratum."""
PICTURED = 4
"""Suspects of a reason whose pictures are kept."""
SHOWN = 20
"""Most items that are named for an image that was given back."""


@dataclass(frozen=True)
class Audit(Execution, Recipe, Source):
    """What to audit. Every field is an option of `mnemoscope audit`."""

    dataset: str | Path | None = option(
        None,
        "Images with captions: a folder, .jsonl, .csv, .parquet, WebDataset .tar, or a folder that "
        "Hugging Face's datasets has saved; the embedded model brings what its planting showed.",
    )
    detectors: tuple[str, ...] = option(
        ("consensus_whitened", "sima"),
        "Detectors that every caption is screened by, comma-separated; one call a seed, and one "
        "for sima, which takes the image.",
    )
    screening_seeds: int = option(4, "Samples a caption in the screen.")
    closer: tuple[str, ...] = option(
        ("denoising_loss:5",),
        "Detectors of the caption's own image that look closer at the most suspicious fifth, by "
        "one sample each, comma-separated; none for no closer look.",
    )
    seeds: int = option(
        4, "Samples a caption that is sampled in full; fewer where these settle what it is."
    )
    finalists: float = option(0.01, "Share of captions that is sampled in full as suspicious.")
    drawn: float = option(
        0.005, "Share of captions that is drawn from the others, to see what was missed."
    )
    precision: float | None = option(
        None, "Draw as many as it takes for an interval no wider than this if nothing was missed."
    )
    budget: int | None = option(None, "Most network calls of all stages together.")
    ordinary: str | Path | None = option(
        None, "Prompt file that nobody wrote to extract anything: how often does one give back?"
    )
    held_out: str | Path | None = option(
        None,
        "Data set of the same kind that was certainly not trained on: was this one, as a whole?",
    )
    scales: tuple[float, ...] = option(
        (),
        "Further scales of the LoRA at which the same captions are sampled, such as 0.25,0.5,1.2; "
        "0, the model without it, always is.",
    )
    similarity: tuple[str, ...] = option(
        ("l2", "tiled_l2"),
        "Similarity measures, comma-separated; the first says what counts as memorized.",
    )
    embedding: str = option(
        "none",
        "Measure with descriptors, such as sscd:official_320, by which copies of a picture that "
        "were cropped or retouched stand out as well; none where only prints are compared.",
    )
    sscd: str | Path | None = option(None, "File of the SSCD network, TorchScript or ONNX.")
    fail_above: str | None = option(
        None,
        "Exit with status 4 if more than this share of captions gives an image back, such as 0.1%, "
        "by the lower end of the interval.",
    )
    out: str | Path = option("runs/audit", "Folder; an unfinished audit in it is continued.")
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")
    retry: bool = option(False, "Do units again in which a sample failed or is not finite.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        brought(self)
        if self.dataset is None and self.model != EMBEDDED:
            raise InputError(
                "no data set given; name one after the model: mnemoscope audit MODEL DIR"
            )
        for name in ("screening_seeds", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} given; expected at least 1")
        for name in ("finalists", "drawn", "precision"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} {value} given; expected a share between 0 and 1")
        if self.scales and self.lora is None:
            raise InputError(f"scales {self.scales} given, but no adapter; name one by --lora FILE")
        if not all(isfinite(scale) and scale >= 0 for scale in self.scales):
            raise InputError(
                f"scales {self.scales} given; expected numbers from 0, such as 0.5,1.2"
            )
        self.limit()

    def others(self) -> tuple[float, ...]:
        """Return the scales of the LoRA at which captions are sampled besides its own."""
        return () if self.lora is None else tuple(sorted({0.0, *self.scales} - {self.lora_scale}))

    def limit(self) -> float | None:
        """Return the share above which an audit fails; None where it does not.

        Raises:
            InputError: If it is no share.
        """
        if self.fail_above is None:
            return None
        text = self.fail_above.strip()
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1:
            raise InputError(f"fail_above {self.fail_above!r} given; expected a share such as 0.1%")
        return value

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Audit":
        """Make it of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


UNASKED = ("dataset", "held_out", "fail_above")
"""Options that may differ when an audit goes on: what the set holds has a digest of its own."""


def audit(
    asked: Audit,
    *,
    model: Any = None,
    notify: Notify | None = None,
    progress: bool = False,
) -> Run:
    """Audit a model, or do what is left of it.

    Args:
        asked: What to audit.
        model: The model, if it is loaded already; a pipeline object does as well.
        notify: Told the price first, then what each stage does.
        progress: Whether to draw progress bars on standard error.

    Returns:
        The finished run, which holds what was found.

    Raises:
        InputError: If the data set or an option cannot be used, or the budget is too small.
        ModelError: If the model cannot be loaded or cannot do what is asked.
        RunError: If the folder is of another audit or data set, in use, or cannot be written.
        KeyboardInterrupt: If it was interrupted; the same audit continues where it stopped.
    """
    say = notify or (lambda line: None)
    chosen = choose(asked.detectors)
    dataset = read_set(_brought(asked) if asked.dataset is None else asked.dataset)
    ordinary = _ordinary(asked)
    held_out = None if asked.held_out is None else read_set(asked.held_out)
    held = loaded(asked) if model is None else as_model(model)
    embedding = None if asked.embedding == "none" else embedding_of(asked.embedding, asked.sscd)
    stages = _Stages(asked, held, chosen, dataset, held_out, ordinary, embedding, say, progress)
    stages.captions.listed()
    for line in stages.price():
        say(line)
    manifest = stages.manifest()
    with Writer.open(Path(asked.out), manifest) as writer:
        with writer.noting(manifest):
            opened = stages.open(writer, manifest)
            images, known = opened.images, stages.suspects(opened)
            tail = stages.screen(images)
            members = stages.infer(images)
            confirmed = stages.confirm(images, known, tail)
            writer.append("result", stages.result(confirmed, images, known, members))
        return writer.close(manifest, "complete")


def _brought(asked: Audit) -> Path:
    """Write the data set that the embedded model brings beside the audit, once."""
    from mnemoscope.lab.dataset import write_dataset

    folder = Path(asked.out)
    return write_dataset(folder.with_name(f"{folder.name}-data"), FURTHER)


def _ordinary(asked: Audit) -> tuple[Prompt, ...]:
    """Return the ordinary prompts, under names that no caption has."""
    if asked.ordinary is None:
        return ()
    prompts = read_prompts(asked.ordinary)
    return tuple(
        replace(p, prompt_id=f"{ORDINARY}-{p.prompt_id}", images=(), mask=None, group=ORDINARY)
        for p in prompts
    )


@dataclass(frozen=True)
class _Stages:
    """The stages of an audit, and what each costs."""

    asked: Audit
    model: Model
    detectors: tuple[Detector, ...]
    dataset: DataSet
    held_out: DataSet | None
    ordinary: tuple[Prompt, ...]
    embedding: Describing | None
    say: Notify
    progress: bool

    @cached_property
    def captions(self) -> Captions:
        """Return the distinct captions, without images."""
        return Captions(self.dataset)

    @property
    def folder(self) -> Path:
        """Return the folder of the audit."""
        return Path(self.asked.out)

    def _recipe(self, **changes: Any) -> Recipe:
        unguided: dict[str, Any] = {} if self.model.guidance != "none" else {"guidance": 1.0}
        return recipe_of(self.asked, self.model, **(unguided | changes))

    def _screening(self) -> dict[str, Any]:
        # Other noise than that of the samples: nothing is scored by its own start.
        recipe = self._recipe(noise="shared", seed=self.asked.seed + 1)
        return {f.name: getattr(recipe, f.name) for f in fields(Recipe)}

    def _where(self) -> dict[str, Any]:
        return {f.name: getattr(self.asked, f.name) for f in fields(Execution)}

    def screen_calls(self) -> int:
        """Return what the screen costs, at most: a caption without a picture is looked at less."""
        return self._scored(len(self.captions), self.detectors, self.asked.screening_seeds)

    def closer_calls(self) -> int:
        """Return what the closer look costs, at most."""
        return self._scored(self.closer, choose(self.asked.closer), 1) if self.closer else 0

    def scoring_calls(self) -> int:
        """Return what is spent before anything is sampled in full, at most."""
        return self.screen_calls() + self.closer_calls()

    def _scored(self, count: int, detectors: Sequence[Detector], seeds: int) -> int:
        bank = Bank(self.model, Recipe(**self._screening()), seeds, self.asked.batch)
        each = price_in(bank, union(detectors)).calls
        starts = any(detector.needs.uncond for detector in detectors) and bank.knows_start
        return count * each + (seeds if starts else 0)

    @property
    def closer(self) -> int:
        """Return at how many captions a closer look is taken; 0 where most are sampled anyway."""
        count = int(CLOSER * len(self.captions))
        first = max(LEAST, round(self.asked.finalists * len(self.captions)))
        return count if choose(self.asked.closer) and count > first else 0

    @property
    def models(self) -> int:
        """Return with how many models captions are sampled: one a scale of the LoRA."""
        return 1 + len(self.asked.others())

    def each(self) -> int:
        """Return what it costs to sample one caption in full."""
        bank = Bank(self.model, self._recipe(), self.asked.seeds, self.asked.batch)
        return self.models * price_in(bank, (Pictures(),)).calls

    def fixed(self) -> int:
        """Return what is spent whatever is chosen: on ordinary prompts, the mean, inference."""
        return (
            self.models * self._mean() + len(self.ordinary) * self.each() + self.inference_calls()
        )

    def inference_calls(self) -> int:
        """Return what dataset inference costs at most."""
        if self.held_out is None:
            return 0
        bank = Bank(self.model, Recipe(**self._screening()), self.asked.screening_seeds, 1)
        each = price_in(bank, union(choose(MEMBERSHIP))).calls
        sizes = (len(self.captions), len(Captions(self.held_out)))
        return each * sum(min(size, INFERRED_ON) for size in sizes)

    def finalists(self) -> int:
        """Return how many captions are sampled as suspicious to begin with.

        Raises:
            InputError: If the budget does not reach for one of either kind.
        """
        asked, n = self.asked, len(self.captions)
        finalists = min(n, max(LEAST, round(asked.finalists * n)))
        if asked.budget is None:
            return finalists
        room, least = self._room(), min(n, FEWEST)
        if room < least:
            before, each = self.scoring_calls() + self.fixed(), self.each()
            raise InputError(
                f"budget {asked.budget:,} given; screen, reference means and ordinary prompts take "
                f"{before:,} network calls, and {least} captions in full {least * each:,} more: "
                f"give at least {before + least * each:,}"
            )
        return min(finalists, max(1, room // 4))

    def _room(self) -> int:
        """Return how many captions the budget has room for in full."""
        assert self.asked.budget is not None
        return (self.asked.budget - self.scoring_calls() - self.fixed()) // self.each()

    def drawn(self, sampled: int) -> int:
        """Return how many of the others are drawn at least, once some captions are sampled."""
        asked, n = self.asked, len(self.captions)
        left = n - sampled
        drawn = min(left, max(LEAST, round(asked.drawn * n)))
        if asked.precision is not None and left:
            drawn = min(left, drawn_for(asked.precision * n / left, strata_of(left), FROM_NEAREST))
        return drawn if asked.budget is None else min(drawn, max(0, self._room() - sampled))

    def most(self) -> int:
        """Return how many captions of the least tail are sampled at most."""
        finalists = self.finalists()
        widest = max(finalists, round(WIDEST * len(self.captions)))
        if self.asked.budget is None:
            return widest
        # What stands out before any call, and what is drawn, has its room.
        room = self._room() - finalists - self.drawn(2 * finalists)
        return max(finalists, min(widest, room))

    @property
    def _first(self) -> int:
        """Return how many samples of a caption are taken at first.

        The scales of a LoRA are compared sample by sample, and of given noise there is no more.
        """
        whole = self.asked.others() or self.asked.noise.endswith(GIVEN)
        return self.asked.seeds if whole else until_settled(NOT_JUDGED, self.asked.seeds)

    def _mean(self) -> int:
        return MEAN_DRAWS if self.model.has_uncond else 0

    def price(self) -> Iterator[str]:
        """Say what each stage costs."""
        n, each = len(self.captions), self.each()
        finalists = self.finalists()
        drawn = self.drawn(finalists)
        blank = int((self.dataset.keys == 0).sum())
        screen, full = self.scoring_calls(), (finalists + drawn) * each + self.fixed()
        whole = n * each
        yield (
            f"{len(self.dataset):,} items, {n:,} different captions"
            + (f"; items without one are only looked for: {blank:,}" if blank else "")
        )
        if self.embedding is not None:
            yield f"embedding: every picture once by {self.embedding.name}, no network call"
        seeds = self.asked.screening_seeds
        yield f"screen: {n:,} captions x {seeds} seeds, {self.screen_calls():,} network calls"
        if self.closer:
            yield (
                f"closer look: {self.closer:,} of them, the most suspicious, at most "
                f"{self.closer_calls():,} network calls"
            )
        yield (
            f"confirm: {finalists:,} suspicious captions (and as many more that repeat or lie "
            f"alone, at most), "
            f"{drawn:,} drawn from the others, {len(self.ordinary):,} ordinary prompts, x "
            f"{self.asked.seeds} seeds"
            + (f" x {self.models} scales of the LoRA" if self.models > 1 else "")
            + f", {'at most' if self._first < self.asked.seeds else 'about'} {full:,} network calls"
        )
        if self.most() > finalists:
            yield (
                f"more suspicious captions, up to {self.most():,}, as long as they give images "
                f"back: {each:,} network calls each"
            )
        if self.held_out is not None:
            yield f"members: dataset inference, at most {self.inference_calls():,} network calls"
        yield (
            f"together {(screen + full) / whole:.1%} of the {whole:,} that sampling every caption "
            f"takes, on {self.model.device}"
        )

    def manifest(self) -> Manifest:
        """Say what is asked of which model and data set."""
        asked, model = self.asked, self.model
        sets = [held.digest for held in (self.dataset, self.held_out) if held is not None]
        told = "\n".join([*sets, *(p.prompt_id for p in self.ordinary)])
        network = getattr(self.embedding, "digest", "")
        bank = Bank(model, self._recipe(), 1, 1)
        alpha, sigma = bank.final
        return Manifest(
            flow="audit",
            given=given(asked),
            options={k: v for k, v in resolved(asked).items() if k not in UNASKED}
            | {"scheduler": bank.recipe.scheduler},
            methods=methods_of(
                (*self.detectors, *choose(asked.closer)), (network,) if network else ()
            ),
            packages=packages(),
            model={"name": model.name, "digest": model.digest},
            prompts=hashlib.sha256(told.encode()).hexdigest(),
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            final_level=(float(alpha), float(sigma)),
            d=model.d,
            latent_shape=tuple(model.latent_shape),
            units={"items-*": -(-len(self.dataset) // ITEMS), "result": 1},
        )

    def open(self, writer: Writer, manifest: Manifest) -> Opened:
        """Open every picture once, and write what each item is."""
        opened = open_items(
            self.dataset, self.model.image_size, self.embedding, writer, manifest, self.progress
        )
        count = len(self.dataset)
        broken = count - int((opened.images.names != NOTHING).sum())
        if broken:
            self.say(
                f"{broken:,} of {count:,} items have no picture that can be used; see table items"
            )
        if not len(opened.images.whole):
            raise InputError(
                f"no picture of {str(self.dataset.path)!r} can be used; see table items"
            )
        return opened

    def suspects(self, opened: Opened) -> Suspects:
        """Find what stands out before the model is asked."""
        found = suspects(
            opened.images.whole,
            self.dataset.keys,
            opened.words,
            self.captions.keys,
            self.asked.seed,
            self.model.device,
        )
        told = ", ".join(
            f"{int(some.sum()):,} {TOLD[name]}"
            for name, some in found.reasons.items()
            if some.any()
        )
        self.say(f"suspects before any call: {told or 'none'}")
        return found

    def screen(self, images: Images) -> Float[np.ndarray, " caption"]:
        """Score every caption; return how far out each lies."""
        pairs = any(detector.kind == "pair" for detector in self.detectors)
        captions = Captions(self.dataset, images.names != NOTHING if pairs else None)
        asked = self.asked
        seeds = asked.screening_seeds
        scores = self._detected(captions.listed(), self.detectors, seeds, "screen")
        own = np.array([detector.kind == "pair" for detector in self.detectors])
        values = np.column_stack([scores.of(d.name) for d in self.detectors])
        tail = tails(values, own)
        if not self.closer:
            return tail
        some = nearest(tail, CLOSER)
        looked = Captions(self.dataset, images.names != NOTHING).only(some)
        more = self._detected(looked, choose(asked.closer), 1, "closer")
        added = np.column_stack([more.of(d.name) for d in choose(asked.closer)])
        return refined(values, own, some, added)

    def _detected(
        self, prompts: PromptList, detectors: Sequence[str | Detector], seeds: int, name: str
    ) -> Scores:
        """Score prompts, into a folder of that name."""

        def work() -> Scores:
            return detect(
                self.model,
                prompts,
                detectors=detectors,
                seeds=seeds,
                batch=self.asked.batch,
                retry=self.asked.retry,
                out=self.folder / name,
                notify=lambda line: self.say(f"{name}: {line}"),
                progress=self.progress,
                **self._where(),
                **self._screening(),
            )

        return self._staged(name, work)

    def _staged(self, name: str, work: Callable[[], T]) -> T:
        """Do a stage; anew where what was retried before it has led to other captions."""
        try:
            return work()
        except OtherRunError:
            if not self.asked.retry:
                raise
        shutil.rmtree(self.folder / name)
        return work()

    def infer(self, images: Images) -> Inference | None:
        """Ask whether the data set was trained on as a whole; None without one held out."""
        if self.held_out is None:
            return None
        ours = Captions(self.dataset, images.names != NOTHING)
        theirs = Captions(self.held_out, np.ones(len(self.held_out), dtype=bool))
        sides = [_some(ours, "item", self.asked.seed), _some(theirs, "held-out", self.asked.seed)]
        both = PromptList.of([prompt for side in sides for prompt in side])
        scores = self._detected(both, MEMBERSHIP, self.asked.screening_seeds, "members")
        features = np.column_stack([scores.of(name) for name in MEMBERSHIP])
        return inferred(features[: len(sides[0])], features[len(sides[0]) :], self.asked.seed)

    def confirm(
        self, images: Images, known: Suspects, tail: Float[np.ndarray, " caption"]
    ) -> "_Confirmed":
        """Sample the suspicious in full, in rounds; then some of the others."""
        first, most = self.finalists(), self.most()
        step, count, done = max(ROUND, first // 4), first, list[Run]()
        back, found = dict[int, bool](), dict[str, Judgement]()
        told, severity = dict[str, Prompt](), defaultdict[str, list[Any]](list)
        repeated, lone = known.repeated, known.lone

        def planned(count: int, drawn: int = 0) -> Plan:
            return plan(tail, repeated, lone, count, first, drawn, self.asked.seed)

        # One pass through the set finds the texts of all rounds.
        items = self._items(labels_of(planned(most)).keys())

        def sample(chosen: Plan, drawn: str = "", more: Sequence[Prompt] = ()) -> None:
            labels = {at: label for at, label in labels_of(chosen).items() if at not in back}
            captions = self._prompts(images, labels, items)
            prompts = [*captions, *more]
            told.update({prompt.prompt_id: prompt for prompt in prompts})
            before = len(done) if drawn else 0
            for asked, some in self._looks(prompts, found):
                number = len(done) + 1 - before
                name = f"confirm{drawn}" + (f"-{number}" if number > 1 else "")
                done.append(self._sampled(images, some, asked, self.model, name))
                for row in done[-1].table("severity").to_pylist():
                    severity[row["prompt_id"]].append(row)
                rows = [row for prompt in some for row in severity[prompt.prompt_id]]
                found.update(judge(pooled(rows), asked.similarity[0]))
            for at, prompt in zip(labels, captions, strict=True):
                back[at] = found.get(prompt.prompt_id, NOT_JUDGED).state in GIVEN_BACK

        chosen, before = planned(count), 0
        sample(chosen)
        while widens(last := [back[int(at)] for at in chosen.scored[before:]]) and count < most:
            before, count = len(chosen.scored), min(most, count + step)
            self.say(
                f"confirm: {sum(last):,} of {len(last):,} give an image back; {count - before:,} "
                f"more, at most {(count - before) * self.each():,} network calls"
            )
            chosen = planned(count)
            sample(chosen)
        drawn = self.drawn(len(back))
        if self.asked.budget is not None and self.asked.precision is None:
            spent = sum(map(_spent, done)) + self.scoring_calls() + self.fixed()
            spent += (self.models - 1) * len(back) * self.each() // self.models
            room = max(0, self.asked.budget - spent) // self.each()
            drawn = min(len(self.captions) - len(back), room)
        chosen = planned(count, drawn)
        items |= self._items(labels_of(chosen).keys() - back.keys())
        sample(chosen, "-drawn", self.ordinary)
        scales: dict[float, Run] = {}
        for scale in self.asked.others():
            asked = replace(self.asked, lora_scale=scale)
            name = f"scale-{scale:g}"
            scales[scale] = self._sampled(images, [*told.values()], asked, loaded(asked), name)
        used = {run.path for run in (*done, *scales.values())}
        for path in runs_in(self.folder)[1:]:
            if path.name.startswith(("confirm", "scale-")) and path not in used:
                # What led to it has been retried since.
                shutil.rmtree(path)
        return _Confirmed(tuple(done), scales, chosen, told, found, tuple(last))

    def _looks(
        self, prompts: Sequence[Prompt], found: Mapping[str, Judgement]
    ) -> Iterator[tuple[Audit, list[Prompt]]]:
        """Yield how to sample next, and which prompts, until all are settled by what was found."""
        asked, taken, open_ones = self.asked, 0, list(prompts)
        for look in range(LOOKS):
            left = asked.seeds - taken
            needs = {
                prompt.prompt_id: until_settled(found.get(prompt.prompt_id, NOT_JUDGED), left)
                for prompt in open_ones
            }
            open_ones = [prompt for prompt in open_ones if needs[prompt.prompt_id]]
            if not open_ones:
                return
            least = min(needs[prompt.prompt_id] for prompt in open_ones)
            count = self._first if not look else left if look == LOOKS - 1 else least
            # Other noise in every look, and other than that of the screen, which has the next seed.
            yield replace(asked, seed=asked.seed + look + bool(look), seeds=count), open_ones
            taken += count

    def _sampled(
        self, images: Images, prompts: Sequence[Prompt], asked: Audit, model: Model, name: str
    ) -> Run:
        """Sample prompts in full with a model, into a folder of that name."""
        others, workers = images.others(self.asked.seed), list[ConfirmWorker]()

        def work(*given: Any) -> ConfirmWorker:
            workers.append(ConfirmWorker(images, others, *given))
            return workers[-1]

        def derive(writer: Writer, manifest: Manifest, measures: Mapping[str, Similarity]) -> None:
            del measures
            workers[-1].derive(writer, manifest)

        recipe = self._recipe(seed=asked.seed)
        study = Study(
            **{f.name: getattr(asked, f.name) for f in fields(Source)},
            **self._where(),
            **{f.name: getattr(recipe, f.name) for f in fields(Recipe) if f.name != "guidance"},
            guidance=(recipe.guidance,),
            seeds=asked.seeds,
            similarity=asked.similarity,
            sscd=asked.sscd,
            probes=False,
            detectors=("none",),
            batch=asked.batch,
            retry=asked.retry,
            out=str(self.folder / name),
        )
        return self._staged(
            name,
            lambda: run_study(
                study,
                model=model,
                prompts=PromptList.of(prompts),
                known=known_prompts(prompts, images, others),
                work=work,
                derive=derive,
                notify=lambda line: self.say(f"{name}: {line}"),
                progress=self.progress,
            ),
        )

    def _items(self, places: Collection[int]) -> dict[int, Item]:
        """Return the first item of each of some captions; one pass through the set."""
        firsts = {int(self.captions.firsts[at]): at for at in places}
        return {firsts[at]: item for at, item in self.dataset.picked(set(firsts)).items()}

    def _prompts(
        self, images: Images, labels: Mapping[int, str], items: Mapping[int, Item]
    ) -> list[Prompt]:
        """Return captions with their images, each with why it is sampled."""
        captions, keys = self.captions, self.dataset.keys
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        found: list[Prompt] = []
        for at, label in labels.items():
            key = captions.keys[at]
            start, end = (int(np.searchsorted(ranked, key, side)) for side in ("left", "right"))
            places = [int(place) for place in order[start:end]]
            usable = [source for place in places if (source := images.sources[place]) is not None]
            text = items[at].text
            found.append(Prompt(f"{key:016x}", text, tuple(usable[:OWN]), group=label))
        return found

    def result(
        self, confirmed: "_Confirmed", images: Images, known: Suspects, members: Inference | None
    ) -> dict[str, Any]:
        """Return what was found, as tables of the audit."""
        captions, chosen, measure = self.captions, confirmed.chosen, self.asked.similarity[0]
        labels, prompts = labels_of(chosen), confirmed.prompts
        judged = confirmed.found
        copied = _copied(confirmed.runs, measure)
        own = self.asked.lora_scale
        by_scale: dict[float, Mapping[str, Judgement]] = {own: judged} | {
            scale: judge(run.table("severity").to_pylist(), measure)
            for scale, run in confirmed.scales.items()
        }
        places = {f"{captions.keys[at]:016x}": at for at in labels}
        wanted = sorted({name for names in copied.values() for name in names})
        shown = self._named(images, wanted)
        rows: list[dict[str, Any]] = []
        for prompt_id, prompt in prompts.items():
            at, found = places.get(prompt_id), judged.get(prompt_id, NOT_JUDGED)
            near = copied.get(prompt_id, {})
            names = sorted(near)
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "prompt": prompt.text,
                    "chosen": ORDINARY if at is None else labels[at],
                    "tail": None if at is None else _nullable(float(chosen.tail[at])),
                    "repeats": 0 if at is None else int(known.repeats[at]),
                    "state": found.state,
                    "share": _nullable(found.share),
                    "share_elsewhere": _nullable(found.share_elsewhere),
                    "samples": found.samples,
                    "similarity": max(near.values(), default=None),
                    "references": names,
                    "items": [item for name in names for item in shown[name]],
                }
            )
        found = {
            "audited": TABLES["audited"].of_rows(rows),
            "suspects": TABLES["suspects"].of_rows(self._suspect_rows(images, known)),
            "funnel": TABLES["funnel"].of_rows(self._funnel(confirmed)),
            "statistics": TABLES["statistics"].of_rows(
                [
                    *_statistics(rows, chosen, self.asked.guidance),
                    *(
                        _adapter_statistics(rows, by_scale, own, chosen, self.asked.guidance)
                        if len(by_scale) > 1
                        else []
                    ),
                    _statistic(
                        LAST,
                        "captions",
                        exact(sum(confirmed.last), len(confirmed.last)),
                        self.asked.guidance,
                    ),
                    _sure(*certain(confirmed.runs, images), self.asked.guidance),
                    *([] if members is None else [_inference(members, self.asked.guidance)]),
                ]
            ),
        }
        return found if len(by_scale) == 1 else found | {"scales": _scale_rows(rows, by_scale)}

    def _suspect_rows(self, images: Images, known: Suspects) -> list[dict[str, Any]]:
        """Return table `suspects`; the first few of each reason with their pictures."""
        captions, shown = self.captions, Counter[str]()
        found = list[dict[str, Any]]()
        for at in known.some.tolist():
            reasons = [name for name, some in known.reasons.items() if some[at]]
            item, twin = int(captions.firsts[at]), int(known.twin[at])
            pictures = [None, None]
            if min(shown[name] for name in reasons) < PICTURED:
                shown.update(reasons)
                places = (item, twin if TWINNED & {*reasons} else -1)
                pictures = [images.thumbnail(place) for place in places]
            found.append(
                {
                    "prompt_id": f"{captions.keys[at]:016x}",
                    "item": item,
                    "reasons": reasons,
                    "repeats": int(known.repeats[at]),
                    "twin": twin if twin >= 0 else None,
                    "alone": _nullable(float(known.alone[at])),
                    "image": pictures[0],
                    "twin_image": pictures[1],
                }
            )
        return found

    def _named(self, images: Images, references: Sequence[str]) -> dict[str, list[str]]:
        """Return the names of the items that show pictures, by picture."""
        order = np.argsort(images.names, kind="stable")
        ranked = images.names[order]
        places: dict[str, list[int]] = {}
        for name in references:
            ends = (np.searchsorted(ranked, np.uint64(int(name, 16)), s) for s in ("left", "right"))
            start, end = map(int, ends)
            places[name] = sorted(order[start:end].tolist())[:SHOWN]
        items = self.dataset.picked({place for some in places.values() for place in some})
        return {name: [items[place].name for place in some] for name, some in places.items()}

    def _funnel(self, confirmed: "_Confirmed") -> list[dict[str, Any]]:
        """Return what went through each stage, and at what price."""
        chosen, runs = confirmed.chosen, (*confirmed.runs, *confirmed.scales.values())
        spent = sum(map(_spent, runs)) + self.models * self._mean()
        stages = (
            ("read", len(self.dataset), len(self.captions), 0),
            ("screen", len(self.captions), len(chosen.finalists), self.screen_calls()),
            ("confirm", chosen.sampled + len(self.ordinary), chosen.sampled, spent),
        )
        if self.closer:
            look = "closer", self.closer, len(chosen.finalists), self.closer_calls()
            stages = (stages[0], (*stages[1][:2], self.closer, stages[1][3]), look, *stages[2:])
        if self.held_out is not None:
            sizes = (len(self.captions), len(Captions(self.held_out)))
            both = sum(min(size, INFERRED_ON) for size in sizes)
            members = "members", both, both, self.inference_calls()
            stages = (*stages[:-1], members, stages[-1])
        return [
            {"stage": stage, "items": items, "kept": kept, "network_calls": calls}
            for stage, items, kept, calls in stages
        ]


@dataclass(frozen=True)
class _Confirmed:
    """What was sampled in full.

    Attributes:
        runs: The studies, the suspicious first.
        scales: Those of the same captions at other scales of the LoRA.
        chosen: Which captions, and what was dropped.
        prompts: What was sampled, by name.
        found: What is known of each, by name.
        last: Whether each caption of the funnel's last round gives an image back.
    """

    runs: tuple[Run, ...]
    scales: Mapping[float, Run]
    chosen: Plan
    prompts: Mapping[str, Prompt]
    found: Mapping[str, Judgement]
    last: tuple[bool, ...]


def _spent(run: Run) -> int:
    """Return the network calls of a study's samples."""
    return sum(sum(part["network_calls"].to_pylist()) for part in run.parts("samples"))


def labels_of(chosen: Plan) -> dict[int, str]:
    """Return why each caption is sampled in full, by its place."""
    found = {int(at): why for at, why in zip(chosen.finalists, chosen.why, strict=True)}
    for label, some in zip(STRATA, chosen.drawn, strict=True):
        found |= {int(at): label for at in some}
    return found


def _copied(runs: Sequence[Run], measure: str) -> dict[str, dict[str, float]]:
    """Return the pictures that samples copy, and how near they come.

    Returns:
        Largest similarity by picture, by prompt_id.
    """
    found = defaultdict[str, dict[str, float]](dict)
    for run in runs:
        copies: dict[str, tuple[set[int], set[int]]] = {
            row["prompt_id"]: (set(row["own_seeds"] or ()), set(row["elsewhere_seeds"] or ()))
            for row in run.table("severity").to_pylist()
            if row["measure"] == measure and (row["own_seeds"] or row["elsewhere_seeds"])
        }
        best: dict[tuple[str, int, str], tuple[float, str]] = {}
        for part in run.parts("similarities"):
            for row in part.to_pylist():
                if row["measure"] != measure or row["prompt_id"] not in copies:
                    continue
                key = row["prompt_id"], row["seed"], row["relation"]
                if row["relation"] in ("own", "nearest"):
                    this = row["value"], row["reference_id"]
                    best[key] = max(this, best.get(key, this))
        for (prompt, seed, relation), (value, reference) in best.items():
            own, elsewhere = copies[prompt]
            if seed in (own if relation == "own" else elsewhere):
                found[prompt][reference] = max(value, found[prompt].get(reference, value))
    return found


def prevalence_of(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, bool | None], chosen: Plan
) -> Prevalence:
    """Return how many captions have a property, and how many of these are among the suspicious.

    Args:
        rows: Rows of table `audited`.
        found: Whether each prompt has it; None where that cannot be told.
        chosen: How they were chosen.
    """

    def stratum(size: int, *labels: str) -> Stratum:
        some = [found[row["prompt_id"]] for row in rows if row["chosen"] in labels]
        return Stratum(size, len(some), some.count(True), some.count(None))

    census = stratum(len(chosen.finalists), *SUSPICIOUS)
    strata = [stratum(len(some), label) for label, some in zip(STRATA, chosen.strata, strict=True)]
    return prevalence(census, strata)


def gives_back(state: str) -> bool | None:
    """Return whether a caption in a state gives an image back; None where that is unknown."""
    return None if state == "not judged" else state in GIVEN_BACK


def _statistics(
    rows: Sequence[Mapping[str, Any]], chosen: Plan, guidance: float
) -> list[dict[str, Any]]:
    """Return how many captions give an image back, and how many of these were found."""
    states = {row["prompt_id"]: gives_back(row["state"]) for row in rows}
    found = prevalence_of(rows, states, chosen)
    told = [(SHARE, "captions", found.share), (RECALL, "captions", found.recall)]
    ordinary = [states[row["prompt_id"]] for row in rows if row["chosen"] == ORDINARY]
    if ordinary:
        judged = len(ordinary) - ordinary.count(None)
        told.append((SHARE, "ordinary prompts", exact(ordinary.count(True), judged)))
    return [_statistic(name, population, value, guidance) for name, population, value in told]


def _adapter_statistics(
    rows: Sequence[Mapping[str, Any]],
    by_scale: Mapping[float, Mapping[str, Judgement]],
    own: float,
    chosen: Plan,
    guidance: float,
) -> list[dict[str, Any]]:
    """Return how many captions give an image back at each scale, and by the adapter alone."""
    states = {
        scale: {
            row["prompt_id"]: gives_back(judged.get(row["prompt_id"], NOT_JUDGED).state)
            for row in rows
        }
        for scale, judged in by_scale.items()
    }
    # Paired, caption by caption: with the adapter, and from the same noise not without it.
    added = {
        name: False if with_it is False or states[0.0][name] else
        None if with_it is None or states[0.0][name] is None else True
        for name, with_it in states[own].items()
    }  # fmt: skip
    told = [(ADDED, "captions", added)]
    told += [(SHARE, at_scale(scale), found) for scale, found in sorted(states.items())]
    return [
        _statistic(name, population, prevalence_of(rows, found, chosen).share, guidance)
        for name, population, found in told
    ]


def _scale_rows(
    rows: Sequence[Mapping[str, Any]], by_scale: Mapping[float, Mapping[str, Judgement]]
) -> pa.Table:
    """Return table `scales`."""
    return TABLES["scales"].of_rows(
        [
            {
                "prompt_id": row["prompt_id"],
                "lora_scale": scale,
                "state": found.state,
                "share": _nullable(found.share),
                "share_elsewhere": _nullable(found.share_elsewhere),
            }
            for row in rows
            for scale, judged in sorted(by_scale.items())
            for found in [judged.get(row["prompt_id"], NOT_JUDGED)]
        ]
    )


def _some(captions: Captions, label: str, seed: int) -> list[Prompt]:
    """Return captions at random with their image, under names that say which set they are of."""
    rng = np.random.default_rng(seed)
    known = [] if captions.usable is None else captions.usable[captions.firsts].nonzero()[0]
    chosen = set(rng.choice(known, min(INFERRED_ON, len(known)), replace=False).tolist())
    return [
        replace(prompt, prompt_id=f"{label}-{prompt.prompt_id}")
        for at, prompt in enumerate(captions)
        if at in chosen and prompt.images
    ]


def _inference(of: Inference, guidance: float) -> dict[str, Any]:
    method = of.reason or f"permutations, against {of.held_out} held-out items"
    return _statistic(INFERRED, "items", Estimate(of.p, np.nan, np.nan, of.items, method), guidance)


def _sure(sure: int, looked: int, guidance: float) -> dict[str, Any]:
    return _statistic(SURE, "samples", exact(sure, looked), guidance)


def _statistic(name: str, population: str, of: Estimate, guidance: float) -> dict[str, Any]:
    return {
        "analysis": ANALYSIS,
        "name": name,
        "population": population,
        "guidance": guidance,
        "value": _nullable(of.value),
        "low": _nullable(of.low),
        "high": _nullable(of.high),
        "n": of.n,
        "method": of.method,
    }


def _nullable(value: float) -> float | None:
    return value if np.isfinite(value) else None
