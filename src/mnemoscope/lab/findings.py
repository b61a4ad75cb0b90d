"""Findings side by side: the paper's quantities on studies of several models.

One row a quantity, one column a study, each number with its 95 % interval over prompts where it
has one, and what the founding paper leads one to expect; then a row a score, where detectors were
ranked on the same prompts. Nothing is judged here: whether a finding holds for a model is for the
reader of the row.

Contents: `ROWS`; `findings`, and the `aucs` of a ranking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from mnemoscope.errors import InputError
from mnemoscope.ranking.markdown import table
from mnemoscope.runs.folder import Run
from mnemoscope.severity.truth import MEMORIZED_SHARE

GUIDANCE = 7.5
"""Guidance scale that is told where a run has it; its highest one elsewhere."""

EARLY = 0.2
"""Share of the path after which the variance across seeds is told."""


@dataclass(frozen=True)
class Row:
    """A statistic of table `statistics` as a row.

    Attributes:
        about: What it is called.
        expected: What the founding paper leads one to expect.
        analysis: Analysis it is of.
        name: Its name; `(MEASURE)` stands for the run's first similarity.
        population: The prompts it is over.
        window: The calls it is over; any where empty.
        reference: What stands for x; any where empty.
    """

    about: str
    expected: str
    analysis: str
    name: str
    population: str
    window: str = ""
    reference: str = ""


MINE, OTHERS, ALL = "memorized prompts", "not memorized prompts", "all prompts"

ROWS = (
    Row(
        "k at the first call, memorized",
        "near g",
        "overestimation",
        "k, c = mean at the first call",
        MINE,
    ),
    Row(
        "k at the first call, others",
        "near 0",
        "overestimation",
        "k, c = mean at the first call",
        OTHERS,
    ),
    Row(
        "k of the conditional at the first call, memorized",
        "at most about 1",
        "overestimation",
        "k of the conditional, c = 0 at the first call",
        MINE,
    ),
    Row(
        "r of D1 and severity",
        "about 0.92",
        "deviation",
        "Pearson r of D1 and severity (MEASURE)",
        ALL,
        "all updates",
        "target",
    ),
    Row(
        "r of D1 over ten updates and severity",
        "above 0",
        "deviation",
        "Pearson r of D1 and severity (MEASURE)",
        ALL,
        "first fifth of the updates",
        "target",
    ),
    Row(
        "r of D2 and severity",
        "above 0",
        "deviation",
        "Pearson r of D2 and severity (MEASURE)",
        ALL,
        "all updates",
        "target",
    ),
    Row(
        "largest w0 above the schedule, memorized",
        "above 0",
        "decomposition",
        "largest w0 - schedule",
        MINE,
        "",
        "target",
    ),
    Row(
        "largest w0 above the schedule, others",
        "near 0 or below",
        "decomposition",
        "largest w0 - schedule",
        OTHERS,
        "",
        "target",
    ),
    Row(
        "largest fall of wT below the schedule, memorized",
        "above 0",
        "decomposition",
        "largest schedule - wT",
        MINE,
        "",
        "target",
    ),
    Row(
        "largest fall of wT below the schedule, others",
        "near 0",
        "decomposition",
        "largest schedule - wT",
        OTHERS,
        "",
        "target",
    ),
    Row(
        "variance across seeds at the end, memorized",
        "near 0",
        "convergence",
        "variance of the state",
        MINE,
    ),
    Row(
        "variance across seeds at the end, others",
        "large",
        "convergence",
        "variance of the state",
        OTHERS,
    ),
)
"""What is told of each study, in order."""


def aucs(ranking: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the rows of `ranking.parquet` that hold the AUC over all prompts, by detector."""
    return {
        row["detector"]: row
        for row in ranking
        if row["metric"] == "auc" and row["population"] == "all"
    }


def findings(
    runs: Mapping[str, Run], rankings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> str:
    """Set studies side by side.

    Args:
        runs: Studies by the name of their column.
        rankings: Rows of `ranking.parquet` of `bench detectors`, by column, where there are some.

    Returns:
        A table in Markdown.

    Raises:
        InputError: If there is none, or one holds no statistics.
    """
    if not runs:
        raise InputError("no study given; expected NAME=RUN at least once")
    columns = [_column(name, run) for name, run in runs.items()]
    rows = [
        [about, *(column[about, expected] for column in columns), expected]
        for about, expected in columns[0]
    ]
    scores = [aucs((rankings or {}).get(name, ())) for name in runs]
    for score in dict.fromkeys(score for column in scores for score in column):
        values = [_stated(column.get(score), digits=3) for column in scores]
        rows.append([f"AUC of `{score}`", *values, ""])
    return table(["quantity", *runs, "expected"], rows)


def _column(name: str, run: Run) -> dict[tuple[str, str], str]:
    """Return what is told of a study, by what it is and what is expected of it."""
    scales = sorted({recipe["guidance"] for recipe in run.recipes.values()})
    guidance = GUIDANCE if GUIDANCE in scales else scales[-1]
    measure = str(run.manifest.options["similarity"][0])
    statistics = [row for row in run.table("statistics").to_pylist()
                  if row["guidance"] in (guidance, None)]  # fmt: skip
    if not statistics:
        raise InputError(f"{str(run.path)!r} ({name}) holds no statistics; finish the study first")
    checks = run.table("checks").to_pylist()
    judged = [
        row["holds"] for row in checks if row["kind"] == "evidence" and row["holds"] is not None
    ]
    return {
        ("g, sampler, steps", ""): _recipe(run, guidance),
        ("memorized, of those judged, by level", "rises"): _levels(run, guidance, measure),
        **{(row.about, row.expected): _stated(stated(statistics, row, measure)) for row in ROWS},
        ("variance across seeds early, memorized over others", "below 1"): _early(run, guidance),
        ("evidence that beats its null", "all"): f"{sum(judged)} of {len(judged)}",
    }


def _recipe(run: Run, guidance: float) -> str:
    recipe = next(r for r in run.recipes.values() if r["guidance"] == guidance)
    return f"{guidance:g}, {recipe['scheduler']}, {recipe['steps']}"


def _levels(run: Run, guidance: float, measure: str) -> str:
    """Say how many planted prompts of each level are memorized."""
    level = {row["prompt_id"]: row["level"] for row in run.table("prompts").to_pylist()}
    counts: dict[int, list[bool]] = {}
    for row in run.table("severity").to_pylist():
        if row["measure"] == measure and row["guidance"] == guidance and row["share"] is not None:
            counts.setdefault(level[row["prompt_id"]] or 0, []).append(
                row["share"] >= MEMORIZED_SHARE
            )
    return ", ".join(f"{at}: {sum(v)}/{len(v)}" for at, v in sorted(counts.items()))


def stated(
    statistics: Sequence[Mapping[str, Any]], row: Row, measure: str
) -> Mapping[str, Any] | None:
    """Return the row of table `statistics` that a row tells, if there is one with a value.

    Args:
        statistics: The rows at one guidance scale.
        row: What is wanted.
        measure: The run's first similarity.
    """
    name = row.name.replace("(MEASURE)", f"({measure})")
    for found in statistics:
        here = (
            found["analysis"] == row.analysis
            and found["name"] == name
            and found["population"] == row.population
            and row.window in ("", found["window"])
            and row.reference in ("", found["reference"])
        )
        if here and found["value"] is not None:
            return found
    return None


def _stated(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Say a number with its interval."""
    if found is None or found["value"] is None:
        return "–"
    value, low, high = (found[part] for part in ("value", "low", "high"))
    known = low is not None and isfinite(low)
    interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if known else ""
    return f"{value:.{digits}f}{interval}"


def _early(run: Run, guidance: float) -> str:
    """Compare the variance of the state across seeds, a fifth of the way along."""
    curves = {
        row["group"]: row
        for row in run.table("curves").to_pylist()
        if row["quantity"] == "variance of the state"
        and row["guidance"] == guidance
        and row["call"] == round(EARLY * _calls(run))
    }
    if not {"memorized", "not memorized"} <= curves.keys():
        return "–"
    return f"{curves['memorized']['median'] / curves['not memorized']['median']:.2f}"


def _calls(run: Run) -> int:
    return 1 + max(row["call"] for row in run.table("curves").to_pylist())
