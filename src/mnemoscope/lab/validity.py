r"""Validity: published facts of Stable Diffusion about memorization, beside what a lab model shows.

Each fact names a number of a study or of a ranking, what was published, and when the lab agrees::

    separates    the upper end of the AUC's 95 % interval reaches the published AUC less 0.05
    higher       the intervals of the two medians, or AUCs, lie apart, and as published
    at least     a median reaches an amount, and its interval lies above that of other prompts
    r            the interval lies above 0.5 and its upper end reaches the published r less 0.05

Where intervals meet, or a run lacks what a fact is told from, the fact "cannot be told". Where the
lab disagrees it may not be used to speak of that fact.

Contents: `FACTS`, `validity`, `Evidence`.

Source: Kim, Kim & Lee 2025 (SD 1.4: first-step losses, k, weights, correlations); Wen et al. 2024,
Jeon et al. 2025 (the table of AUCs on like prompts), Asthana & Belagiannis 2026, Chen et al. 2025,
Kim & Lee 2026, Huang et al. 2026; Carlini et al. 2023, Somepalli et al. 2023 (duplicates).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from mnemoscope.errors import InputError
from mnemoscope.ranking.markdown import table
from mnemoscope.runs.folder import Run

MARGIN = 0.05
"""How far below the published AUC the upper end of a lab interval may lie."""

GUIDANCE = 7.5
"""Guidance scale of all published facts but the sweeps."""

EARLY = 7
"""Network call at which curves are read early on the path, of 50."""

MINE, OTHERS, ALL = "memorized prompts", "not memorized prompts", "all prompts"

Interval = tuple[float, float, float]
"""Value, lower end and upper end."""

Verdict = bool | None
"""Whether the lab agrees; None where the run cannot tell."""

Finding = tuple[str, Verdict]
"""What the lab shows, and whether it agrees."""

NOT_MEASURED: Finding = ("not measured", None)


@dataclass(frozen=True)
class Evidence:
    """What facts are read from.

    Attributes:
        statistics: Rows of table `statistics`, of all guidance scales.
        curves: Rows of table `curves`.
        ranking: Rows of table `ranking`.
        groups: The `groups` of an evaluation.
    """

    statistics: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    ranking: Sequence[Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        run: Run,
        ranking: Sequence[Mapping[str, Any]] = (),
        evaluation: Mapping[str, Any] | None = None,
    ) -> "Evidence":
        """Read a study.

        Raises:
            InputError: If it holds no statistics.
        """
        statistics = run.table("statistics").to_pylist()
        if not statistics:
            raise InputError(f"{str(run.path)!r} holds no statistics; finish the study first")
        groups = () if evaluation is None else evaluation["groups"]
        return cls(statistics, run.table("curves").to_pylist(), ranking, groups)

    def statistic(
        self,
        analysis: str,
        name: str,
        population: str,
        *,
        reference: str | None = "target",
        guidance: float = GUIDANCE,
        window: str | None = None,
    ) -> Interval | None:
        """Return a statistic with its interval; None where the run lacks it."""
        for row in self.statistics:
            if (
                (row["analysis"], row["name"], row["population"]) == (analysis, name, population)
                and row["guidance"] in (guidance, None)
                and row["reference"] == reference
                and window in (None, row["window"])
            ):
                return _interval(row)
        return None

    def curve(self, quantity: str, population: str, call: int) -> Interval | None:
        """Return the median of a curve over prompts at a call, -1 the last."""
        group = population.removesuffix(" prompts")
        rows = [
            row for row in self.curves
            if (row["quantity"], row["group"], row["guidance"]) == (quantity, group, GUIDANCE)
            and row["law"] in ("path", None) and row["reference"] in ("target", None)
        ]  # fmt: skip
        rows.sort(key=lambda row: row["call"])
        wanted = rows[-1:] if call == -1 else [row for row in rows if row["call"] == call]
        return _interval({**wanted[0], "value": wanted[0]["median"]}) if wanted else None

    def auc(self, detector: str) -> Interval | None:
        """Return a detector's AUC over all prompts."""
        for row in self.ranking:
            if (row["detector"], row["metric"], row["population"]) == (detector, "auc", "all"):
                return _interval(row)
        return None


def _interval(row: Mapping[str, Any]) -> Interval | None:
    if row["value"] is None or not isfinite(row["value"]):
        return None
    # Too few prompts for an interval can tell nothing from anything.
    if row["low"] is None or not isfinite(row["low"]):
        return row["value"], -inf, inf
    return row["value"], row["low"], row["high"]


def _shown(found: Interval) -> str:
    value, low, high = found
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if isfinite(low) else f"{value:.2f}"


def _apart(
    first: Interval | None, second: Interval | None, holds: Callable[[Interval, Interval], Verdict]
) -> Finding:
    """Set two numbers side by side."""
    if first is None or second is None:
        return NOT_MEASURED
    return f"{_shown(first)} against {_shown(second)}", holds(first, second)


def _above(first: Interval, second: Interval) -> Verdict:
    """Return whether an interval lies above another; None where they meet."""
    if first[1] > second[2]:
        return True
    return False if first[2] < second[1] else None


def _below(first: Interval, second: Interval) -> Verdict:
    return _above(second, first)


def _amount(found: Interval, others: Interval, least: float) -> Verdict:
    """Return whether a median is at least so much and its interval above others'."""
    if found[0] >= least and found[1] > others[2]:
        return True
    return False if found[2] < least else None


def _correlated(found: Interval, expected: float) -> Verdict:
    if found[2] < expected:
        return False
    return True if found[1] > 0.5 else None


def _groups(
    find: Callable[[str], Interval | None], holds: Callable[[Interval, Interval], Verdict]
) -> Finding:
    """Set memorized prompts beside others."""
    return _apart(find(MINE), find(OTHERS), holds)


def _one(found: Interval | None, holds: Callable[[Interval], Verdict]) -> Finding:
    return NOT_MEASURED if found is None else (_shown(found), holds(found))


@dataclass(frozen=True)
class Fact:
    """A published fact.

    Attributes:
        about: The fact.
        published: What was published on Stable Diffusion.
        agrees: When the lab agrees.
        find: What the lab shows.
    """

    about: str
    published: str
    agrees: str
    find: Callable[[Evidence], Finding]


def _separates(detector: str, published: float, about: str) -> Fact:
    def find(evidence: Evidence) -> Finding:
        return _one(evidence.auc(detector), lambda found: found[2] >= published - MARGIN)

    agrees = f"the interval reaches {published - MARGIN:.2f}"
    return Fact(f"AUC of {about} (`{detector}`)", f"{published:.3f}", agrees, find)


def _order(better: str, worse: str, published: str) -> Fact:
    def find(evidence: Evidence) -> Finding:
        return _apart(evidence.auc(better), evidence.auc(worse), _above)

    return Fact(f"`{better}` separates better than `{worse}`", published, "higher", find)


def _rises_with_repetitions(evidence: Evidence) -> Finding:
    by_level: dict[int, list[float]] = {}
    for row in evidence.groups:
        if row["family"] == "verbatim":
            by_level.setdefault(row["level"], []).append(row["reproduced"])
    if len(by_level) < 2:
        return NOT_MEASURED
    means = [sum(shares) / len(shares) for _, shares in sorted(by_level.items())]
    text = ", ".join(
        f"level {at}: {share:.0%}" for at, share in zip(sorted(by_level), means, strict=True)
    )
    return text, means == sorted(means) and means[-1] > means[0]


def _swept(quantity: str) -> Callable[[Evidence], Finding]:
    def find(evidence: Evidence) -> Finding:
        ends = [
            evidence.statistic("amplification", quantity, MINE, guidance=g) for g in _ends(evidence)
        ]
        if len(ends) < 2:
            return NOT_MEASURED
        return _apart(ends[1], ends[0], _above)

    return find


def _ends(evidence: Evidence) -> list[float]:
    scales = sorted(
        {row["guidance"] for row in evidence.statistics if row["analysis"] == "amplification"}
    )
    return [scales[0], scales[-1]] if len(scales) > 1 else []


def _correlation(deviation: str, expected: float) -> Callable[[Evidence], Finding]:
    def find(evidence: Evidence) -> Finding:
        for row in evidence.statistics:
            if (
                row["name"].startswith(f"Pearson r of {deviation} and severity")
                and (row["population"], row["reference"]) == (ALL, "target")
                and (row["window"], row["guidance"]) == ("all updates", GUIDANCE)
            ):
                return _one(_interval(row), lambda found: _correlated(found, expected))
        return NOT_MEASURED

    return find


def _distances(evidence: Evidence) -> Finding:
    for row in evidence.statistics:
        if row["name"].startswith("Spearman rho of severity") and row["population"] == ALL:
            return _one(_interval(row), lambda found: _below(found, (0.0, 0.0, 0.0)))
    return NOT_MEASURED


FACTS: tuple[Fact, ...] = (
    Fact(
        "guidance over-estimates the image of a memorized prompt at the first call (k)",
        "near g = 7.5",
        "at least g/2, and higher than others'",
        lambda e: _groups(
            lambda who: e.statistic("overestimation", "k, c = mean at the first call", who),
            lambda mine, others: _amount(mine, others, GUIDANCE / 2),
        ),
    ),
    Fact(
        "the over-estimate is gone at the last call (k)",
        "1",
        "within 0.2 of 1",
        lambda e: _one(
            e.statistic("overestimation", "k, c = mean at the last call", MINE),
            lambda found: abs(found[0] - 1) <= 0.2,
        ),
    ),
    Fact(
        "the conditional estimate alone does not over-estimate (k of the conditional)",
        "at most about 1",
        "at most 1.2",
        lambda e: _one(
            e.statistic("overestimation", "k of the conditional, c = 0 at the first call", MINE),
            lambda found: found[0] <= 1.2,
        ),
    ),
    Fact(
        "without guidance the first call's loss is lower for memorized prompts",
        "lower",
        "lower than others'",
        lambda e: _groups(
            lambda who: e.statistic(
                "loss", "conditional loss at the first call", f"{who}, generated states"
            ),
            _below,
        ),
    ),
    Fact(
        "with guidance the first call's loss is higher for memorized prompts",
        "higher",
        "higher than others'",
        lambda e: _groups(
            lambda who: e.statistic(
                "loss", "guided loss at the first call", f"{who}, generated states"
            ),
            _above,
        ),
    ),
    Fact(
        "with guidance the last call's loss is lower for memorized prompts",
        "lower",
        "lower than others'",
        lambda e: _groups(lambda who: e.curve("guided loss", who, -1), _below),
    ),
    Fact(
        "the conditional noise points away from the image at the first call (cosine)",
        "negative, others' nearer 0",
        "lower than others', and negative",
        lambda e: _groups(
            lambda who: e.statistic("alignment", "cos(eps_c, x)", f"{who}, law path"),
            lambda mine, others: _below(mine, others) if mine[2] < 0 else None,
        ),
    ),
    Fact(
        "w0 rises above the schedule for memorized prompts",
        "above",
        "at least 0.01, and higher than others'",
        lambda e: _groups(
            lambda who: e.statistic("decomposition", "largest w0 - schedule", who),
            lambda mine, others: _amount(mine, others, 0.01),
        ),
    ),
    Fact(
        "wT falls below the schedule for memorized prompts",
        "falls clearly",
        "at least 0.1, and higher than others'",
        lambda e: _groups(
            lambda who: e.statistic("decomposition", "largest schedule - wT", who),
            lambda mine, others: _amount(mine, others, 0.1),
        ),
    ),
    Fact(
        "the variance across seeds of memorized prompts is below others' early",
        "below the schedule",
        "lower than others'",
        lambda e: _groups(lambda who: e.curve("variance of the state", who, EARLY), _below),
    ),
    Fact(
        "the variance across seeds of memorized prompts ends near 0",
        "near 0",
        "below a tenth of others'",
        lambda e: _groups(
            lambda who: e.statistic("convergence", "variance of the state", who, reference=None),
            lambda mine, others: mine[0] < 0.1 * others[0],
        ),
    ),
    Fact(
        "the more severe, the closer the seeds (Spearman of severity and distance)",
        "negative",
        "the interval is below 0",
        _distances,
    ),
    Fact(
        "D1 follows severity (Pearson)",
        "0.92",
        "the interval lies above 0.5 and reaches 0.87",
        _correlation("D1", 0.92 - MARGIN),
    ),
    Fact(
        "D2 follows severity (Pearson)",
        "0.92 (D1 or D2, not said)",
        "the interval lies above 0.5 and reaches 0.87",
        _correlation("D2", 0.92 - MARGIN),
    ),
    Fact("D1 of memorized prompts rises with g", "rises", "higher", _swept("D1")),
    Fact("D2 of memorized prompts rises with g", "rises", "higher", _swept("D2")),
    Fact(
        "severity of memorized prompts rises with g",
        "rises",
        "higher",
        _swept("severity"),
    ),
    Fact(
        "more samples are copies of what was repeated more",
        "rises",
        "does not fall from any level to the next",
        _rises_with_repetitions,
    ),
    _separates("gap_norm", 0.992, "the gap norm, first step, 4 seeds"),
    _separates("gap_norm:10", 0.997, "the gap norm over the first steps"),
    _separates("gap_norm:all", 0.996, "the gap norm over the whole path"),
    _separates("sharpness", 0.998, "sharpness"),
    _separates("anisotropy", 0.999, "anisotropy"),
    _separates("dsm:1", 0.975, "the change of the conditional noise"),
    _separates("hessian_difference", 0.976, "the difference of the Hessians' products"),
    _separates("curvature_difference", 0.997, "the difference of curvatures, last step"),
    _separates("bright_ending", 0.997, "the gap where the ending is bright"),
    _separates("bright_ending:attention", 0.886, "the bright ending alone"),
    _separates("update_band", 0.999, "the norms of the updates"),
    _separates("attention_entropy", 0.839, "the attention's entropy at the first step"),
    _separates("attention_entropy:path", 0.628, "the attention's entropy over the path"),
    _separates("generate_and_cluster", 0.908, "the distance of generations"),
    _order("gap_norm:10", "gap_norm", "0.997 against 0.992"),
    _order("anisotropy", "gap_norm", "0.999 against 0.992"),
    _order("sharpness", "gap_norm", "0.998 against 0.992"),
    _order("gap_norm", "attention_entropy", "0.992 against 0.839"),
)
"""The facts, in order: mechanism, sweeps, detectors on Stable Diffusion 1.4."""


def validity(evidence: Evidence) -> str:
    """Set the published facts beside what a lab model shows, as Markdown; first how many agree."""
    found = [(fact, *fact.find(evidence)) for fact in FACTS]
    agreeing, denying = (sum(agrees is is_so for *_, agrees in found) for is_so in (True, False))
    verdicts = {True: "yes", False: "**no**", None: "cannot be told"}
    rows = [
        [fact.about, fact.published, shown, verdicts[agrees], fact.agrees]
        for fact, shown, agrees in found
    ]
    heads = ["fact", "published", "the lab", "agrees", "agrees if"]
    told = (
        f"Of {len(found)} facts {agreeing} agree and {denying} do not; the others cannot be told."
    )
    return f"{told}\n\n{table(heads, rows)}"
