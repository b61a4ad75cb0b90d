r"""Memorized means that a prompt gives its training image back; this is the one place that says so.

Formulas, for a prompt under one recipe, by one similarity measure::

    share           the larger of two shares of its samples: those above the measure's threshold,
                    and those above that of the masked measure, by which a template counts
    memorized       share >= cut
    not memorized   share < cut, or there is no image of its own and no other image matched
    elsewhere       not memorized, and at least the cut of the samples copy another training image
    copy            of a sample: among those of the share, or it copies another training image
    not judged      neither can be told: too few unrelated images for a threshold, or no sample
    settled         of a prompt of which further samples are planned: whatever they show, it is
                    memorized, or copies elsewhere, or does neither

A prompt that is not memorized and of which any sample copies *another* training image is left out
where scores are judged: a detector that flags it would be right, so it counts neither way.

Contents: `Judgement` and `judge`; `pooled`, samples of several runs taken together, and
`until_settled`, how many more a prompt needs; `Truth`, `truth_of` and `require_both`, what scores
are held to.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from mnemoscope.errors import InputError
from mnemoscope.severity.grade import MASKED, Tables
from mnemoscope.severity.null import FEWEST_IMAGES

MEMORIZED_SHARE = 0.5
"""Share of a prompt's samples above threshold from which on it counts as memorized."""

State = Literal["memorized", "copies another image", "not memorized", "not judged"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """Whether a prompt is memorized.

    Attributes:
        memorized: Whether it is; None where that cannot be told.
        share: Share of samples that give its image back; NaN where that cannot be told.
        elsewhere: Whether it is not memorized and gives another training image back.
        severity: Mean severity; NaN where it has no image of its own.
        share_elsewhere: Share of samples that give another image back; NaN where unknown.
        share_clear: Share that are nearer to its image than any unrelated pair; NaN where unknown.
        own_seeds: Seeds of the samples behind the share; None where that cannot be told.
        elsewhere_seeds: Seeds of those behind `share_elsewhere`; None where unknown.
        samples: How many samples it rests on.
    """

    memorized: bool | None
    share: float
    elsewhere: bool
    severity: float
    share_elsewhere: float = math.nan
    share_clear: float = math.nan
    own_seeds: tuple[int, ...] | None = None
    elsewhere_seeds: tuple[int, ...] | None = None
    samples: int = 0

    @property
    def copies(self) -> frozenset[int] | None:
        """Return the seeds of samples that copy any training image; None where unknown."""
        known = [seeds for seeds in (self.own_seeds, self.elsewhere_seeds) if seeds is not None]
        return frozenset(seed for seeds in known for seed in seeds) if known else None

    @property
    def counts(self) -> bool:
        """Return whether scores are judged by it."""
        strays = self.elsewhere or self.share_elsewhere > 0
        return self.memorized is True or (math.isfinite(self.share) and not strays)

    @property
    def borderline(self) -> bool:
        """Return whether it counts as memorized by samples no nearer than some unrelated pair."""
        return self.memorized is True and self.share_clear < MEMORIZED_SHARE

    @property
    def state(self) -> State:
        """Return what is known of it in a word."""
        if self.elsewhere:
            return "copies another image"
        if self.memorized is None:
            return "not judged"
        return "memorized" if self.memorized else "not memorized"


NOT_JUDGED = Judgement(None, math.nan, False, math.nan)
"""What is known of a prompt of which there is no severity."""


def judge(
    severity: Iterable[Row], measure: str, *, cut: float = MEMORIZED_SHARE
) -> dict[str, Judgement]:
    """Judge every prompt.

    Args:
        severity: Rows of table `severity`, of one recipe.
        measure: The primary similarity measure; a template counts by its masked form as well.
        cut: Share of samples above threshold from which on a prompt counts as memorized.

    Returns:
        Judgements by prompt_id, of every prompt that has a row by either measure.

    Raises:
        InputError: If the cut is not in (0, 1].
    """
    if not 0 < cut <= 1:
        raise InputError(f"cut {cut} given; expected a share of samples in (0, 1]")
    rows: dict[str, dict[str, Row]] = {}
    for row in severity:
        if row["measure"] in (measure, MASKED):
            rows.setdefault(row["prompt_id"], {})[row["measure"]] = row
    found: dict[str, Judgement] = {}
    for prompt, by in rows.items():
        own = by.get(measure, {})
        nearer = max(by.values(), key=lambda row: _or_least(_number(row["share"])))
        share = _number(nearer["share"])
        grade = own.get("grade")
        memorized = None if math.isnan(share) and grade != "none" else _or_least(share) >= cut
        astray = _number(own.get("share_elsewhere"))
        # Runs of earlier schemas say it by the grade alone.
        elsewhere = grade == "retrieved verbatim" if math.isnan(astray) else astray >= cut
        found[prompt] = Judgement(
            memorized,
            share,
            elsewhere and memorized is not True,
            _number(own.get("mean")),
            astray,
            _number(own.get("share_clear")),
            _seeds(nearer.get("own_seeds")),
            _seeds(own.get("elsewhere_seeds")),
            int(nearer.get("n") or 0),
        )
    return found


def pooled(severity: Iterable[Row]) -> list[dict[str, Any]]:
    """Take samples of the same prompts from several runs together, other seeds in each.

    Args:
        severity: Rows of table `severity` of all runs, of one recipe but for its seed.

    Returns:
        One row a prompt and measure; shares and means are over all samples of which they are known,
        and no seeds are named, which mean other noise in each run.
    """
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in severity:
        rows.setdefault((row["prompt_id"], row["measure"]), []).append(row)
    found: list[dict[str, Any]] = []
    for some in rows.values():
        first = max(some, key=lambda row: row["n"])
        told = dict(first) | {"n": sum(row["n"] for row in some)}
        for name in ("mean", "share", "share_elsewhere", "share_clear"):
            known = [row for row in some if row[name] is not None and row["n"]]
            total = sum(row["n"] for row in known)
            told[name] = sum(row[name] * row["n"] for row in known) / total if total else None
        told["max"] = max((row["max"] for row in some if row["max"] is not None), default=None)
        found.append(told | {"own_seeds": None, "elsewhere_seeds": None})
    return found


def until_settled(of: Judgement, left: int, *, cut: float = MEMORIZED_SHARE) -> int:
    """Return after how many further samples, at the least, no others can change what a prompt is.

    Args:
        of: What is known of it so far.
        left: How many further samples are planned.
        cut: Share of samples above threshold from which on a prompt counts as memorized.

    Returns:
        How many; 0 where it is settled.
    """
    shares = [share for share in (of.share, of.share_elsewhere) if math.isfinite(share)]
    if not left or (of.samples and not shares):
        return 0
    copies = max((round(share * of.samples) for share in shares), default=0)
    # Either enough copies come first, or so many that are none that the rest does not reach it.
    copies_more = math.ceil(cut * (of.samples + left)) - copies
    others_more = left - copies_more + 1
    return max(0, min(copies_more, others_more))


@dataclass(frozen=True)
class Truth:
    """What is known of each prompt, in the order of the scores.

    Attributes:
        prompt_id: The prompts.
        memorized: Whether each is memorized.
        judged: Whether it counts; the others are left out.
        severity: Mean severity; NaN where unknown.
        tokens: Length in tokens.
        level: Repetition level of a planted prompt; NaN elsewhere.
        kind: Kind of caption, "" where unknown.
        family: Family, "" where unknown.
        cut: Share of samples above threshold from which a prompt counts as memorized.
        guidance: Guidance scale of the samples.
        measure: Similarity measure.
    """

    prompt_id: tuple[str, ...]
    memorized: Bool[np.ndarray, " prompt"]
    judged: Bool[np.ndarray, " prompt"]
    severity: Float[np.ndarray, " prompt"]
    tokens: Float[np.ndarray, " prompt"]
    level: Float[np.ndarray, " prompt"]
    kind: tuple[str, ...]
    family: tuple[str, ...]
    cut: float
    guidance: float
    measure: str

    def half(self, seed: int = 0) -> Bool[np.ndarray, " prompt"]:
        """Return which prompts set thresholds and weights; the others judge.

        The half follows from the prompt's name and the seed alone, so that it is the same whatever
        other prompts there are.
        """
        digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in self.prompt_id]
        return np.array([digest[0] % 2 == 0 for digest in digests], dtype=bool)

    def count(self, here: Bool[np.ndarray, " prompt"]) -> tuple[int, int]:
        """Return how many of some prompts are memorized, and how many are not."""
        return int((here & self.memorized).sum()), int((here & ~self.memorized).sum())


def truth_of(
    run: Tables,
    *,
    guidance: float,
    measure: str,
    cut: float = MEMORIZED_SHARE,
    recipe: str | None = None,
) -> Truth:
    """Read the ground truth from a run's severity.

    Args:
        run: A run with the tables prompts and severity.
        guidance: Guidance scale.
        measure: The primary similarity measure.
        cut: Share of samples above threshold from which on a prompt counts as memorized.
        recipe: The recipe, where the run has several at this guidance scale.

    Returns:
        The truth about the run's prompts, in their order.

    Raises:
        InputError: If the cut is not in (0, 1], or the run has no such severity, or that of several
            recipes.
    """
    rows = run.table("severity").to_pylist()
    here = [
        row for row in rows
        if row["guidance"] == guidance and (recipe is None or row.get("recipe") == recipe)
    ]  # fmt: skip
    recipes = sorted({str(row.get("recipe")) for row in here})
    if len(recipes) > 1:
        raise InputError(
            f"the run holds {len(recipes)} recipes at guidance {guidance:g}; name one of {recipes}"
        )
    judged = judge(here, measure, cut=cut)
    prompts = run.table("prompts").to_pylist()
    known = {row["prompt_id"] for row in here if row["measure"] == measure}
    if not any(prompt["prompt_id"] in known for prompt in prompts):
        held = sorted({row["guidance"] for row in rows})
        raise InputError(
            f"the run holds no severity by {measure!r} at guidance {guidance:g}; "
            f"of guidance it holds {held}"
        )
    found = [judged.get(prompt["prompt_id"], NOT_JUDGED) for prompt in prompts]
    return Truth(
        tuple(prompt["prompt_id"] for prompt in prompts),
        np.array([each.memorized is True for each in found], dtype=bool),
        np.array([each.counts for each in found], dtype=bool),
        np.array([each.severity for each in found], dtype=np.float64),
        np.array([_number(prompt["tokens"]) for prompt in prompts]),
        np.array([_number(prompt["level"]) for prompt in prompts]),
        tuple(prompt["kind"] or "" for prompt in prompts),
        tuple(prompt["family"] or "" for prompt in prompts),
        cut,
        guidance,
        measure,
    )


def require_both(truth: Truth) -> None:
    """Check that there are memorized prompts and others.

    Raises:
        InputError: If all judged prompts are of one class.
    """
    yes, no = truth.count(truth.judged)
    if not yes or not no:
        raise InputError(
            f"{yes} memorized prompts and {no} others at a cut of {truth.cut:g}, and "
            f"{int((~truth.judged).sum())} that are not judged; a ranking needs both classes: add "
            f"prompts, or another cut (judging takes {FEWEST_IMAGES} training images of different "
            "prompts)"
        )


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _seeds(seeds: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if seeds is None else tuple(seeds)


def _or_least(share: float) -> float:
    return -1.0 if math.isnan(share) else share
