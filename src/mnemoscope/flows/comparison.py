"""A comparison of mitigations says what each buys, and at what price, on a model that memorized.

Flow: sample every prompt without mitigation and judge the samples (a study, or one that exists),
set thresholds on half of the prompts that are not memorized, sample every prompt under every
mitigation at several strengths, compare. What is interrupted goes on. The folder then holds::

    study/                 the run folder of plain guidance, unless one was given
    trial/                 the run folder of all mitigations
    mitigations.parquet    table `mitigations`
    mitigations.md         the comparison to read
    mitigations-*.png      the comparison to look at, beside a PDF
    bench.json             what was asked, how prompts were judged, which thresholds were set

Contents: `Comparing`, `Trial`, `compare_mitigations`, `Compared`, `summary`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope import __version__
from mnemoscope.core.gram import Gram
from mnemoscope.core.stats import Estimate
from mnemoscope.data.images import decode
from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.errors import InputError
from mnemoscope.evidence import Piece
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.flows.alignment import Judge, judge_of
from mnemoscope.flows.options import brought, loaded, recipe_of, values_of
from mnemoscope.flows.rows import Sat, sample_rows, similarity_rows
from mnemoscope.flows.study import Notify, Study, StudyWorker, study_prompts
from mnemoscope.flows.study import run as run_study
from mnemoscope.mitigations import all_mitigations, parse
from mnemoscope.mitigations.base import Mitigation
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.ranking.markdown import shown, table
from mnemoscope.ranking.outcomes import Comparison, Outcome, Values, compare
from mnemoscope.reporting.figures import save
from mnemoscope.reporting.fronts import fronts
from mnemoscope.runs.execute import Rows, Unit
from mnemoscope.runs.executors import Execution
from mnemoscope.runs.folder import Run, Writer, open_run, write_atomically
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.recipe import Recipe
from mnemoscope.severity.grade import MASKED, assess
from mnemoscope.severity.truth import MEMORIZED_SHARE, Truth, require_both, truth_of
from mnemoscope.similarity import Similarity

PASS = 0.95
"""Share of ordinary prompts that a threshold lets pass."""

MEMORIZED, OTHERS = "memorized", "others"


@dataclass(frozen=True)
class Comparing(Execution, Recipe, Source):
    """What to compare. Every field is an option of `mnemoscope bench mitigations`."""

    prompts: str | Path | None = option(
        None, "Prompt file with training images; the embedded model brings its own."
    )
    study: str | Path | None = option(None, "Run folder of a study without mitigation to use.")
    mitigations: tuple[str, ...] = option(
        ("all",), "Mitigations, comma-separated, with settings in brackets; a plus chains several."
    )
    ladder: bool = option(True, "Compare each at several strengths, or at its own alone.")
    seeds: int = option(4, "Samples a prompt.")
    subset: int | None = option(
        None, "Use this many embedded prompts, one control in four, spread over all levels."
    )
    cut: float = option(
        MEMORIZED_SHARE, "Share of samples that are copies if a prompt is memorized."
    )
    out: str | Path = option("runs/mitigations", "Folder of the results.")
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")

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


def mechanism_of(gram: Gram) -> dict[str, Float[np.ndarray, " sample"]]:
    """Return what the founding paper looks at, a number a sample: k, w0 and wT.

    Source: Kim et al. 2025, sections 4.2 and 5.
    """
    believed = gram.fit("x0_g", ["target"]).weights[:, 0, 0]
    states = gram.states()
    weights = states.fit("x", ["target", "x_T"]).weights
    above = (weights[..., 0] - states.level.alpha).amax(dim=1)
    below = (states.level.sigma - weights[..., 1]).amax(dim=1)
    return {"k": believed.numpy(), "w0": above.numpy(), "wT": below.numpy()}


def _nullable(values: Float[np.ndarray, " sample"]) -> list[float | None]:
    return [float(value) if isfinite(value) else None for value in values]


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        rows: Every metric of every mitigation, plain guidance first.
        truth: Which prompts are memorized.
        thresholds: What was set on half of the ordinary prompts, by setting.
        accuracy: How far to trust what is said of alignment; empty where nothing is.
        path: The folder.
    """

    rows: tuple[Comparison, ...]
    truth: Truth
    thresholds: Mapping[str, float]
    accuracy: str
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
    known = loaded(asked) if isinstance(model, str) else model
    if run is None and asked.study is not None:
        run = open_run(asked.study)
    plain = _study(asked, Study, "study")
    if run is None:
        run = run_study(plain, model=known, notify=notify, progress=progress)
    _check(run, asked, known)
    measure = str(run.manifest.options["similarity"][0])
    recipe = next(
        key
        for key, row in run.recipes.items()
        if row["guidance"] == asked.guidance and row["intervention"] is None
    )
    truth = truth_of(run, guidance=asked.guidance, measure=measure, cut=asked.cut, recipe=recipe)
    # Said before the sampling, which is what takes long.
    require_both(truth)
    scores, thresholds = _thresholds(run, recipe, asked.seed, truth)
    settings = _ladder(methods, thresholds, asked.ladder)
    trial = _study(asked, Trial, "trial", interventions=tuple(map(str, settings)))
    done = run_study(
        trial, model=known, work=TrialWorker, derive=_graded, notify=notify, progress=progress
    )
    judge = judge_of(name)
    held, _ = study_prompts(plain)
    table_of = _Samples(truth, held, asked.seeds, judge, measure, run)
    base = table_of.outcome(run, recipe, None)
    others = [
        table_of.outcome(done, key, parse(str(row["intervention"])), base)
        for key, row in done.recipes.items()
    ]
    flagged = scores > thresholds["threshold"]
    others += [one.behind(base, flagged) for one in others]
    populations = {
        MEMORIZED: truth.judged & truth.memorized,
        OTHERS: truth.judged & ~truth.memorized,
    }
    rows = compare(others, base, populations, seed=asked.seed)
    accuracy = "" if judge is None else judge.accuracy
    found = Compared(tuple(rows), truth, thresholds, accuracy, Path(asked.out))
    _write(found, known, asked)
    return found


def chosen(names: Sequence[str]) -> dict[Intervention, bool]:
    """Return mitigations by name, and whether their settings are to be kept.

    Those given in brackets are. "all" stands for every method that needs no file of the user's.

    Raises:
        InputError: If a name is unknown.
    """
    found: dict[Intervention, bool] = {}
    for name in names:
        if name == "all":
            ready = (kind() for kind in all_mitigations().values() if not kind.files)
            found |= dict.fromkeys(ready, False)
        else:
            found[parse(name)] = "(" in name
    return found


def _study(asked: Comparing, kind: type[Any], folder: str, **more: Any) -> Any:
    """Return the study of one part of a comparison."""
    passed = ("scheduler", "steps", "eta", "noise", "seed", "seeds", "batch", "subset", "prompts")
    return kind(
        **{f.name: getattr(asked, f.name) for f in (*fields(Source), *fields(Execution))},
        **{name: getattr(asked, name) for name in passed},
        guidance=(asked.guidance,),
        probes=False,
        detectors=("none",),
        out=str(Path(asked.out) / folder),
        **more,
    )


def _check(run: Run, asked: Comparing, model: Model) -> None:
    """Refuse a study that samples cannot be paired with.

    Raises:
        InputError: If it is of another model, or was sampled in another way.
    """
    if run.manifest.model["digest"] != model.digest:
        raise InputError(f"the study in {str(run.path)!r} is of another model than {model.name!r}")
    options = run.manifest.options
    for name in ("seeds", "steps", "eta", "seed", "noise"):
        if options[name] != getattr(asked, name):
            raise InputError(
                f"the study in {str(run.path)!r} has {name} {options[name]}, and {name} "
                f"{getattr(asked, name)} was asked for; give --{name} {options[name]}"
            )


def _thresholds(
    run: Run, recipe: str, seed: int, truth: Truth
) -> tuple[Float[np.ndarray, " prompt"], dict[str, float]]:
    """Return the first-call score of each prompt, and what half of the ordinary ones set.

    Returns:
        Mean score of each prompt; `threshold`, the largest score of an ordinary prompt, and
        `target`, the median gap of the noise estimates.
    """
    gram, keys = run.gram(law="path", recipe=recipe)
    root = gram.d**0.5
    score = (gram.square({"x0_c": 1.0, "x0_u": -1.0})[:, 0].sqrt() / root).numpy()
    gap = (gram.square("gap")[:, 0].sqrt() / root).numpy()
    whose = np.asarray(keys["prompt_id"])
    means = np.array(
        [score[whose == name].mean() if (whose == name).any() else nan for name in truth.prompt_id]
    )
    ordinary = truth.judged & ~truth.memorized
    half = ordinary & truth.half(seed)
    # With few prompts one half may be empty.
    setting = half if half.sum() >= 5 else ordinary
    named = {name for name, here in zip(truth.prompt_id, setting, strict=True) if here}
    rows = np.isin(whose, list(named))
    return means, {
        "threshold": float(np.quantile(means[setting & np.isfinite(means)], PASS)),
        "target": float(np.median(gap[rows])),
    }


def _ladder(
    methods: Mapping[Intervention, bool], thresholds: Mapping[str, float], ladder: bool
) -> list[Intervention]:
    """Return every method at every strength, with the thresholds it has a setting for.

    A threshold or a strength that was given is kept.
    """
    found: dict[str, Intervention] = {}
    for method, kept in methods.items():
        settings = [method]
        if isinstance(method, Mitigation):
            default = type(method)().settings
            unset = {
                name: value
                for name, value in thresholds.items()
                if name in default and method.settings[name] == default[name]
            }
            one = replace(method, **unset)
            settings = [one.at(s) for s in one.strengths] if ladder and not kept else [one]
        found |= {str(setting): setting for setting in settings}
    return list(found.values())


def _graded(writer: Writer, manifest: Manifest, loaded: Mapping[str, Similarity]) -> None:
    writer.append("severity", assess(Run(writer.path, manifest), loaded=loaded))


def _rows(run: Run, name: str, recipe: str) -> list[dict[str, Any]]:
    """Return the rows of a table that are of a recipe; a run may hold a hundred of them."""
    # A unit is named by where it begins in the list and by its recipe.
    units = [unit for unit in run.units(name) if unit.endswith(f"-{recipe}")]
    return [row for unit in units for row in run.part(name, unit).to_pylist()]


class _Samples:
    """Brings the samples of runs into one order: prompts as the truth has them, seeds within.

    Args:
        truth: The prompts.
        prompts: The same with their texts.
        seeds: Samples a prompt.
        judge: What says whether pictures show what captions name.
        measure: The primary similarity measure.
        run: The run of plain guidance, whose thresholds hold for all.
    """

    def __init__(
        self,
        truth: Truth,
        prompts: PromptList,
        seeds: int,
        judge: Judge | None,
        measure: str,
        run: Run,
    ) -> None:
        held: dict[str, Prompt] = {prompt.prompt_id: prompt for prompt in prompts}
        self.prompts = [held[name] for name in truth.prompt_id]
        self.place = {name: at for at, name in enumerate(truth.prompt_id)}
        self.shape = (len(self.prompts), seeds)
        self.ordinary = truth.judged & ~truth.memorized
        self.judge = judge
        self.measures = (measure, MASKED)
        self.thresholds = {
            row["measure"]: row["threshold"] for row in run.table("null").to_pylist()
        }
        self.plain: Float[Tensor, "prompt seed 3 h w"] | None = None

    def outcome(self, run: Run, recipe: str, by: Any, base: Outcome | None = None) -> Outcome:
        """Return the outcome under one recipe of a run."""
        rows = _rows(run, "samples", recipe)
        values = {name: self._empty() for name in ("network_calls", "seconds", "saturation")}
        images: Tensor | None = None
        for row in rows:
            at = self.place.get(row["prompt_id"]), row["seed"]
            if at[0] is None or row["status"] != "ok":
                continue
            picture = decode(row["image"])
            if images is None:
                images = torch.full((*self.shape, *picture.shape), torch.nan)
            images[at] = picture
            values["network_calls"][at] = row["network_calls"]
            values["seconds"][at] = row["seconds"]
        if images is None:
            raise InputError(f"no sample of {recipe} was finished")
        values |= self._similar(run, recipe)
        values |= self._looks(images, base)
        values |= self._mechanism(run, recipe, base is None)
        right = values["right"]
        values["right_new"] = np.where(np.isfinite(right), right * (1 - values["copies"]), nan)
        several = isinstance(by, Mitigation)
        return Outcome(
            "" if by is None else str(by),
            "plain" if by is None else (by.name if several else str(by)),
            by.strength if several else nan,
            "" if by is None else by.source,
            False,
            values,
        )

    def _empty(self) -> Values:
        return np.full(self.shape, nan)

    def _similar(self, run: Run, recipe: str) -> dict[str, Values]:
        own = {measure: self._empty() for measure in self.measures}
        near = {measure: self._empty() for measure in self.measures}
        for row in _rows(run, "similarities", recipe):
            place = self.place.get(row["prompt_id"])
            if row["measure"] not in self.measures or place is None or row["value"] is None:
                continue
            if row["relation"] not in ("own", "nearest"):
                continue
            side = own if row["relation"] == "own" else near
            held = side[row["measure"]]
            at = place, row["seed"]
            held[at] = np.fmax(held[at], row["value"])
        first = self.measures[0]

        def exceeds(values: Mapping[str, Values], suffix: str) -> Values:
            found = self._empty()
            for measure, held in values.items():
                cut = self.thresholds.get(f"{measure}{suffix}")
                if cut is not None:
                    told = np.where(np.isfinite(held), (held > cut).astype(float), nan)
                    found = np.fmax(found, told)
            return found

        reproduced, elsewhere = exceeds(own, ""), exceeds(near, ":nearest")
        return {
            "severity": own[first],
            "reproduced": reproduced,
            "copies": np.fmax(reproduced, elsewhere),
        }

    def _looks(
        self, images: Float[Tensor, "prompt seed 3 h w"], base: Outcome | None
    ) -> dict[str, Values]:
        prompts, seeds = self.shape
        flat = images.flatten(0, 1)
        fine = torch.isfinite(flat).flatten(1).all(dim=1)
        right = np.full(prompts * seeds, nan)
        if self.judge is not None:
            every = [prompt for prompt in self.prompts for _ in range(seeds)]
            told = self.judge.right(torch.nan_to_num(flat), every)
            right = np.where(fine.numpy(), told, nan)
        pairs = (images[:, :, None] - images[:, None]).square().flatten(3).mean(3).sqrt()
        pairs[:, torch.eye(seeds, dtype=torch.bool)] = torch.nan
        diversity = pairs.nanmean(dim=2).double().numpy()
        found = {
            "right": right.reshape(self.shape),
            "diversity": diversity,
            "saturation": (images.amax(2) - images.amin(2)).mean((2, 3)).double().numpy(),
        }
        if base is None:
            self.plain = images
        assert self.plain is not None, "plain guidance comes first"
        moved = (images - self.plain).square().flatten(2).mean(2).sqrt().double().numpy()
        usual = (base.values if base else found)["diversity"][self.ordinary]
        apart = float(np.nanmean(usual)) if np.isfinite(usual).any() else 0.0
        found["changed"] = moved / apart if apart > 0 else self._empty()
        found["identical"] = np.where(np.isfinite(moved), (moved == 0).astype(float), nan)
        return found

    def _mechanism(self, run: Run, recipe: str, plain: bool) -> dict[str, Values]:
        found = {name: self._empty() for name in ("k", "w0", "wT")}
        if plain:
            gram, keys = run.gram(law="path", recipe=recipe)
            told = mechanism_of(gram)
            rows = zip(keys["prompt_id"], keys["seed"], *told.values(), strict=True)
        else:
            rows = (
                (row["prompt_id"], row["seed"], row["k"], row["w0"], row["wT"])
                for row in _rows(run, "effects", recipe)
            )
        for prompt, seed, *numbers in rows:
            if prompt in self.place:
                for name, number in zip(found, numbers, strict=True):
                    found[name][self.place[prompt], seed] = nan if number is None else number
        return found


def summary(found: Compared) -> str:
    """Return the comparison with what it rests on, as Markdown."""
    truth = found.truth
    yes, no = truth.count(truth.judged)
    head = [
        f"{yes} memorized prompts (at least {truth.cut:.0%} of their samples are copies by "
        f"{truth.measure} at guidance {truth.guidance:g}), {no} others. Intervals: 95 %, "
        "percentile bootstrap over prompts and seeds. Suspicious: a first-call score above "
        f"{found.thresholds['threshold']:.3g}, which {PASS:.0%} of the ordinary prompts that set "
        "it do not exceed.",
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


SHOWN = {
    MEMORIZED: (
        ("severity", "severity"),
        ("severity_95", "95 %"),
        ("reproduced", "reproduced"),
        ("copies", "copies any"),
        ("right", "right"),
        ("right_new", "right and new"),
        ("diversity", "diversity"),
        ("saturation", "saturation"),
    ),
    OTHERS: (
        ("changed", "changed"),
        ("identical", "identical"),
        ("right", "right"),
        ("copies", "copies any"),
        ("saturation", "saturation"),
        ("network_calls", "calls a sample"),
        ("seconds", "seconds a sample"),
    ),
}
"""What the tables show of each population, with its heading."""


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
        names = dict.fromkeys(row.outcome.setting for row in here)
        nothing = Estimate(nan, nan, nan, 0, "", "")
        lines = [
            [f"`{name or 'none'}`", *(shown(known.get((name, m), nothing)) for m, _ in metrics)]
            for name in names
        ]
        parts += [
            f"### {population.capitalize()} prompts",
            "",
            table(["mitigation", *(title for _, title in metrics)], lines),
            "",
        ]
    return parts


def _write(found: Compared, model: Model, asked: Comparing) -> None:
    """Write table, text, figures and facts."""
    rows = [
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
    sink = io.BytesIO()
    pq.write_table(TABLES["mitigations"].of_rows(rows), sink, compression="zstd")
    found.path.mkdir(parents=True, exist_ok=True)
    write_atomically(found.path / "mitigations.parquet", sink.getvalue())
    write_atomically(found.path / "mitigations.md", summary(found).encode())
    panels = {f"mitigations-{name}": [panel] for name, panel in fronts(found.rows).items()}
    if panels:
        save(panels, found.path / "mitigations.pdf")
    yes, no = found.truth.count(found.truth.judged)
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
        "others": no,
        "left_out": int((~found.truth.judged).sum()),
        "thresholds": found.thresholds,
        "alignment": found.accuracy,
    }
    write_atomically(found.path / "bench.json", json.dumps(facts, indent=1).encode())


def _numbers(of: Estimate, names: tuple[str, str, str]) -> dict[str, float | None]:
    told = (of.value, of.low, of.high)
    return {n: v if isfinite(v) else None for n, v in zip(names, told, strict=True)}
