"""The verdict says in three sentences what a run found, from the run's own numbers.

One sentence a claim of the founding paper, each with population, measure, interval and n::

    1. how many prompts reproduce a training image     Wilson interval over prompts
    2. whether severity follows the deviation D1       Pearson r less that of swapped images
    3. how far apart the samples of a prompt end        median over prompts

A correlation by itself says nothing, for D1 and severity are both likenesses to one image: the
second sentence quotes what it has over swapped images. A sentence whose numbers a run does not hold
says so, and prompts that cannot be judged are counted apart: they are not "not memorized". Nor are
those that copy another image.

The scorecard sorts what was checked: evidence, which has to beat its null, first, and of it what
failed; sanity checks, true of any sound model, are counted.

Contents: `Tally`, `Verdict`, `verdict`; `verdict_of` a run; `Scorecard`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

from mnemoscope.core.stats import Estimate, wilson
from mnemoscope.errors import RunError
from mnemoscope.mechanism.base import PATH_GUIDANCE, Check
from mnemoscope.reporting.text import interval, number, percent, visible
from mnemoscope.runs.folder import Run
from mnemoscope.severity.null import FEWEST_IMAGES, FEWEST_PAIRS
from mnemoscope.severity.truth import NOT_JUDGED, Judgement, State, judge

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tally:
    """How many prompts of one population are memorized.

    Attributes:
        label: The population.
        count: Memorized prompts.
        estimate: Their share with its Wilson interval; n is the number of prompts.
    """

    label: str
    count: int
    estimate: Estimate

    @property
    def text(self) -> str:
        """Say it with interval."""
        ends = f"{percent(self.estimate.low)} to {percent(self.estimate.high)}"
        share = percent(self.estimate.value)
        return f"{self.count} of {self.estimate.n} ({share}, 95\u00a0% interval {ends})"


@dataclass(frozen=True)
class Verdict:
    """What a run found.

    Attributes:
        title: The finding in a few words.
        sentences: Three sentences.
        origin: Where the threshold of the first sentence comes from.
        guidance: Guidance scale the verdict is at; None where the run holds no severity.
        measure: Similarity measure it is by.
        threshold: Similarity above which a sample reproduces an image.
        memorized: Prompts that reproduce their image.
        judged: What is known of every prompt at that guidance scale.
        unjudged: Why a prompt with an image could not be judged.
        tallies: Counts of prompts with a training image, and of controls.
        levels: Counts by planting level, where the run has levels.
        elsewhere: Counts of the same prompts that copy another image in place of their own.
        borderline: Memorized prompts whose copies are no nearer than some unrelated pair.
    """

    title: str
    sentences: tuple[str, str, str]
    origin: str
    guidance: float | None
    measure: str
    threshold: float | None
    memorized: frozenset[str]
    judged: Mapping[str, Judgement]
    unjudged: str
    tallies: tuple[Tally, ...]
    levels: tuple[Tally, ...]
    elsewhere: tuple[Tally, ...]
    borderline: frozenset[str]


@dataclass(frozen=True)
class Scorecard:
    """What was checked, by what it is worth.

    Attributes:
        found: Evidence that holds.
        failed: Evidence that does not: its criterion is missed, or its null not beaten.
        untold: Evidence that cannot be told, with the reason in each.
        sanity: Sanity checks that hold.
        broken: Sanity checks that do not, which puts everything else in doubt.
        unseen: Sanity checks that cannot be told.
    """

    found: tuple[Check, ...]
    failed: tuple[Check, ...]
    untold: tuple[Check, ...]
    sanity: tuple[Check, ...]
    broken: tuple[Check, ...]
    unseen: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Iterable[Check]) -> "Scorecard":
        """Sort checks, each kind in the order of the argument.

        Source: ours.
        """
        every = list(checks)
        return cls(
            *(
                tuple(check for check in every if check.kind == kind and check.holds is holds)
                for kind in ("evidence", "sanity")
                for holds in (True, False, None)
            )
        )

    @property
    def said(self) -> str:
        """Count it in a sentence."""
        told = len(self.found) + len(self.failed)
        parts = [
            f"{len(self.found)} of {told} pieces of evidence beat their null"
            if told
            else "no evidence could be told"
        ]
        if told and self.untold:
            parts.append(f"{len(self.untold)} could not be told")
        checks = len(self.sanity) + len(self.broken)
        if checks:
            parts.append(f"{len(self.sanity)} of {checks} sanity checks pass")
        return "; ".join(parts)


def verdict(
    prompts: Sequence[Row],
    severity: Sequence[Row],
    nulls: Sequence[Row],
    convergence: Sequence[Row],
    statistics: Sequence[Row],
    measure: str,
) -> Verdict:
    """Find the verdict of a run.

    Args:
        prompts: Rows of table `prompts`.
        severity: Rows of table `severity`.
        nulls: Rows of table `null`.
        convergence: Rows of table `convergence`.
        statistics: Rows of table `statistics`.
        measure: Primary similarity measure.

    Returns:
        The verdict; what a table does not hold is said to be missing.

    Source: ours.
    """
    by_measure = [row for row in severity if row["measure"] == measure]
    rated = [row for row in by_measure if row["share"] is not None]
    scales = sorted({row["guidance"] for row in rated or by_measure})
    guidance = PATH_GUIDANCE if PATH_GUIDANCE in scales else scales[-1] if scales else None
    judged = judge([row for row in severity if row["guidance"] == guidance], measure)
    memorized = frozenset(prompt for prompt, found in judged.items() if found.memorized)
    thresholds = [
        row["threshold"]
        for row in rated
        if row["threshold"] is not None and row["guidance"] == guidance
    ]
    threshold = thresholds[0] if thresholds else None
    controls = [row["prompt_id"] for row in prompts if row["group"] == "control"]
    known = [row["prompt_id"] for row in prompts if row["group"] != "control"]
    ours = _tally("prompts with a training image", known, judged)
    tallies = tuple(t for t in (ours, _tally("controls", controls, judged)) if t.estimate.n)
    astray = tuple(
        _tally(label, whose, judged, "copies another image")
        for label, whose in (("prompts with a training image", known), ("controls", controls))
    )
    elsewhere = sum(tally.count for tally in astray)
    borderline = frozenset(prompt for prompt, found in judged.items() if found.borderline)
    # Controls have level 0 in the lab, and a population of their own here.
    planted = [row for row in prompts if row["level"] is not None and row["group"] != "control"]
    levels = sorted({row["level"] for row in planted})
    by_level = tuple(
        _tally(
            f"level {level}",
            [row["prompt_id"] for row in planted if row["level"] == level],
            judged,
        )
        for level in levels
    )
    left = [
        row["prompt_id"]
        for row in prompts
        if row["references"] and judged.get(row["prompt_id"], NOT_JUDGED).memorized is None
    ]
    why = _why_unjudged(nulls, measure)
    plural = "prompt reproduces" if ours.count == 1 else "prompts reproduce"
    if ours.estimate.n and not ours.count and not elsewhere and not left:
        title = "Nothing was memorized"
    elif ours.estimate.n:
        title = f"{ours.count} of {ours.estimate.n} {plural} a training image"
        title += f"; {elsewhere} more {'copies' if elsewhere == 1 else 'copy'} another" * (
            elsewhere > 0
        )
    elif left and guidance is not None:
        title = f"{_prompts(len(left))} not judged"
    else:
        title = "Nothing can be said about reproduction"
    return Verdict(
        title,
        (
            _reproduction(tallies, guidance, measure)
            + _elsewhere(elsewhere, astray[1].count)
            + _borderline(len(borderline))
            + (_unjudged(len(left), why) if guidance is not None else ""),
            _deviation(statistics, measure, guidance),
            _collapse(prompts, convergence, judged, guidance),
        ),
        _origin(nulls, measure, threshold),
        guidance,
        measure,
        threshold,
        memorized,
        judged,
        why,
        tallies,
        tuple(tally for tally in by_level if tally.estimate.n),
        tuple(tally for tally in astray if tally.estimate.n),
        borderline,
    )


def verdict_of(run: Run) -> Verdict:
    """Find the verdict of a finished study.

    Raises:
        RunError: If the run is no study, or a table is damaged.

    Source: ours.
    """
    names = ("prompts", "severity", "null", "convergence", "statistics")
    prompts, severity, nulls, convergence, statistics = (
        run.table(name).to_pylist() for name in names
    )
    return verdict(prompts, severity, nulls, convergence, statistics, measure_of(run))


def measure_of(run: Run) -> str:
    """Return the similarity measure that says what counts as memorized.

    Raises:
        RunError: If the run is no study.
    """
    measures = run.manifest.options.get("similarity")
    if not measures:
        raise RunError(
            f"{str(run.path)!r} holds a {run.manifest.flow}, which compares no images; give the "
            "folder of a study"
        )
    return str(measures[0])


def _tally(
    label: str,
    prompts: Iterable[str],
    judged: Mapping[str, Judgement],
    state: State = "memorized",
) -> Tally:
    held = [judged[prompt] for prompt in prompts if prompt in judged]
    known = [found.state for found in held if isfinite(found.share)]
    count = known.count(state)
    return Tally(label, count, wilson(count, len(known)))


def _reproduction(tallies: Sequence[Tally], guidance: float | None, measure: str) -> str:
    if guidance is None:
        return (
            "The run holds no similarities to training images, so it cannot say which prompts "
            "reproduce one. `mnemoscope detect` scores prompts without images."
        )
    if not tallies:
        return (
            f"The run holds similarities by {measure} but no threshold to judge them by, so it "
            "cannot say which prompts reproduce a training image."
        )
    if not sum(tally.count for tally in tallies):
        whom = " and ".join(f"{tally.estimate.n} {tally.label}" for tally in tallies)
        return (
            f"Nothing was memorized: at guidance {guidance:g}, measured by {measure}, none of "
            f"{whom} gives its image back in at least half of its samples (95\u00a0% interval of "
            f"the share {percent(tallies[0].estimate.low)} to {percent(tallies[0].estimate.high)})."
        )
    held_out = ", whose images are held out" if tallies[-1].label == "controls" else ""
    said = " and ".join(f"{tally.text} of the {tally.label}" for tally in tallies)
    return (
        f"At guidance {guidance:g}, measured by {measure}, at least half of the samples reproduce "
        f"the image for {said}{held_out}."
    )


def _elsewhere(prompts: int, controls: int) -> str:
    """Tell of prompts that reproduce an image, but not their own; "" where there is none."""
    if not prompts:
        return ""
    count = "1 more prompt" if prompts == 1 else f"{prompts} more prompts"
    among = f" ({controls} of them a control)" if controls == 1 else f" ({controls} controls)"
    return (
        f" In {count}{among if controls else ''} at least half of the samples copy another "
        "training image."
    )


def _borderline(prompts: int) -> str:
    """Tell of prompts that count as memorized by a hair; "" for none."""
    if not prompts:
        return ""
    count = "1 prompt counts" if prompts == 1 else f"{prompts} prompts count"
    return f" {count} by samples that are no nearer to the image than some unrelated pair is."


def _prompts(count: int) -> str:
    return "1 prompt is" if count == 1 else f"{count} prompts are"


def _unjudged(count: int, why: str) -> str:
    """Tell of prompts of which it is not known whether they are memorized; "" for none."""
    return f" {_prompts(count)} not judged: {why}." if count else ""


def _why_unjudged(nulls: Sequence[Row], measure: str) -> str:
    for row in nulls:
        if row["measure"] == measure and row["threshold"] is None:
            reason = visible(row["reason"] or "there is no threshold", 200)
            return (
                f"{reason}. A threshold takes {FEWEST_PAIRS} unrelated pairs, which "
                f"{FEWEST_IMAGES} training images of different prompts give"
            )
    if not any(row["measure"] == measure for row in nulls):
        return "the run holds no null distribution, so it has no threshold"
    return "none of their samples could be compared with a training image"


def _origin(nulls: Sequence[Row], measure: str, threshold: float | None) -> str:
    """Say which unrelated pairs gave the threshold: those that are the nearer to each other."""
    pairs = {measure: "unrelated images", f"{measure}:generated": "samples and unrelated images"}
    fitted = [row for row in nulls if row["measure"] in pairs and row["threshold"] is not None]
    fitted.sort(key=lambda row: (row["threshold"] != threshold, row["measure"]))
    for row in fitted[:1]:
        rate = "" if row["rate"] is None else f", at a rate of {percent(row['rate'])}"
        return (
            f"{number(row['threshold'])}, fitted on {row['n']:,} pairs of {pairs[row['measure']]}"
            f"{rate}; the closest such pair has {number(row['max'])}"
        )
    reasons = [row["reason"] for row in nulls if row["measure"] == measure and row["reason"]]
    return visible(reasons[0]) if reasons else "no null distribution in this run"


def _deviation(statistics: Sequence[Row], measure: str, guidance: float | None) -> str:
    name = f"Pearson r of D1 and severity ({measure})"
    held = {
        row["name"]: row
        for row in statistics
        if row["analysis"] == "deviation"
        and row["population"] == "all prompts"
        and row["reference"] == "target"
        and row["window"] == "all updates"
        and guidance in (None, row["guidance"])
        and row["value"] is not None
    }
    if name not in held:
        return (
            "Whether the deviation D1 from the schedule follows severity was not measured; it "
            "needs prompts with a training image."
        )
    null, less = held.get(f"{name}, swapped images"), held.get(f"{name}, less swapped")
    if null is None or less is None or less["low"] is None:
        return (
            "Whether the deviation D1 from the schedule follows severity cannot be told: the run "
            "has no swapped images to compare with, or too few prompts, and D1 and severity are "
            "likenesses to the same image."
        )
    ends = interval(less["low"], less["high"], 2)
    beats = less["low"] > 0
    numbers = (
        f"the deviation D1 and severity correlate with r = {number(held[name]['value'], 2)}, and "
        f"with r = {number(null['value'], 2)} when every prompt is judged with another's image; "
        f"difference {number(less['value'], 2)} (95\u00a0% interval {ends}; {less['n']} prompts)"
    )
    if beats:
        return (
            "How far the image runs ahead of the sampling schedule follows how severely it is "
            f"reproduced: {numbers}."
        )
    return (
        "How far the image runs ahead of the sampling schedule does not follow severity any more "
        f"than with images that have nothing to do with the prompt: {numbers}."
    )


def _collapse(
    prompts: Sequence[Row],
    convergence: Sequence[Row],
    judged: Mapping[str, Judgement],
    guidance: float | None,
) -> str:
    here = [row for row in convergence if guidance is None or row["guidance"] == guidance]
    last = max((row["call"] for row in here), default=None)
    apart = {
        row["prompt_id"]: row["x0_g_distance"]
        for row in here
        if row["call"] == last and row["x0_g_distance"] is not None
    }
    known = [row["prompt_id"] for row in prompts if row["prompt_id"] in apart]
    told = {prompt: judged.get(prompt, NOT_JUDGED).memorized for prompt in known}
    ours = [apart[prompt] for prompt in known if told[prompt] is True]
    theirs = [apart[prompt] for prompt in known if told[prompt] is False]
    seeds = max((row["seeds"] for row in here), default=0)
    if not ours or not theirs:
        return (
            "Whether samples of a memorized prompt run together was not measured; that needs "
            "prompts judged memorized and others judged not to be, with two seeds or more each."
        )
    return (
        f"Started from {seeds} different noises, the samples of a memorized prompt end "
        f"{number(median(ours), 2)} apart and those of the others {number(median(theirs), 2)} "
        "(distance of clean estimates, root mean square a latent coordinate; medians over "
        f"{len(ours)} and {len(theirs)} prompts)."
    )
