"""An adversary's view says what still comes back under a mitigation, and past the detector.

Of prompts that are memorized, condition or noise is perturbed within a radius (`perturbation`), the
mitigation acts on what was perturbed, and severity says which samples copy a training image. The
adversary has several tries, and knows the model. Metrics, at each radius::

    samples    share of samples that copy, over all tries
    back       share of prompts of which some try makes a sample copy
    hidden     share of prompts whose mean first-call score is at most the threshold in some try
    both       share of prompts that a try hides of which it makes a sample copy

The folder then holds::

    study/               the run folder of plain guidance, unless one was given
    tries/               the run folder of all perturbations
    adversary.parquet    table `adversary`
    adversary.md         the same to read

Contents: `Attacking`, `attack`, `Attacked`, `told`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from mnemoscope.core.stats import Estimate, bootstrap
from mnemoscope.errors import InputError
from mnemoscope.flows.comparison import (
    Grounded,
    Trial,
    TrialWorker,
    graded,
    ground_of,
    study_of,
    with_thresholds,
)
from mnemoscope.flows.options import loaded, recipe_of, values_of
from mnemoscope.flows.perturbation import SEARCHES, SPACES, Perturbation
from mnemoscope.flows.study import Notify
from mnemoscope.flows.study import run as run_study
from mnemoscope.mitigations import parse
from mnemoscope.models.base import Model
from mnemoscope.options import option
from mnemoscope.ranking.markdown import shown, table
from mnemoscope.runs.folder import Run
from mnemoscope.runs.records import write_atomically
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.recipe import Recipe
from mnemoscope.severity.truth import judge

METRICS = ("samples", "back", "hidden", "both")

NONE = "none"
"""What stands for no mitigation, and for no perturbation."""


@dataclass(frozen=True)
class Attacking(Grounded):
    """What an adversary tries. Every field is an option of `mnemoscope bench adversary`."""

    mitigations: tuple[str, ...] = option(
        (NONE, "picture_repulsion"), "Mitigations, as for `bench mitigations`; 'none' is none."
    )
    radii: tuple[float, ...] = option(
        (0.1, 0.3, 1.0), "Radii, comma-separated, relative to what is changed."
    )
    spaces: tuple[str, ...] = option(SPACES, "What is changed.")
    searches: tuple[str, ...] = option(
        SEARCHES, "How: at random, or by gradient to one of two ends."
    )
    tries: int = option(2, "Tries of a random search; one by gradient has one.")
    rounds: int = option(5, "Steps of a search by gradient.")
    out: str | Path = option("runs/adversary", "Folder of the results.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        if self.tries < 1:
            raise InputError(f"tries {self.tries} given; expected at least 1")
        perturbations(self)

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Attacking":
        """Make it of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


@dataclass(frozen=True)
class Tries(Trial):
    """A study of mitigations under perturbations; its worker is told of them."""

    radii: tuple[float, ...] = option((), "Radii.")
    spaces: tuple[str, ...] = option((), "What is changed.")
    searches: tuple[str, ...] = option((), "How.")
    tries: int = option(1, "Tries of a random search.")
    rounds: int = option(1, "Steps of a search by gradient.")

    def recipes(self, model: Model) -> tuple[Recipe, ...]:
        """Return one recipe a mitigation and perturbation."""
        return tuple(
            recipe_of(self, model, guidance=self.guidance[0], intervention=_joined(changed, acting))
            for changed in (None, *perturbations(self))
            for acting in _acting(self)
            if changed is not None or acting is not None
        )


def perturbations(asked: Attacking | Tries) -> list[Perturbation]:
    """Return every perturbation of every try.

    Raises:
        InputError: If one means nothing.
    """
    return [
        Perturbation(space, search, radius, draw, asked.rounds)
        for space in asked.spaces
        for search in asked.searches
        for radius in asked.radii
        for draw in range(asked.tries if search == "random" else 1)
    ]


def _acting(asked: Tries) -> list[Intervention | None]:
    return [None if text == NONE else parse(text) for text in asked.interventions]


def _joined(changed: Perturbation | None, acting: Intervention | None) -> Intervention | None:
    parts = [part for part in (changed, acting) if part is not None]
    flat = [one for part in parts for one in (part.parts if isinstance(part, Chain) else (part,))]
    return Chain(tuple(flat)) if len(flat) > 1 else parts[0] if parts else None


@dataclass(frozen=True)
class Standing:
    """What one search brings back under one mitigation.

    Attributes:
        setting: The mitigation; empty for none.
        space: What was changed.
        search: How.
        radius: How far.
        tries: How often.
        values: Estimates by metric.
    """

    setting: str
    space: str
    search: str
    radius: float
    tries: int
    values: Mapping[str, Estimate]


@dataclass(frozen=True)
class Attacked:
    """What an adversary achieved.

    Attributes:
        rows: Every search under every mitigation, no perturbation first.
        threshold: First-call score above which a prompt is suspicious.
        prompts: Number of memorized prompts.
        path: The folder.
    """

    rows: tuple[Standing, ...]
    threshold: float
    prompts: int
    path: Path


def attack(
    model: Model | str,
    prompts: str | Path | None = None,
    *,
    run: Run | None = None,
    notify: Notify | None = None,
    progress: bool = False,
    **options: Any,
) -> Attacked:
    """Search for perturbations under which memorized pictures come back.

    Args:
        model: The model, or its name.
        prompts: Prompt file whose prompts have training images; the embedded model brings its own.
        run: A study of these prompts, seeds and guidance scale without mitigation; one is made
            where not given.
        notify: Told what is going on.
        progress: Whether to draw progress bars on standard error.
        **options: Further fields of `Attacking`.

    Returns:
        Shares of samples and prompts, by mitigation, search and radius.

    Raises:
        InputError: If prompts have no images, none or all are memorized, or an option is wrong.
        RunError: If a folder cannot be used.
    """
    name = model if isinstance(model, str) else model.name
    asked = Attacking(model=name, prompts=None if prompts is None else str(prompts), **options)
    for text in asked.mitigations:
        _ = None if text == NONE else parse(text)
    known = loaded(asked) if isinstance(model, str) else model

    def price(count: int, plain: bool) -> str:
        tries = (1 + len(perturbations(asked))) * len(asked.mitigations)
        first = f"{count} prompts without mitigation first; then, " if plain else ""
        return f"{first}of each that is memorized, {tries} settings"

    ground = ground_of(asked, known, run, price=price, notify=notify, progress=progress)
    scores, measure = ground.memorized, ground.truth.measure
    names = tuple(scores)
    acting = [
        NONE if text == NONE else str(with_thresholds(parse(text), ground.settings))
        for text in asked.mitigations
    ]
    fields = ("radii", "spaces", "searches", "tries", "rounds")
    work = study_of(
        asked, Tries, "tries", similarity=ground.similarity, interventions=tuple(acting),
        ids=names, subset=None, levels=(), controls=None,
        **{field: getattr(asked, field) for field in fields},
    )  # fmt: skip
    done = run_study(
        work, model=known, work=TrialWorker, derive=graded, notify=notify, progress=progress
    )
    threshold = ground.thresholds["threshold"]
    plain = _seen(ground.run, ground.recipe, measure, names, scores)
    rows = tuple(_standings(work, known, done, plain, measure, names, threshold))
    found = Attacked(rows, threshold, len(names), Path(asked.out))
    _write(found)
    return found


@dataclass(frozen=True)
class Seen:
    """What one try did to each prompt.

    Attributes:
        copies: Share of its samples that copy a training image; NaN where unknown.
        score: Mean first-call score.
    """

    copies: Float[np.ndarray, " prompt"]
    score: Float[np.ndarray, " prompt"]


def _seen(
    run: Run, recipe: str, measure: str, names: Sequence[str], scores: Mapping[str, float]
) -> Seen:
    rows = [row for row in run.table("severity").to_pylist() if row["recipe"] == recipe]
    judged = judge(rows, measure)
    count = {row["prompt_id"]: row["n"] for row in rows}
    copies = np.full(len(names), nan)
    for at, name in enumerate(names):
        one = judged.get(name)
        if one is not None and one.copies is not None and count[name]:
            copies[at] = len(one.copies) / count[name]
    return Seen(copies, np.array([scores.get(name, nan) for name in names]))


def _standings(
    work: Tries,
    model: Model,
    done: Run,
    plain: Seen,
    measure: str,
    names: Sequence[str],
    threshold: float,
) -> list[Standing]:
    """Return every search under every mitigation, its tries taken together."""
    effects: dict[str, dict[str, list[float]]] = {}
    for row in done.table("effects", ["prompt_id", "recipe", "score"]).to_pylist():
        if row["score"] is not None:
            effects.setdefault(row["recipe"], {}).setdefault(row["prompt_id"], []).append(
                row["score"]
            )

    def seen(intervention: Intervention | None) -> Seen:
        if intervention is None:
            return plain
        key = recipe_of(work, model, guidance=work.guidance[0], intervention=intervention).key
        scores = {name: float(np.mean(each)) for name, each in effects.get(key, {}).items()}
        return _seen(done, key, measure, names, scores)

    found: list[Standing] = []
    for acting in _acting(work):
        groups: dict[tuple[str, str, float], list[Perturbation | None]] = {
            (NONE, NONE, 0.0): [None]
        }
        for one in perturbations(work):
            groups.setdefault((one.space, one.search, one.radius), []).append(one)
        for (space, search, radius), tries in groups.items():
            each = [seen(_joined(one, acting)) for one in tries]
            told = metrics(each, threshold)
            setting = "" if acting is None else str(acting)
            found.append(Standing(setting, space, search, radius, len(tries), told))
    return found


def metrics(tries: Sequence[Seen], threshold: float) -> dict[str, Estimate]:
    """Return what some tries at the same prompts came to.

    Args:
        tries: What each did.
        threshold: Largest score that passes the detector.
    """
    copies = np.stack([one.copies for one in tries])
    passes = np.stack([one.score for one in tries]) <= threshold
    known = np.isfinite(copies).any(axis=0)
    copies, passes = copies[:, known], passes[:, known]
    back = copies > 0
    by_prompt = {
        "samples": np.nanmean(copies, axis=0) if known.any() else np.zeros(0),
        "back": back.any(axis=0).astype(float),
        "hidden": passes.any(axis=0).astype(float),
        "both": (back & passes).any(axis=0).astype(float),
    }
    return {
        name: bootstrap(partial(np.mean, axis=-1), values) for name, values in by_prompt.items()
    }


def told(found: Attacked) -> str:
    """Return what an adversary achieved, as Markdown."""
    head = ["mitigation", "changed", "search", "radius", "tries"]
    titles = ["samples that copy", "prompts that copy", "past the detector", "both"]
    lines = [
        [
            f"`{row.setting or NONE}`",
            row.space,
            row.search,
            f"{row.radius:g}",
            str(row.tries),
            *(shown(row.values[name]) for name in METRICS),
        ]
        for row in found.rows
    ]
    return "\n".join(
        [
            f"{found.prompts} memorized prompts. Suspicious: a first-call score above "
            f"{found.threshold:.3g}. Intervals: 95 %, bootstrap over prompts.",
            "",
            table([*head, *titles], lines),
            "",
        ]
    )


def _write(found: Attacked) -> None:
    def number(value: float) -> float | None:
        return value if isfinite(value) else None

    rows = [
        {
            "setting": row.setting,
            "space": row.space,
            "search": row.search,
            "radius": row.radius,
            "metric": name,
            "value": number(one.value),
            "low": number(one.low),
            "high": number(one.high),
            "prompts": one.n,
            "tries": row.tries,
            "reason": one.reason or None,
        }
        for row in found.rows
        for name, one in row.values.items()
    ]
    sink = io.BytesIO()
    pq.write_table(TABLES["adversary"].of_rows(rows), sink, compression="zstd")
    write_atomically(found.path / "adversary.parquet", sink.getvalue())
    write_atomically(found.path / "adversary.md", told(found).encode())
