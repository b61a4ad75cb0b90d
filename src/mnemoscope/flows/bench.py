"""A leaderboard ranks detectors on a model whose memories were measured by sampling it.

Flow: sample every prompt and judge the samples (a study, or one that exists), score the prompts by
every detector, rank. The folder then holds::

    study/               the run folder with samples and severity, unless one was given
    scores.parquet       table `scores`
    ranking.parquet      table `ranking`
    agreement.parquet    table `agreement`
    leaderboard.md       the ranking to read
    auc-against-cost.*   the ranking to look at, PNG and PDF
    bench.json           what was asked, how prompts were judged, how they were split
    scoring/             scores so far, with which an interrupted benchmark goes on; gone at the end

Contents: `leaderboard`, `COMBINATIONS`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool

from mnemoscope import __version__
from mnemoscope.flows.detect import Notify, Scores, choose, detect
from mnemoscope.detectors import Detector
from mnemoscope.detectors.base import RELEASED
from mnemoscope.errors import InputError
from mnemoscope.mechanism.base import ScatterPanel
from mnemoscope.models.base import Model
from mnemoscope.data.prompts import Prompt, embedded_prompts, load_prompts
from mnemoscope.ranking.rank import Ranking, difference, rank, require_both, shown, table, truth_of
from mnemoscope.reporting.board import PAIRS, RELEASED_CODE, Place
from mnemoscope.reporting.board import picture as place_detectors
from mnemoscope.reporting.figures import save
from mnemoscope.runs.folder import Run, write_atomically
from mnemoscope.core.stats import roc_auc
from mnemoscope.flows.study import Study
from mnemoscope.flows.study import run as run_study
from mnemoscope.runs.tables import TABLES

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
    """

    ranking: Ranking
    scores: Scores
    run: Run
    path: Path
    seed: int = 0


def leaderboard(
    model: Model,
    prompts: str | Path | None = None,
    *,
    out: str | Path = "runs/detectors",
    run: Run | None = None,
    detectors: Sequence[str | Detector] = ("all",),
    seeds: int = 4,
    guidance: float = 7.5,
    steps: int = 50,
    scheduler: str = "ddim",
    seed: int = 0,
    cut: float = 0.5,
    batch: int | None = None,
    notify: Notify | None = None,
    progress: bool = False,
) -> Leaderboard:
    """Rank detectors on a model.

    Args:
        model: The model.
        prompts: Prompt file whose prompts have training images; the embedded model brings its own.
        out: Folder of the results.
        run: A study of these prompts at this guidance scale; one is made where not given.
        detectors: As for `mnemoscope.flows.detect.detect`.
        seeds: Samples a prompt, for severity and for scores; their noises are independent.
        guidance: Guidance scale of both.
        steps: Sampler updates of both.
        scheduler: Sampler of both.
        seed: Seed of noise and split.
        cut: Share of a prompt's samples that must be copies for it to count as memorized.
        batch: Rows a network call.
        notify: Told what is going on.
        progress: Whether to draw progress bars on standard error.

    Returns:
        The ranking with what it rests on.

    Raises:
        InputError: If prompts have no images, all are of one class, or an option is wrong.
        RunError: If the study's folder cannot be used.
    """
    out = Path(out)
    chosen = choose(detectors)
    if prompts is None and run is None and not model.name.startswith("embedded"):
        raise InputError(
            f"model {model.name!r} brings no prompts of its own; give a file with --prompts"
        )
    if run is None:
        study = Study(
            model=model.name,
            prompts=None if prompts is None else str(prompts),
            seeds=seeds,
            guidance=(guidance,),
            steps=steps,
            scheduler=scheduler,
            probes=False,
            seed=seed,
            batch=batch,
            out=str(out / "study"),
        )
        run = run_study(study, model=model, notify=notify, progress=progress)
    elif run.manifest.model["digest"] != model.digest:
        raise InputError(f"the study in {str(run.path)!r} is of another model than {model.name!r}")
    measure = run.manifest.study["similarity"][0]
    truth = truth_of(run, guidance=guidance, measure=measure, cut=cut)
    # Said before the scoring, which is what takes long.
    require_both(truth)
    listed = _matching(prompts, truth.prompt_id)
    scores = detect(
        model,
        listed,
        detectors=chosen,
        seeds=seeds,
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        # Other noise than the study's: a sample must not be scored by its own start.
        seed=seed + 1,
        batch=batch,
        keep=out / "scoring",
        notify=notify,
        progress=progress,
    )
    rows = scores.table.to_pylist()
    names = [detector.name for detector in chosen]
    ranking = rank(
        {name: scores.of(name) for name in names},
        truth,
        kinds={detector.name: detector.kind for detector in chosen},
        price={n: _mean(rows, n, "network_calls") for n in names},
        seconds={n: _mean(rows, n, "seconds") for n in names},
        combine=COMBINATIONS,
        seed=seed,
    )
    board = Leaderboard(ranking, scores, run, out, seed)
    _write(board, model, seeds, guidance, steps, scheduler)
    # Another version of a detector must not find what this one left.
    for part in (out / "scoring").glob("*.json"):
        part.unlink()
    return board


def _mean(rows: list[dict[str, Any]], name: str, column: str) -> float:
    return float(np.mean([row[column] for row in rows if row["detector"] == name]))


def _matching(prompts: str | Path | None, names: Sequence[str]) -> list[Prompt]:
    known = embedded_prompts() if prompts is None else load_prompts(prompts)
    held = {prompt.prompt_id: prompt for prompt in known}
    missing = [name for name in names if name not in held]
    if missing:
        raise InputError(
            f"the study holds {len(missing)} prompts that the list lacks (first: {missing[0]!r}); "
            "give the prompt file it was made with"
        )
    return [held[name] for name in names]


def best_first_step(
    ranking: Ranking, scores: Scores, here: Bool[np.ndarray, " prompt"] | None = None
) -> tuple[str, str] | None:
    """Return the best of ours and the best published prompt detector that stop at the first call.

    Published ones compete at any price beside that call, so that none is kept out by costing more.
    Released variants do not: they are there to be compared with their own correct form.

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
        if not (first and rival) or detector.released:
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


def _released(board: Leaderboard) -> list[list[str]]:
    """Set each released variant beside the correct form."""
    ranking, truth = board.ranking, board.ranking.truth
    places = {name: at + 1 for at, name in enumerate(ranking.names)}
    rows: list[list[str]] = []
    for name in places:
        right = name.removesuffix(RELEASED)
        if right == name or right not in places:
            continue
        a, b = (board.scores.of(n)[truth.judged] for n in (right, name))
        gain = shown(difference(a, b, truth.memorized[truth.judged]))
        aucs = [shown(ranking.get(n)) for n in (right, name)]
        rows.append([f"`{right}`", *aucs, gain, f"{places[right]}", f"{places[name]}"])
    return rows


def picture(board: Leaderboard) -> ScatterPanel:
    """Return AUC against cost, the detectors that none beats for less named."""
    ranking = board.ranking
    return place_detectors(
        [
            Place(detector.name, origin, ranking.price[detector.name], estimate.value)
            for detector in board.scores.detectors
            if (origin := _origin(detector)) != RELEASED_CODE
            and (estimate := ranking.get(detector.name)) is not None
            and np.isfinite(estimate.value)
        ]
    )


def _origin(detector: Detector) -> str:
    """Say who a detector comes from, or that it takes the image."""
    if detector.released:
        return RELEASED_CODE
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
        "Intervals: 95 %, percentile bootstrap over prompts.",
        "",
        ranking.markdown(),
        "",
    ]
    if targets := _targets(board):
        parts += ["First step, paired over prompts:", "", *targets, ""]
    parts += [
        "AUC by population (memorized / others; a level or a family counts its memorized prompts "
        "against all others):",
        "",
        ranking.populations(),
        "",
        "Thresholds set for a false positive rate of 1 % on one half of the prompts, on the other "
        "half (intervals: Wilson):",
        "",
        ranking.held(),
        "",
    ]
    calibrated = [line for line in ranking.lines if line.kind == "calibrated"]
    if calibrated:
        rows = [
            [f"`{name}`", shown(ranking.get(name, "auc", "judging half"))]
            for line in calibrated
            for name in (line.detector, *COMBINATIONS[line.detector])
        ]
        parts += [
            "Weights fitted on one half of the prompts, AUC on the other, beside the single scores "
            "on the same half:",
            "",
            table(["detector", "AUC, judging half"], rows),
            "",
        ]
    if rows := _released(board):
        head = ["detector", "AUC", "AUC as released", "difference", "place", "place as released"]
        parts += [
            "What bugs of released codes do to the ranking:",
            "",
            table(head, rows),
            "",
        ]
    parts += ["Rank agreement; all pairs are in agreement.parquet:", "", ranking.likeness(), ""]
    if withheld := ranking.withheld():
        parts += ["Withheld (–):", ""]
        parts += [f"- {reason}: {_few(names)}" for reason, names in withheld.items()]
        parts.append("")
    return "\n".join(parts)


def _few(names: Sequence[str], most: int = 3) -> str:
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest


def _write(
    board: Leaderboard,
    model: Model,
    seeds: int,
    guidance: float,
    steps: int,
    scheduler: str,
) -> None:
    truth = board.ranking.truth
    half = truth.half(board.seed)
    facts = {
        "mnemoscope": __version__,
        "model": {"name": model.name, "digest": model.digest},
        "study": str(board.run.path.name),
        "seeds": seeds,
        "guidance": guidance,
        "steps": steps,
        "scheduler": scheduler,
        "seed": board.seed,
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
    board.scores.write(board.path / "scores.parquet")
    for name, rows in (
        ("ranking", board.ranking.rows()),
        ("agreement", board.ranking.agreement_rows()),
    ):
        sink = io.BytesIO()
        pq.write_table(TABLES[name].of_rows(rows), sink, compression="zstd")
        write_atomically(board.path / f"{name}.parquet", sink.getvalue())
    save({PICTURE: [picture(board)]}, board.path / f"{PICTURE}.pdf")
    write_atomically(board.path / "leaderboard.md", summary(board).encode())
    write_atomically(board.path / "bench.json", json.dumps(facts, indent=1).encode())
