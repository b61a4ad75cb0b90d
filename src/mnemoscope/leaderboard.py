"""A leaderboard ranks detectors on a model whose memories were measured by sampling it.

Flow: sample every prompt and judge the samples (a study, or one that exists), score the prompts by
every detector, rank. The folder then holds::

    study/               the run folder with samples and severity, unless one was given
    scores.parquet       table `scores`
    ranking.parquet      table `ranking`
    leaderboard.md       the ranking to read
    bench.json           what was asked, how prompts were judged, how they were split

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

from mnemoscope import __version__
from mnemoscope.detect import Notify, Scores, choose, detect
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError
from mnemoscope.models.base import Model
from mnemoscope.prompts import Prompt, embedded_prompts, load_prompts
from mnemoscope.ranking import Ranking, difference, rank, shown, truth_of
from mnemoscope.runs import Run, write_atomically
from mnemoscope.study import Study
from mnemoscope.study import run as run_study
from mnemoscope.tables import TABLES

COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "anisotropy:calibrated": ("anisotropy:norm", "anisotropy:cosine"),
    "first_step:calibrated": ("gap_norm", "consensus_energy", "consensus_sharpness"),
    "early:calibrated": ("consensus_sharpness", "persistence", "schedule_deviation"),
}
"""Detectors combined with weights from one half of the prompts, judged on the other."""


@dataclass(frozen=True)
class Leaderboard:
    """What a benchmark found.

    Attributes:
        ranking: The ranking.
        scores: The scores it is made of.
        run: The run with samples and severity.
        path: The folder.
    """

    ranking: Ranking
    scores: Scores
    run: Run
    path: Path


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
        detectors: As for `mnemoscope.detect.detect`.
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
    board = Leaderboard(ranking, scores, run, out)
    _write(board, model, seed, seeds, guidance, steps, scheduler)
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


def best_first_step(ranking: Ranking, detectors: Sequence[Detector]) -> tuple[str, str] | None:
    """Return the best of ours and the best published among one-call prompt detectors.

    Returns:
        Two names; None where one of the two kinds was not run.
    """
    found: dict[bool, tuple[float, str]] = {}
    cheap = [d for d in detectors if d.kind == "prompt" and "baseline" not in d.source]
    seeds = min((ranking.price[d.name] for d in cheap), default=0.0)
    for detector in cheap:
        estimate = ranking.get(detector.name)
        if estimate is None or ranking.price[detector.name] > seeds:
            continue
        ours = detector.source.startswith("ours")
        found[ours] = max(found.get(ours, (-1.0, "")), (estimate.value, detector.name))
    return (found[True][1], found[False][1]) if len(found) == 2 else None


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
    calibrated = [line for line in ranking.lines if line.kind == "calibrated"]
    if calibrated:
        parts += [
            "Weights fitted on one half of the prompts, AUC on the other, beside the single scores "
            "on the same half:",
            "",
            "| detector | AUC, judging half |",
            "|---|---|",
        ]
        for line in calibrated:
            parts.append(f"| `{line.detector}` | {shown(line.estimate)} |")
            for name in COMBINATIONS[line.detector]:
                parts.append(f"| `{name}` | {shown(ranking.get(name, 'auc', 'judging half'))} |")
        parts.append("")
    if pair := best_first_step(ranking, board.scores.detectors):
        a, b = (board.scores.of(name)[truth.judged] for name in pair)
        gain = difference(a, b, truth.memorized[truth.judged])
        parts.append(
            f"Best first-step detector of ours, `{pair[0]}`, less the best published one, "
            f"`{pair[1]}`: AUC {shown(gain)}."
        )
    return "\n".join(parts) + "\n"


def _write(
    board: Leaderboard,
    model: Model,
    seed: int,
    seeds: int,
    guidance: float,
    steps: int,
    scheduler: str,
) -> None:
    truth = board.ranking.truth
    half = truth.half(seed)
    facts = {
        "mnemoscope": __version__,
        "model": {"name": model.name, "digest": model.digest},
        "study": str(board.run.path.name),
        "seeds": seeds,
        "guidance": guidance,
        "steps": steps,
        "scheduler": scheduler,
        "seed": seed,
        "measure": truth.measure,
        "cut": truth.cut,
        "memorized": int((truth.judged & truth.memorized).sum()),
        "others": int((truth.judged & ~truth.memorized).sum()),
        "left_out": int((~truth.judged).sum()),
        "split": {
            "rule": "first byte of SHA-256 of 'SEED/PROMPT_ID' even: thresholds and weights; "
            "odd: judging",
            "setting": int((half & truth.judged).sum()),
            "judging": int((~half & truth.judged).sum()),
        },
    }
    board.scores.write(board.path / "scores.parquet")
    sink = io.BytesIO()
    pq.write_table(TABLES["ranking"].of_rows(board.ranking.rows()), sink, compression="zstd")
    write_atomically(board.path / "ranking.parquet", sink.getvalue())
    write_atomically(board.path / "leaderboard.md", summary(board).encode())
    write_atomically(board.path / "bench.json", json.dumps(facts, indent=1).encode())
