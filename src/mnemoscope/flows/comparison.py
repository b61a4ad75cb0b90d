"""A comparison of mitigations says what each buys, and at what price, on a model that memorized.

Flow: sample every prompt without mitigation and judge the samples (a study, or one that exists),
set thresholds on half of the controls, sample every prompt under every mitigation at several
strengths, compare. What is interrupted goes on. The folder then holds::

    study/                 the run folder of plain guidance, unless one was given
    trial/                 the run folder of all mitigations
    mitigations.parquet    table `mitigations`
    pairs.parquet          table `pairs`: samples before and after, for the page
    mitigations.md         the comparison to read
    mitigations-*.png      the comparison to look at, beside a PDF
    band.json              what guidance adds to ordinary prompts, level by level
    bench.json             what was asked, how prompts were judged, which thresholds were set

Contents: `Comparing`, `compare_mitigations`, `Compared`, `summary`; what `adversary` shares:
`Grounded`, `Ground`, `ground_of`, `Trial`, `TrialWorker`, `study_of`, `graded`, `with_thresholds`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float

from mnemoscope import __version__
from mnemoscope.core.stats import Estimate
from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, Piece, price_in
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.flows.alignment import judges_of
from mnemoscope.flows.memory import peak_bytes
from mnemoscope.flows.options import brought, loaded, recipe_of, values_of
from mnemoscope.flows.outcomes import Reading, mechanism_of, rows_of
from mnemoscope.flows.rows import Sat, sample_rows, similarity_rows
from mnemoscope.flows.study import (
    Notify,
    Study,
    StudyWorker,
    duration,
    seconds_a_row,
    study_prompts,
)
from mnemoscope.flows.study import run as run_study
from mnemoscope.mitigations import all_mitigations, parse
from mnemoscope.mitigations.base import Mitigation
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.ranking.markdown import shown, table
from mnemoscope.ranking.outcomes import Comparison, Outcome, compare
from mnemoscope.reporting.figures import save
from mnemoscope.reporting.fronts import FACTS, PAIRS, ROWS, fronts
from mnemoscope.reporting.mitigations import SHOWN
from mnemoscope.runs.execute import Rows, Unit
from mnemoscope.runs.executors import Execution
from mnemoscope.runs.folder import Run, Writer, open_run, write_atomically
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.records import sealed
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.recipe import Recipe
from mnemoscope.severity.grade import MASKED, assess
from mnemoscope.severity.truth import MEMORIZED_SHARE, Truth, require_both, truth_of
from mnemoscope.similarity import Similarity

PASS = 0.95
"""Share of ordinary prompts that a threshold lets pass."""

FEWEST = 5
"""Fewest prompts that set a threshold by themselves."""

MEMORIZED, OTHERS = "memorized", "others"

SHOWN_PROMPTS, SHOWN_SETTINGS = 6, 8
"""Most memorized prompts, and most settings, of which samples are shown before and after."""

BAND = "band.json"
"""File of what guidance adds to ordinary prompts, level by level."""


@dataclass(frozen=True)
class Grounded(Execution, Recipe, Source):
    """Which prompts of which model are sampled, and how memorized ones are told."""

    prompts: str | Path | None = option(
        None, "Prompt file with training images; the embedded model brings its own."
    )
    study: str | Path | None = option(None, "Run folder of a study without mitigation to use.")
    seeds: int = option(4, "Samples a prompt.")
    subset: int | None = option(
        None, "Use this many of the prompts, one control in four, spread over all levels."
    )
    levels: tuple[float, ...] = option(
        (), "Use the prompts planted at these levels alone, comma-separated, and controls."
    )
    controls: int | None = option(None, "Use this many controls.")
    ids: tuple[str, ...] = option((), "Use the prompts of these names alone, comma-separated.")
    similarity: tuple[str, ...] = option(
        ("l2", MASKED),
        "Similarity measures, comma-separated; the first says what counts as memorized.",
    )
    sscd: str | Path | None = option(None, "File of the SSCD network, TorchScript or ONNX.")
    cut: float = option(
        MEMORIZED_SHARE, "Share of samples that are copies if a prompt is memorized."
    )
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")
    out: str | Path = option("runs/mitigations", "Folder of the results.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        brought(self)
        if not 0 < self.cut <= 1:
            raise InputError(f"cut {self.cut} given; expected a share of samples in (0, 1]")
        if self.intervention is not None:
            raise InputError("name what is compared in `mitigations`; plain guidance is the rest")


@dataclass(frozen=True)
class Comparing(Grounded):
    """What to compare. Every field is an option of `mnemoscope bench mitigations`."""

    mitigations: tuple[str, ...] = option(
        ("all",),
        "Mitigations, comma-separated, as name, name:strength or name(setting=value,...); a plus "
        "chains several.",
    )
    ladder: bool = option(True, "Compare each at several strengths, or at its own alone.")
    judge: str = option(
        "auto",
        "Who says what pictures show: 'lab' is the lab's judge, which by itself judges the "
        "embedded model alone, 'none' is nobody.",
    )
    clip: str | Path | None = option(
        None, "Folder of a CLIP model, by which alignment is measured as well."
    )

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Comparing":
        """Make it of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


@dataclass(frozen=True)
class Trial(Study):
    """A study of several interventions at one guidance scale."""

    interventions: tuple[str, ...] = option((), "Interventions, each with its settings.")

    def recipes(self, model: Model) -> tuple[Recipe, ...]:
        """Return one recipe an intervention."""
        return tuple(
            recipe_of(self, model, guidance=self.guidance[0], intervention=parse(text))
            for text in self.interventions
        )


class TrialWorker(StudyWorker):
    """Does a trial's units: pictures, similarities, and what became of the mechanism."""

    def pieces(self, first: bool) -> tuple[Piece[Any], ...]:
        """Return the path's record and the pictures."""
        del first
        return WholePath(), Pictures()

    def manifest(self, prompts: PromptList) -> Manifest:
        """Say what is asked of which model; the mechanism's tables are not derived."""
        manifest = super().manifest(prompts)
        units = {name: count for name, count in manifest.units.items() if name != "mechanism"}
        return manifest.model_copy(update={"units": units})

    def reduce(self, unit: Unit, gathered: Sat) -> Rows:
        """Compare pictures, reduce the record to a few numbers a sample."""
        del unit
        named = [gathered.named(at) for at in gathered.ok]
        effects: dict[str, Any] = {
            "prompt_id": [prompt for prompt, _ in named],
            "seed": [seed for _, seed in named],
            "recipe": [gathered.recipe] * len(named),
        }
        found = gathered.found(WholePath())
        if named and found is not None:
            effects |= {name: _nullable(values) for name, values in mechanism_of(found).items()}
        return {
            "samples": sample_rows(gathered, gathered.bank.calls),
            "similarities": similarity_rows(gathered, self.references, self.indices, self.swapped),
            "effects": TABLES["effects"].of(effects),
        }


def _nullable(values: Float[np.ndarray, " sample"]) -> list[float | None]:
    return [float(value) if isfinite(value) else None for value in values]


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        rows: Every metric of every mitigation, plain guidance first.
        truth: Which prompts are memorized.
        thresholds: What was set on half of the controls, by setting.
        others: How many prompts are ordinary.
        held_out: Controls that did not set them, and how many of these are suspicious.
        accuracy: How far to trust what is said of alignment; empty where nothing is.
        pairs: Rows of table `pairs`.
        path: The folder.
    """

    rows: tuple[Comparison, ...]
    truth: Truth
    thresholds: Mapping[str, float]
    others: int
    held_out: tuple[int, int]
    accuracy: str
    pairs: list[dict[str, Any]]
    path: Path


def compare_mitigations(
    model: Model | str,
    prompts: str | Path | None = None,
    *,
    run: Run | None = None,
    notify: Notify | None = None,
    progress: bool = False,
    **options: Any,
) -> Compared:
    """Compare mitigations on a model.

    Args:
        model: The model, or its name.
        prompts: Prompt file whose prompts have training images; the embedded model brings its own.
        run: A study of these prompts, seeds and guidance scale without mitigation; one is made
            where not given.
        notify: Told what is going on.
        progress: Whether to draw progress bars on standard error.
        **options: Further fields of `Comparing`: mitigations, seeds, guidance, steps, out ...

    Returns:
        The comparison; samples are paired, seed by seed, with those without mitigation.

    Raises:
        InputError: If prompts have no images, none or all are memorized, or an option is wrong.
        RunError: If a folder cannot be used.
    """
    name = model if isinstance(model, str) else model.name
    asked = Comparing(model=name, prompts=None if prompts is None else str(prompts), **options)
    methods = chosen(asked.mitigations)
    judges = judges_of(name, asked.judge, asked.clip)
    known = loaded(asked) if isinstance(model, str) else model

    def price(prompts: int, plain: bool) -> str:
        return _price(asked, known, _ladder(methods, {}, asked.ladder), prompts, plain)

    ground = ground_of(asked, known, run, price=price, notify=notify, progress=progress)
    truth, held = ground.truth, ground.prompts
    settings = _ladder(methods, ground.settings, asked.ladder)
    trial = study_of(
        asked, Trial, "trial", similarity=ground.similarity, interventions=tuple(map(str, settings))
    )
    done = run_study(
        trial, model=known, work=TrialWorker, derive=graded, notify=notify, progress=progress
    )
    texts = {prompt.prompt_id: prompt for prompt in held}
    read = Reading(truth, texts, asked.seeds, judges, truth.measure).outcomes(
        ground.run, ground.recipe, done
    )
    pairs = _pairs(ground, done, read, texts)
    first = next(iter(held))
    base, *others = [
        _remembering(one, known, recipe_of(asked, known, intervention=setting), first)
        for one, setting in zip(read, (None, *settings), strict=True)
    ]
    flagged = ground.scores > ground.thresholds["threshold"]
    others += [one.behind(base, flagged) for one in others]
    populations = {
        MEMORIZED: truth.judged & truth.memorized,
        OTHERS: ground.ordinary,
    }
    rows = compare(others, base, populations, seed=asked.seed)
    accuracy = "; ".join(one.accuracy for one in judges)
    found = Compared(
        tuple(rows), truth, ground.thresholds, int(ground.ordinary.sum()), ground.held_out,
        accuracy, pairs, Path(asked.out),
    )  # fmt: skip
    _write(found, known, asked)
    return found


@dataclass(frozen=True)
class Ground:
    """What mitigations are held against: plain guidance, judged, and what it sets.

    Attributes:
        run: The run without mitigation.
        recipe: Its recipe.
        truth: Which prompts are memorized.
        prompts: The prompts.
        similarity: Measures, the primary one first.
        ordinary: Which are ordinary: controls where there are some, else all not memorized.
        scores: First-call score of each prompt.
        thresholds: What was set on half of the controls, by setting.
        held_out: Controls that did not set them, and how many of these are suspicious.
        band: File of what guidance adds to those that set them.
    """

    run: Run
    recipe: str
    truth: Truth
    prompts: PromptList
    similarity: tuple[str, ...]
    ordinary: Bool[np.ndarray, " prompt"]
    scores: Float[np.ndarray, " prompt"]
    thresholds: Mapping[str, float]
    held_out: tuple[int, int]
    band: Path

    @property
    def settings(self) -> dict[str, float | str]:
        """Return what was set, by the settings of mitigations that take it."""
        return {**self.thresholds, "band": str(self.band)}

    @property
    def memorized(self) -> dict[str, float]:
        """Return the prompts that are memorized, with their first-call scores."""
        here = self.truth.judged & self.truth.memorized
        each = zip(self.truth.prompt_id, self.scores.tolist(), here, strict=True)
        return {name: score for name, score, memorized in each if memorized}


def _pairs(
    ground: Ground, trial: Run, read: Sequence[Outcome], texts: Mapping[str, Prompt]
) -> list[dict[str, Any]]:
    """Return rows of table `pairs`: a copy of some memorized prompts, and what became of it.

    Settings are those that leave most right and new, or the fewest copies where nobody can tell.
    """
    plain, *others = read
    held = np.flatnonzero(ground.truth.judged & ground.truth.memorized)
    chosen = held[np.linspace(0, len(held) - 1, min(SHOWN_PROMPTS, len(held))).round().astype(int)]

    def worth(at: int) -> float:
        right, copies = (others[at].values[name][held] for name in ("right_new", "copies"))
        return float(np.nanmean(right) if np.isfinite(right).any() else 1 - np.nanmean(copies))

    best = sorted(range(len(others)), key=worth, reverse=True)[:SHOWN_SETTINGS]
    keys = list(trial.recipes)
    seeds = {
        ground.truth.prompt_id[place]: int(np.nanargmax(plain.values["copies"][place]))
        for place in chosen.tolist()
    }
    before = _images(ground.run, ground.recipe, seeds)
    after = {at: _images(trial, keys[at], seeds) for at in best}
    rows: list[dict[str, Any]] = []
    for place in chosen.tolist():
        name = ground.truth.prompt_id[place]
        seed = seeds[name]
        for at in (at for at in best if name in before and name in after[at]):
            told = {m: others[at].values[m][place, seed] for m in ("copies", "right")}
            rows.append({
                "prompt_id": name, "prompt": texts[name].text, "seed": seed,
                "setting": others[at].setting, "before": before[name], "after": after[at][name],
                "copied": bool(plain.values["copies"][place, seed] > 0),
                "copies": bool(told["copies"] > 0),
                "right": bool(told["right"]) if isfinite(told["right"]) else None,
            })  # fmt: skip
    return rows


def _images(run: Run, recipe: str, seeds: Mapping[str, int]) -> dict[str, bytes]:
    """Return the picture of one sample of each prompt, those that have one."""
    return {
        row["prompt_id"]: row["image"]
        for row in rows_of(run, "samples", recipe, "prompt_id", "seed", "status", "image")
        if seeds.get(row["prompt_id"]) == row["seed"] and row["status"] == "ok"
    }


def ground_of(
    asked: Grounded,
    model: Model,
    run: Run | None,
    *,
    price: Callable[[int, bool], str],
    notify: Notify | None = None,
    progress: bool = False,
) -> Ground:
    """Sample without mitigation, or take the run that did, and judge.

    Args:
        asked: What to compare.
        model: The model.
        run: A study without mitigation, where there is one.
        price: Says what all of it costs, by the number of prompts and whether there is no study.
        notify: Told the price first.
        progress: Whether to draw progress bars.

    Raises:
        InputError: If the study cannot be paired with, or none or all prompts are memorized.
    """
    if run is None and asked.study is not None:
        run = open_run(asked.study)
    similarity = asked.similarity
    if run is not None:
        # What was measured without mitigation is what can be compared.
        measures = tuple(map(str, run.manifest.options["similarity"]))
        similarity = tuple(dict.fromkeys((measures[0], *({MASKED} & {*measures}))))
    plain: Study = study_of(asked, Study, "study", similarity=similarity)
    held, _ = study_prompts(plain)
    recipe = None if run is None else _paired(run, asked, model, held)
    (notify or (lambda line: None))(price(len(held), run is None))
    if run is None or recipe is None:
        run = run_study(plain, model=model, notify=notify, progress=progress)
        recipe = next(iter(run.recipes))
    truth = truth_of(
        run, guidance=asked.guidance, measure=similarity[0], cut=asked.cut, recipe=recipe
    )
    # Said before the sampling, which is what takes long.
    require_both(truth)
    ordinary = _ordinary(truth, held)
    half = ordinary & truth.half(asked.seed)
    # With few prompts one half may be empty.
    setting = half if half.sum() >= FEWEST else ordinary
    resting = ordinary & ~setting
    scores, thresholds, levels = _thresholds(run, recipe, truth, setting)
    over = int((scores[resting] > thresholds["threshold"]).sum())
    band = Path(asked.out) / BAND
    write_atomically(band, json.dumps({"band": levels}).encode())
    held_out = int(resting.sum()), over
    return Ground(
        run, recipe, truth, held, similarity, ordinary, scores, thresholds, held_out, band
    )


def _ordinary(truth: Truth, prompts: PromptList) -> Bool[np.ndarray, " prompt"]:
    """Return which prompts are ordinary.

    One that was planted and is just short of memorized is not: it would lift the threshold above
    what it is to catch. So these are the controls, where the list has enough.
    """
    others = truth.judged & ~truth.memorized
    controls = others & np.array([prompt.group == "control" for prompt in prompts])
    return controls if controls.sum() >= FEWEST else others


def _remembering(one: Outcome, model: Model, recipe: Recipe, prompt: Prompt) -> Outcome:
    """Add to an outcome what a sample of it takes of memory, by two calls for one prompt."""
    bank = Bank(model, recipe, seeds := one.values["seconds"].shape[1])
    taken = peak_bytes(
        lambda: sit(bank, [prompt], [0], [PathRecord(2)]), torch.device(model.device)
    )
    memory = np.where(np.isfinite(one.values["seconds"]), taken / seeds / 2**20, nan)
    return replace(one, values={**one.values, "memory": memory})


def _price(
    asked: Comparing, model: Model, settings: Sequence[Intervention], prompts: int, plain: bool
) -> str:
    """Say what a comparison costs, all of it."""
    asking = [*([None] if plain else []), *settings]
    banks = [
        Bank(model, recipe_of(asked, model, intervention=one), asked.seeds, asked.batch)
        for one in asking
    ]
    calls = prompts * sum(price_in(bank, (WholePath(),)).calls for bank in banks)
    return (
        f"{len(settings)} settings x {prompts} prompts x {asked.seeds} seeds"
        f"{', and as many without mitigation' if plain else ''}: {calls:,} network calls, about "
        f"{duration(calls * seconds_a_row(banks[0]))} on {model.device}; what is on disk already "
        "is not sampled again"
    )


def chosen(names: Sequence[str]) -> dict[Intervention, bool]:
    """Return mitigations by name, and whether their settings are to be kept.

    Those given with a strength or in brackets are. "all" stands for every method that needs no
    file of the user's.

    Raises:
        InputError: If a name is unknown.
    """
    found: dict[Intervention, bool] = {}
    for name in names:
        if name == "all":
            ready = (kind() for kind in all_mitigations().values() if not kind.files)
            found |= dict.fromkeys(ready, False)
        else:
            found[parse(name)] = "(" in name or ":" in name
    return found


def study_of(asked: Grounded, kind: type[Any], folder: str, **more: Any) -> Any:
    """Return the study of one part of a comparison."""
    passed = (
        "scheduler", "steps", "eta", "noise", "seed", "seeds", "batch", "subset", "levels",
        "controls", "ids", "prompts", "sscd",
    )  # fmt: skip
    return kind(
        **{f.name: getattr(asked, f.name) for f in (*fields(Source), *fields(Execution))},
        **{name: getattr(asked, name) for name in passed}
        | {"guidance": (asked.guidance,), "probes": False, "detectors": ("none",)}
        | {"out": str(Path(asked.out) / folder)}
        | more,
    )


def _paired(run: Run, asked: Grounded, model: Model, prompts: PromptList) -> str:
    """Return the recipe of a study that samples can be paired with.

    Raises:
        InputError: If it is of another model or other prompts, or was sampled in another way.
    """
    told = f"the study in {str(run.path)!r}"
    if run.manifest.model["digest"] != model.digest:
        raise InputError(f"{told} is of another model than {model.name!r}")
    options = run.manifest.options
    for name in ("seeds", "steps", "eta", "seed", "noise"):
        if options[name] != getattr(asked, name):
            raise InputError(
                f"{told} has {name} {options[name]}, and {name} "
                f"{getattr(asked, name)} was asked for; give --{name} {options[name]}"
            )
    names = run.table("prompts", ["prompt_id"])["prompt_id"].to_pylist()
    if names != [prompt.prompt_id for prompt in prompts]:
        raise InputError(
            f"{told} has {len(names)} prompts, and others than the {len(prompts)} asked for; give "
            "its own --prompts, or its --subset, --levels and --controls"
        )
    for key, row in run.recipes.items():
        if row["guidance"] == asked.guidance and row["intervention"] is None:
            return key
    held = sorted({row["guidance"] for row in run.recipes.values()})
    raise InputError(f"{told} holds guidance {held}; give --guidance one of these")


def _thresholds(
    run: Run, recipe: str, truth: Truth, setting: Bool[np.ndarray, " prompt"]
) -> tuple[Float[np.ndarray, " prompt"], dict[str, float], list[tuple[float, float]]]:
    """Return the first-call score of each prompt, and what some of the ordinary ones set.

    Returns:
        Mean score of each prompt; `threshold`, the largest score of an ordinary prompt, and
        `target`, the median gap of the noise estimates; and the band, the largest rms of
        x0_c - x0_u at each level.
    """
    gram, keys = run.gram(law="path", recipe=recipe)
    root = gram.d**0.5
    scores = (gram.square({"x0_c": 1.0, "x0_u": -1.0}).sqrt() / root).numpy()
    gap = (gram.square("gap")[:, 0].sqrt() / root).numpy()
    whose = np.asarray(keys["prompt_id"])
    means = np.full((len(truth.prompt_id), scores.shape[1]), nan)
    for at, name in enumerate(truth.prompt_id):
        if (whose == name).any():
            means[at] = scores[whose == name].mean(axis=0)
    named = {name for name, here in zip(truth.prompt_id, setting, strict=True) if here}
    widths = np.nanquantile(means[setting], PASS, axis=0)
    band: dict[float, float] = {}
    for alpha, width in zip(gram.level.alpha.tolist(), widths.tolist(), strict=True):
        # Heun calls twice at a level.
        band[alpha] = max(width, band.get(alpha, 0.0))
    thresholds = {
        "threshold": float(widths[0]),
        "target": float(np.median(gap[np.isin(whose, list(named))])),
    }
    return means[:, 0], thresholds, sorted(band.items())


def _ladder(
    methods: Mapping[Intervention, bool], thresholds: Mapping[str, float | str], ladder: bool
) -> list[Intervention]:
    """Return every method at every strength, with the thresholds it has a setting for.

    A threshold or a strength that was given is kept.
    """
    found: dict[str, Intervention] = {}
    for method, kept in methods.items():
        one = with_thresholds(method, thresholds)
        settings = [one]
        if isinstance(one, Mitigation) and ladder and not kept:
            settings = [one.at(strength) for strength in one.strengths]
        found |= {str(setting): setting for setting in settings}
    return list(found.values())


def with_thresholds(method: Intervention, thresholds: Mapping[str, float | str]) -> Intervention:
    """Return a method, or a chain of them, with the thresholds that it has a setting for."""
    if isinstance(method, Chain):
        return Chain(tuple(with_thresholds(part, thresholds) for part in method.parts))
    if not isinstance(method, Mitigation):
        return method
    default = type(method)().settings
    unset = {
        name: value
        for name, value in thresholds.items()
        if name in default and method.settings[name] == default[name]
    }
    return replace(method, **unset)


def graded(writer: Writer, manifest: Manifest, loaded: Mapping[str, Similarity]) -> None:
    """Write the severity of a trial, and nothing else that is derived."""
    writer.append("severity", assess(Run(writer.path, manifest), loaded=loaded))


def summary(found: Compared) -> str:
    """Return the comparison with what it rests on, as Markdown."""
    truth = found.truth
    yes, _ = truth.count(truth.judged)
    head = [
        f"{yes} memorized prompts (at least {truth.cut:.0%} of their samples are copies by "
        f"{truth.measure} at guidance {truth.guidance:g}), {found.others} others. Intervals: 95 %, "
        "percentile bootstrap over prompts and seeds. Suspicious: a first-call score above "
        f"{found.thresholds['threshold']:.3g}, which {PASS:.0%} of the ordinary prompts that set "
        f"it do not exceed, and {found.held_out[1]} of {found.held_out[0]} that did not set it do.",
        "",
        f"Alignment: {found.accuracy}." if found.accuracy else "Alignment: no judge, withheld.",
        "",
    ]
    for gated, title in (
        (False, "On every prompt"),
        (True, "On suspicious prompts alone (the detector in front)"),
    ):
        head += [f"## {title}", "", *_tables(found, gated)]
    return "\n".join(head)


def _tables(found: Compared, gated: bool) -> list[str]:
    parts: list[str] = []
    for population, metrics in SHOWN.items():
        here = [
            row
            for row in found.rows
            if row.population == population
            and (row.outcome.gated == gated or not row.outcome.setting)
        ]
        known = {(row.outcome.setting, row.metric): row.value for row in here}
        kept = [pair for pair in metrics if any(metric == pair[0] for _, metric in known)]
        names = dict.fromkeys(row.outcome.setting for row in here)
        lines = [
            [f"`{name or 'none'}`", *(shown(known.get((name, metric))) for metric, _ in kept)]
            for name in names
        ]
        parts += [
            f"### {population.removesuffix('s').capitalize()} prompts",
            "",
            table(["mitigation", *(title for _, title in kept)], lines),
            "",
        ]
    return parts


def _write(found: Compared, model: Model, asked: Comparing) -> None:
    """Write table, text, figures and facts."""
    rows: list[dict[str, Any]] = [
        {
            "setting": row.outcome.setting,
            "method": row.outcome.method,
            "strength": None if not isfinite(row.outcome.strength) else row.outcome.strength,
            "gated": row.outcome.gated,
            "population": row.population,
            "metric": row.metric,
            **_numbers(row.value, ("value", "low", "high")),
            **_numbers(row.change, ("change", "change_low", "change_high")),
            "prompts": row.value.n,
            "method_of_interval": row.value.method,
            "reason": row.value.reason or row.change.reason or None,
        }
        for row in found.rows
    ]
    origins = {
        row.outcome.setting: "ours" if row.outcome.source.startswith("ours") else "published"
        for row in found.rows
        if row.outcome.setting
    }
    found.path.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for file, name, told in ((ROWS, "mitigations", rows), (PAIRS, "pairs", found.pairs)):
        sink = io.BytesIO()
        pq.write_table(TABLES[name].of_rows(told), sink, compression="zstd")
        write_atomically(found.path / file, sink.getvalue())
        digests[file] = hashlib.sha256(sink.getvalue()).hexdigest()
    write_atomically(found.path / "mitigations.md", summary(found).encode())
    panels = {f"mitigations-{name}": [panel] for name, panel in fronts(rows, origins).items()}
    if panels:
        save(panels, found.path / "mitigations.pdf")
    yes, _ = found.truth.count(found.truth.judged)
    facts = {
        "mnemoscope": __version__,
        "model": {"name": model.name, "digest": model.digest},
        "seeds": asked.seeds,
        "guidance": asked.guidance,
        "steps": asked.steps,
        "seed": asked.seed,
        "measure": found.truth.measure,
        "cut": found.truth.cut,
        "memorized": yes,
        "others": found.others,
        "left_out": len(found.truth.prompt_id) - yes - found.others,
        "thresholds": found.thresholds,
        "held_out": list(found.held_out),
        "alignment": found.accuracy,
        "origins": origins,
        "files": digests,
    }
    write_atomically(found.path / FACTS, sealed(facts))


def _numbers(of: Estimate, names: tuple[str, str, str]) -> dict[str, float | None]:
    told = (of.value, of.low, of.high)
    return {n: v if isfinite(v) else None for n, v in zip(names, told, strict=True)}
