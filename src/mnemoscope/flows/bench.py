"""A leaderboard ranks detectors on a model whose memories were measured by sampling it.

Flow: sample every prompt and judge the samples (a study, or one that exists), score the prompts by
every detector, rank. The folder then holds::

    study/               the run folder with samples and severity, unless one was given
    scores.parquet       table `scores`, of the first bank of noise
    ranking.parquet      table `ranking`
    agreement.parquet    table `agreement`
    leaderboard.md       the ranking to read
    auc-against-cost.*   the ranking to look at, PNG and PDF
    bench.json           what was asked, how prompts were judged, how they were split; SHA-256 of
                         the tables, and its own
    scoring/             scores so far, with which an interrupted benchmark goes on; gone at the end

Contents: `Benchmark`, `leaderboard`, `COMBINATIONS`.
"""

import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool

from mnemoscope import __version__
from mnemoscope.core.panels import ScatterPanel
from mnemoscope.core.stats import roc_auc
from mnemoscope.data.prompts import PromptList
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.flows.detect import Notify, Scores, checkpoint, detect, encoded
from mnemoscope.flows.options import brought, listed, name_of, opened, values_of
from mnemoscope.flows.ordinary import SCORES
from mnemoscope.flows.scores import choose
from mnemoscope.flows.study import Study
from mnemoscope.flows.study import run as run_study
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.ranking import markdown
from mnemoscope.ranking.markdown import shown, table
from mnemoscope.ranking.metrics import difference
from mnemoscope.ranking.rank import Ranking, rank
from mnemoscope.reporting.board import PAIRS, Place
from mnemoscope.reporting.board import picture as place_detectors
from mnemoscope.reporting.figures import save
from mnemoscope.runs.executors import Execution
from mnemoscope.runs.folder import Run, open_run
from mnemoscope.runs.records import sealed, write_atomically
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.recipe import NOISES, Recipe
from mnemoscope.severity.truth import MEMORIZED_SHARE, require_both, truth_of

COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "anisotropy:calibrated": ("anisotropy:norm", "anisotropy:cosine"),
    "first_step:calibrated": ("gap_norm", "consensus_energy", "consensus_sharpness"),
    "exchange:calibrated": ("exchange:image", "exchange:noise"),
    "early:calibrated": ("consensus_sharpness", "persistence", "schedule_deviation"),
}
"""Detectors combined with weights from one half of the prompts, judged on the other."""

PICTURE = "auc-against-cost"
"""Name of the picture of a ranking."""


@dataclass(frozen=True)
class Leaderboard:
    """What a benchmark found.

    Attributes:
        ranking: The ranking.
        scores: The scores it is made of.
        run: The run with samples and severity.
        path: The folder.
        seed: Seed of the split.
        banks: Banks of noise behind the AUC.
    """

    ranking: Ranking
    scores: Scores
    run: Run
    path: Path
    seed: int = 0
    banks: int = 1


@dataclass(frozen=True)
class Benchmark(Execution, Recipe, Source):
    """What to rank. Every field is an option of `mnemoscope bench detectors`."""

    prompts: str | Path | None = option(
        None, "Prompt file with training images; the embedded model brings its own."
    )
    study: str | Path | None = option(None, "Run folder of a study to take severity from.")
    detectors: tuple[str, ...] = option(("all",), "Detectors, as for detect.")
    earlier: str | None = option(
        None, "Earlier checkpoint of the model, for detectors that compare the two."
    )
    seeds: int = option(4, "Samples a prompt, for severity and for scores.")
    cut: float = option(
        MEMORIZED_SHARE, "Share of samples that are copies if a prompt is memorized."
    )
    out: str | Path = option("runs/detectors", "Folder of the results.")
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")
    banks: int = option(
        1, "Banks of noise that scores are drawn from anew; intervals of AUC then count them."
    )
    scoring_noise: str = option(
        "shared",
        "Noise of the scores: shared among prompts, independent, or fresh for every prompt as "
        "published codes draw it.",
    )

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        brought(self)
        if not 0 < self.cut <= 1:
            raise InputError(f"cut {self.cut} given; expected a share of samples in (0, 1]")
        if self.banks < 1:
            raise InputError(f"banks {self.banks} given; expected at least 1")
        if self.scoring_noise not in NOISES:
            raise InputError(did_you_mean(self.scoring_noise, NOISES, "scoring_noise"))

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Benchmark":
        """Make it of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


PASSED_ON = (
    "scheduler", "steps", "eta", "intervention", "seeds", "batch",
    *(f.name for f in fields(Execution)),
)  # fmt: skip
"""Options that both the study and the detection of a benchmark are given."""


def leaderboard(
    model: Any,
    prompts: str | Path | PromptList | None = None,
    *,
    run: Run | None = None,
    detectors: Sequence[str | Detector] | str = ("all",),
    notify: Notify | None = None,
    progress: bool = False,
    **options: Any,
) -> Leaderboard:
    """Rank detectors on a model.

    Args:
        model: The model, its name, or a pipeline object.
        prompts: Prompt file whose prompts have training images; the embedded model brings its own.
        run: A study of these prompts at this guidance scale; one is made where not given.
        detectors: As for `mnemoscope.flows.detect.detect`.
        notify: Told what is going on.
        progress: Whether to draw progress bars on standard error.
        **options: Further fields of `Benchmark`: out, seeds, guidance, steps, cut ...

    Returns:
        The ranking with what it rests on; severity and scores rest on independent noises.

    Raises:
        InputError: If prompts have no images, all are of one class, or an option is wrong.
        RunError: If the study's folder cannot be used.
    """
    chosen = choose(detectors)
    name = name_of(model)
    asked = Benchmark(model=name, detectors=tuple(d.name for d in chosen), **options)
    if run is None and asked.study is not None:
        run = open_run(asked.study)
    held = listed(prompts, name) if prompts is not None or run is None else None
    known = opened(model, asked)
    out = Path(asked.out)
    shared = {name: getattr(asked, name) for name in PASSED_ON}
    if run is None:
        study = Study(
            **{f.name: getattr(asked, f.name) for f in fields(Source)},
            prompts=None if prompts is None else str(prompts),
            guidance=(asked.guidance,),
            noise=asked.noise,
            seed=asked.seed,
            probes=False,
            detectors=("none",),
            out=str(out / "study"),
            **shared,
        )
        run = run_study(study, model=known, notify=notify, progress=progress)
    elif run.manifest.model["digest"] != known.digest:
        raise InputError(f"the study in {str(run.path)!r} is of another model than {name!r}")
    measure = run.manifest.options["similarity"][0]
    truth = truth_of(run, guidance=asked.guidance, measure=measure, cut=asked.cut)
    # Said before the scoring, which is what takes long.
    require_both(truth)
    earlier = None if asked.earlier is None else checkpoint(asked.earlier, asked)
    drawn = [
        detect(
            known,
            _matching(held or listed(None, name), truth.prompt_id),
            detectors=chosen,
            earlier=earlier,
            out=out / "scoring" / str(bank),
            guidance=asked.guidance,
            noise=asked.scoring_noise,
            # Other noise than the study's: a sample must not be scored by its own start.
            seed=asked.seed + 1 + bank,
            notify=notify,
            progress=progress,
            **shared,
        )
        for bank in range(asked.banks)
    ]
    scores = drawn[0]
    names = [detector.name for detector in chosen]
    ranking = rank(
        {name: np.stack([bank.of(name) for bank in drawn]) for name in names},
        truth,
        kinds={detector.name: detector.kind for detector in chosen},
        price={n: scores.mean(n, "network_calls") for n in names},
        seconds={n: scores.mean(n, "seconds") for n in names},
        combine=COMBINATIONS,
        seed=asked.seed,
    )
    board = Leaderboard(ranking, scores, run, out, asked.seed, asked.banks)
    _write(board, known, asked)
    shutil.rmtree(out / "scoring", ignore_errors=True)
    return board


def _matching(known: PromptList, names: Sequence[str]) -> PromptList:
    """Return a study's prompts, in its order, out of a list."""
    wanted = set(names)
    held = {prompt.prompt_id: prompt for prompt in known if prompt.prompt_id in wanted}
    missing = [name for name in names if name not in held]
    if missing:
        raise InputError(
            f"the study holds {len(missing)} prompts that the list lacks (first: {missing[0]!r}); "
            "give the prompt file it was made with"
        )
    return PromptList.of(held[name] for name in names)


def best_first_step(
    ranking: Ranking, scores: Scores, here: Bool[np.ndarray, " prompt"] | None = None
) -> tuple[str, str] | None:
    """Return the best of ours and the best published prompt detector that stop at the first call.

    Published ones compete at any price beside that call, so that none is kept out by costing more.

    Args:
        ranking: The ranking.
        scores: The scores.
        here: Judged prompts to choose on; all of them where not given.

    Returns:
        Two names; None where one of the two kinds was not run.
    """
    truth = ranking.truth
    here = truth.judged if here is None else here & truth.judged
    found: dict[bool, tuple[float, str]] = {}
    for detector in scores.detectors:
        first = all(piece.calls in (0, 1) for piece in detector.needs.pieces)
        rival = detector.kind == "prompt" and "baseline" not in detector.source
        if not (first and rival):
            continue
        values = scores.of(detector.name)
        use = here & np.isfinite(values)
        value = roc_auc(values[use], truth.memorized[use]).value
        if np.isfinite(value):
            ours = detector.source.startswith("ours")
            found[ours] = max(found.get(ours, (-1.0, "")), (value, detector.name))
    return (found[True][1], found[False][1]) if len(found) == 2 else None


def _targets(board: Leaderboard) -> list[str]:
    """Say by how much the best of ours exceeds the best published first-step detector."""
    ranking, truth = board.ranking, board.ranking.truth
    half = truth.half(board.seed)
    parts: list[str] = []
    for chosen, judged, told in (
        (truth.judged, truth.judged, "chosen and judged on all prompts, which favours both"),
        (half, truth.judged & ~half, "chosen on one half, judged on the other"),
    ):
        if (pair := best_first_step(ranking, board.scores, chosen)) is None:
            continue
        a, b = (board.scores.of(name)[judged] for name in pair)
        prices = [f"{ranking.price[name]:.0f}" for name in pair]
        parts.append(
            f"- Best first-step detector of ours, `{pair[0]}` ({prices[0]} network calls a "
            f"prompt), less the best published one, `{pair[1]}` ({prices[1]}): AUC "
            f"{shown(difference(a, b, truth.memorized[judged]))}, {told}."
        )
    return parts


def picture(board: Leaderboard) -> ScatterPanel:
    """Return AUC against cost, the detectors that none beats for less named."""
    ranking = board.ranking
    return place_detectors(
        [
            Place(detector.name, _origin(detector), ranking.price[detector.name], estimate.value)
            for detector in board.scores.detectors
            if (estimate := ranking.get(detector.name)) is not None and np.isfinite(estimate.value)
        ]
    )


def _origin(detector: Detector) -> str:
    """Say who a detector comes from, or that it takes the image."""
    if detector.kind == "pair":
        return PAIRS
    if "baseline" in detector.source:
        return "baselines"
    return "ours" if detector.source.startswith("ours") else "published"


def summary(board: Leaderboard) -> str:
    """Return the leaderboard with what it rests on, as Markdown."""
    ranking, truth = board.ranking, board.ranking.truth
    yes = int((truth.judged & truth.memorized).sum())
    no = int((truth.judged & ~truth.memorized).sum())
    parts = [
        f"Memorized: at least {truth.cut:.0%} of a prompt's samples are copies of its training "
        f"image by {truth.measure}, at guidance {truth.guidance:g}. {yes} memorized prompts, {no} "
        f"others, {int((~truth.judged).sum())} left out (they copy another image, or have none). "
        "Intervals: 95 %, percentile bootstrap over prompts"
        + (f" and, for the AUC, over {board.banks} banks of noise." if board.banks > 1 else "."),
        "",
        markdown.leaderboard(ranking),
        "",
    ]
    if targets := _targets(board):
        parts += ["First step, paired over prompts:", "", *targets, ""]
    parts += [
        "AUC by population (memorized / others; a level or a family counts its memorized prompts "
        "against all others):",
        "",
        markdown.populations(ranking),
        "",
        "Thresholds set for a false positive rate of 1 % on one half of the prompts, on the other "
        "half (intervals: Wilson):",
        "",
        markdown.held(ranking),
        "",
    ]
    calibrated = [entry for entry in ranking.entries if entry.kind == "calibrated"]
    if calibrated:
        rows = [
            [f"`{name}`", shown(ranking.get(name, "auc", "judging half"))]
            for entry in calibrated
            for name in (entry.detector, *COMBINATIONS[entry.detector])
        ]
        parts += [
            "Weights fitted on one half of the prompts, AUC on the other, beside the single scores "
            "on the same half:",
            "",
            table(["detector", "AUC, judging half"], rows),
            "",
        ]
    parts += [
        "Rank agreement; all pairs are in agreement.parquet:",
        "",
        markdown.likeness(ranking),
        "",
    ]
    if withheld := ranking.withheld():
        parts += ["Withheld (–):", ""]
        parts += [f"- {reason}: {_few(names)}" for reason, names in withheld.items()]
        parts.append("")
    return "\n".join(parts)


def _few(names: Sequence[str], most: int = 3) -> str:
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest


def _judged(board: Leaderboard) -> pa.Table:
    """Return the scores with what is known of each prompt: memorized, or not; null is left out."""
    truth = board.ranking.truth
    pairs = zip(truth.judged.tolist(), truth.memorized.tolist(), strict=True)
    known = dict(zip(truth.prompt_id, [m if j else None for j, m in pairs], strict=True))
    table = board.scores.told()
    memorized = [known[name] for name in table["prompt_id"].to_pylist()]
    return table.append_column("memorized", pa.array(memorized, pa.bool_()))


def _write(board: Leaderboard, model: Model, asked: Benchmark) -> None:
    truth = board.ranking.truth
    half = truth.half(board.seed)
    facts = {
        "mnemoscope": __version__,
        "model": {"name": model.name, "digest": model.digest},
        "study": str(board.run.path.name),
        "seeds": asked.seeds,
        "guidance": asked.guidance,
        "steps": asked.steps,
        "scheduler": board.run.manifest.options["scheduler"],
        "seed": board.seed,
        "recipe": dict(board.scores.recipe),
        "banks": board.banks,
        "scoring_noise": asked.scoring_noise,
        "earlier": asked.earlier,
        "measure": truth.measure,
        "cut": truth.cut,
        "memorized": int((truth.judged & truth.memorized).sum()),
        "others": int((truth.judged & ~truth.memorized).sum()),
        "left_out": int((~truth.judged).sum()),
        "origins": {detector.name: _origin(detector) for detector in board.scores.detectors},
        "split": {
            "rule": "first byte of SHA-256 of 'SEED/PROMPT_ID' even: thresholds and weights; "
            "odd: judging",
            "setting": int((half & truth.judged).sum()),
            "judging": int((~half & truth.judged).sum()),
        },
    }
    scores = encoded(_judged(board), ".parquet")
    write_atomically(board.path / SCORES, scores)
    files = {SCORES: hashlib.sha256(scores).hexdigest()}
    for name, rows in (
        ("ranking", TABLES["ranking"].of_rows(board.ranking.rows())),
        ("agreement", TABLES["agreement"].of_rows(board.ranking.agreement_rows())),
    ):
        sink = io.BytesIO()
        pq.write_table(rows, sink, compression="zstd")
        write_atomically(board.path / f"{name}.parquet", sink.getvalue())
        files[f"{name}.parquet"] = hashlib.sha256(sink.getvalue()).hexdigest()
    save({PICTURE: [picture(board)]}, board.path / f"{PICTURE}.pdf")
    write_atomically(board.path / "leaderboard.md", summary(board).encode())
    write_atomically(board.path / "bench.json", sealed(facts | {"files": files}))
