r"""A comparison holds two runs against each other, prompt by prompt: before and after a change.

Formula, over the prompts p that both runs hold, with the same text::

    difference = mean over p of (B_p - A_p)      interval: percentile bootstrap over prompts

Pairing takes out what makes prompts differ from one another, which is most of their spread. As in
the page of a run, what is counted is prompts with a training image; controls are held apart.

Contents: `compare`.
"""

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from mnemoscope import mechanism
from mnemoscope.core.panels import (
    Bar,
    BarPanel,
    CurvePanel,
    Panel,
    Points,
    Role,
    ScatterPanel,
    Series,
)
from mnemoscope.core.stats import Estimate, bootstrap
from mnemoscope.errors import RunError
from mnemoscope.mechanism.base import PATH_GUIDANCE, quantiles
from mnemoscope.reporting import figures
from mnemoscope.reporting.copies import Counts, copies, counted
from mnemoscope.reporting.details import ON_CARD, shortened
from mnemoscope.reporting.explorer import State, card, state_of
from mnemoscope.reporting.page import PARTS, Drawn, command, digest, environment
from mnemoscope.reporting.quantities import Key, Quantities, quantities
from mnemoscope.reporting.severity import GROUPS
from mnemoscope.reporting.text import interval, number, visible
from mnemoscope.reporting.verdict import Row, measure_of, verdict
from mnemoscope.runs.folder import Run
from mnemoscope.runs.records import write_atomically
from mnemoscope.severity.truth import NOT_JUDGED, judge

OURS = "prompts with an image"
"""The population that is counted: prompts with a training image."""

POPULATIONS: Mapping[str, Role] = {
    "reproduced in A": "memorized",
    "not reproduced in A": "not memorized",
    "controls": "control",
}
"""Looks of the populations."""

CHANGED = 12
"""Prompts shown with pictures: those whose severity changed most."""

SEPARATE = 1e-12
"""Smallest width of an interval that can tell a difference from none."""


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        run: The run.
        label: "A" or "B".
        prompts: Rows of table `prompts`, by name.
        samples: Pictures of its samples at the common guidance, by prompt and by rising seed.
        values: Quantity by name, then by prompt, at the common guidance.
        computed: Its curves.
        memorized: Prompts it reproduces.
        known: Prompts of which it is known whether it does.
        controls: Controls, whose images were held out.
        states: State of each prompt, as on the page of a run.
        copied: Copies among the samples of each prompt.
        unjudged: Why it is not known of the others.
    """

    run: Run
    label: str
    prompts: Mapping[str, Row]
    samples: Mapping[str, Sequence[bytes]]
    values: Mapping[str, Mapping[str, float]]
    computed: Quantities
    memorized: frozenset[str]
    known: frozenset[str]
    controls: frozenset[str]
    states: Mapping[str, State]
    copied: Mapping[str, Counts]
    unjudged: str

    def told(self, prompt: str) -> str:
        """Say in which state a prompt is."""
        label = GROUPS[self.states[prompt]][0]
        if self.states[prompt] != "another":
            return label
        counts = self.copied[prompt]
        return f"{label} image, {counts.another} of {counts.n} samples"


@dataclass(frozen=True)
class Difference:
    """A quantity in both runs, over one population.

    Attributes:
        name: The quantity.
        population: The prompts.
        before: Mean over the pairs in A.
        after: Mean over the pairs in B.
        estimate: Mean of B - A with its interval; n counts pairs.
    """

    name: str
    population: str
    before: float
    after: float
    estimate: Estimate

    @property
    def told(self) -> str:
        """Say whether the interval tells a direction."""
        low, high = self.estimate.low, self.estimate.high
        if not (isfinite(low) and isfinite(high)):
            return "too few pairs"
        if high - low > SEPARATE and low > 0:
            return "higher in B"
        return "lower in B" if high - low > SEPARATE and high < 0 else "no difference told"


def compare(
    before: Run,
    after: Run,
    out: str | Path | None = None,
    *,
    redact_images: bool = False,
) -> Path:
    """Write the page that holds two runs against each other.

    Args:
        before: Run A.
        after: Run B; differences are B minus A.
        out: Folder of the page; `report` within run A's where not given.
        redact_images: Show digests in place of pictures.

    Returns:
        Path of the page, one HTML file that holds all it shows.

    Raises:
        RunError: If run A is no study, the runs share no prompt or no guidance scale, a table is
            damaged, or the folder cannot be written.

    Source: ours; the interval as in Efron 1979.
    """
    measure = measure_of(before)
    guidance = _common_guidance(before, after)
    a, b = (_side(run, label, guidance, measure) for run, label in ((before, "A"), (after, "B")))
    shared = [
        name
        for name, row in a.prompts.items()
        if name in b.prompts and b.prompts[name]["prompt"] == row["prompt"]
    ]
    if not shared:
        raise RunError(
            f"{str(before.path)!r} and {str(after.path)!r} share no prompt; compare runs of the "
            "same prompt file"
        )
    differences = _differences(a, b, shared)
    pairs = _pairs(a, b, shared)
    panels = [
        Drawn(
            f"compare-{place}",
            panel.title,
            panel.y_label,
            panel.caption,
            Markup(figures.svg(panel, f"c{place}")),
        )
        for place, panel in enumerate(_panels(a, b, shared, differences, guidance, measure))
    ]
    style, script = ((PARTS / name).read_text("utf-8") for name in ("style.css", "script.js"))
    page = (
        environment()
        .get_template("compare.html.j2")
        .render(
            style=Markup(style),
            script=Markup(script),
            style_digest=digest(style),
            script_digest=digest(script),
            sides=[_told(side) for side in (a, b)],
            changed=_changed(a, b),
            title=_title(a, b, shared),
            sentences=_sentences(a, b, shared, differences, guidance, measure),
            differences=differences,
            columns=[name for name in a.values if name in b.values],
            pairs=pairs,
            most=_most(a, b, pairs, redact=redact_images),
            panels=panels,
            interval=interval,
        )
    )
    folder = Path(out) if out is not None else before.path / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "compare.html", page.encode())
    except OSError as error:
        raise RunError(
            f"cannot write the page into {str(folder)!r}: {error.strerror or error}; make room "
            "or choose another folder"
        ) from error
    return folder / "compare.html"


def _common_guidance(before: Run, after: Run) -> float:
    a, b = (set(run.table("samples").column("guidance").to_pylist()) for run in (before, after))
    common = a & b
    if not common:
        raise RunError(
            f"the runs share no guidance scale: {sorted(a)} there, {sorted(b)} here; run one of "
            "them again with a scale of the other"
        )
    return PATH_GUIDANCE if PATH_GUIDANCE in common else max(common)


def _side(run: Run, label: str, guidance: float, measure: str) -> Side:
    rows = {
        name: run.table(name).to_pylist()
        for name in (
            "prompts", "samples", "similarities", "severity", "null", "convergence", "statistics"
        )
    }  # fmt: skip
    record = mechanism.read(run)
    computed = quantities(record)
    severity = [row for row in rows["severity"] if row["guidance"] == guidance]
    here = [row for row in severity if row["measure"] == measure]
    values: dict[str, dict[str, float]] = {
        "reproduces": {
            prompt: float(judged.memorized is True)
            for prompt, judged in judge(severity, measure).items()
            if isfinite(judged.share)
        },
        "share": {row["prompt_id"]: row["share"] for row in here if row["share"] is not None},
        "severity": {row["prompt_id"]: row["mean"] for row in here if row["mean"] is not None},
    }
    for name, _, scores in computed.scores:
        values[name] = {
            prompt: value
            for (prompt, g), value in scores.items()
            if g == guidance and value is not None and isfinite(value)
        }
    pictures: dict[str, list[bytes]] = {}
    for row in sorted(rows["samples"], key=lambda row: row["seed"]):
        if row["guidance"] == guidance and row["image"] is not None:
            pictures.setdefault(row["prompt_id"], []).append(row["image"])
    found = verdict(
        rows["prompts"],
        severity,
        rows["null"],
        rows["convergence"],
        rows["statistics"],
        measure,
    )
    controls = frozenset(row["prompt_id"] for row in rows["prompts"] if row["group"] == "control")
    counts = counted(copies(rows["prompts"], rows["similarities"], severity, rows["null"], measure))
    copied = {row["prompt_id"]: counts.get((row["prompt_id"], guidance), Counts())
              for row in rows["prompts"]}  # fmt: skip
    return Side(
        run,
        label,
        {row["prompt_id"]: row for row in rows["prompts"]},
        pictures,
        values,
        computed,
        found.memorized,
        frozenset(name for name, one in found.judged.items() if one.memorized is not None),
        controls,
        {
            name: state_of(
                found.judged.get(name, NOT_JUDGED), copied[name], control=name in controls
            )
            for name in copied
        },
        copied,
        found.unjudged,
    )


def mean(x: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """Return the mean along the last axis.

    Source: numpy.
    """
    return np.asarray(np.mean(x, axis=-1))


def _differences(a: Side, b: Side, shared: Sequence[str]) -> list[Difference]:
    ours = [name for name in shared if name not in a.controls]
    populations = {
        OURS: ours,
        "reproduced in A": [name for name in ours if name in a.memorized],
        "not reproduced in A": [
            name for name in ours if name in a.known and name not in a.memorized
        ],
        "controls": [name for name in shared if name in a.controls],
    }
    found: list[Difference] = []
    for name in a.values:
        for population, prompts in populations.items():
            x, y = (
                np.array([side.values.get(name, {}).get(p, nan) for p in prompts])
                for side in (a, b)
            )
            both = np.isfinite(x) & np.isfinite(y)
            if both.any():
                found.append(
                    Difference(
                        name,
                        population,
                        float(x[both].mean()),
                        float(y[both].mean()),
                        bootstrap(mean, y - x, name="mean difference"),
                    )
                )
    return found


def _pairs(a: Side, b: Side, shared: Sequence[str]) -> list[dict[str, Any]]:
    """Lay the pairs out as rows, the largest fall of severity first."""
    names = [name for name in a.values if name in b.values]
    rows = [
        {
            "prompt_id": prompt,
            "text": a.prompts[prompt]["prompt"],
            "group": a.prompts[prompt]["group"] or "no group",
            "values": [
                (a.values[name].get(prompt, nan), b.values[name].get(prompt, nan)) for name in names
            ],
        }
        for prompt in shared
    ]
    place = names.index("severity")

    def fall(row: Mapping[str, Any]) -> float:
        x, y = row["values"][place]
        return y - x if isfinite(x) and isfinite(y) else 0.0

    return sorted(rows, key=lambda row: (fall(row), row["prompt_id"]))


def _most(
    a: Side, b: Side, pairs: Sequence[Mapping[str, Any]], *, redact: bool
) -> list[dict[str, Any]]:
    """Choose the prompts that changed most, with their pictures or the digests of these."""
    names = [name for name in a.values if name in b.values]
    place = names.index("severity")

    def change(row: Mapping[str, Any]) -> float:
        x, y = row["values"][place]
        return -abs(y - x) if isfinite(x) and isfinite(y) else 0.0

    references = {
        row["reference_id"]: row["image"] for row in a.run.table("references").to_pylist()
    }
    shown: list[dict[str, Any]] = []
    for row in sorted(pairs, key=change)[:CHANGED]:
        name = row["prompt_id"]
        own = [r for r in a.prompts[name]["references"] if r in references]
        target = references[own[0]] if own else None
        before, after = row["values"][place]
        sides: list[dict[str, Any]] = []
        for side in (a, b):
            pictures = side.samples.get(name, ())[:ON_CARD]
            about = {"state": side.states[name], "told": side.told(name)}
            if redact:
                held = [] if target is None else [target]
                sides.append(about | {"digests": [shortened(one) for one in (*held, *pictures)]})
            elif drawn := card(target, pictures):
                data = base64.b64encode(drawn).decode("ascii")
                sides.append(about | {"card": f"data:image/webp;base64,{data}"})
        if len(sides) == 2 and change(row):
            shown.append(
                {
                    "text": row["text"],
                    "sides": sides,
                    "before": before,
                    "after": after,
                }
            )
    return shown


def _title(a: Side, b: Side, shared: Collection[str]) -> str:
    both = _known(a, b, shared)
    if not both:
        return "No prompt is judged in both runs"
    counts = [sum(name in side.memorized for name in both) for side in (a, b)]
    plural = "prompt reproduces" if counts[0] == 1 else "prompts reproduce"
    return f"{counts[0]} of {len(both)} {plural} an image in A, {counts[1]} in B"


def _known(a: Side, b: Side, shared: Collection[str]) -> list[str]:
    """Return the prompts with a training image that are judged in both runs."""
    return [name for name in shared if name in a.known & b.known - a.controls]


def _sentences(
    a: Side,
    b: Side,
    shared: Sequence[str],
    differences: Sequence[Difference],
    guidance: float,
    measure: str,
) -> list[str]:
    both = _known(a, b, shared)
    gone = sum(name in a.memorized and name not in b.memorized for name in both)
    new = sum(name not in a.memorized and name in b.memorized for name in both)
    first = (
        f"Both runs hold {len(shared)} prompts with the same text, compared at guidance "
        f"{guidance:g}."
    )
    if both:
        first += (
            f" Of {len(both)} with a training image {gone} reproduce it in A only, {new} in B "
            f"only, by {measure}."
        )
        strays = [sum(side.states[name] == "another" for name in both) for side in (a, b)]
        if any(strays):
            first += f" {strays[0]} copy another training image in A, {strays[1]} in B."
    ours = [name for name in shared if name not in a.controls]
    if left := len(ours) - len(both):
        side = a if any(name not in a.known for name in ours) else b
        are = "prompt is" if left == 1 else "prompts are"
        first += f" {left} {are} not judged in both: in {side.label}, {side.unjudged}."
    said = [first]
    for name, what in (
        ("severity", "severity (similarity to the image)"),
        ("D1", "the deviation D1"),
        ("apart", "the distance between seeds at the end"),
    ):
        for row in differences:
            if row.name == name and row.population == OURS:
                ends = interval(row.estimate.low, row.estimate.high) or "not given"
                said.append(
                    f"On average {what} changes by {number(row.estimate.value)} from A to B "
                    f"(95\u00a0% interval {ends}; {row.estimate.n} pairs): {row.told}."
                )
    return said


def _told(side: Side) -> dict[str, Any]:
    manifest = side.run.manifest
    return {
        "label": side.label,
        "model": manifest.model.get("name", "given"),
        "digest": manifest.model.get("digest", "")[:16],
        "command": command(manifest.given),
        "status": manifest.status,
        "started": manifest.started,
        "memorized": f"{len(side.memorized - side.controls)} of {len(side.known - side.controls)} "
        "judged prompts with a training image reproduce"
        if side.known - side.controls
        else "No prompt is judged: none is known to reproduce",
    }


def _changed(a: Side, b: Side) -> list[str]:
    return [
        visible(text.replace(" there", " in A").replace(" here", " in B"), 300)
        for text in a.run.manifest.differences(b.run.manifest)
    ]


def _panels(
    a: Side,
    b: Side,
    shared: Sequence[str],
    differences: Sequence[Difference],
    guidance: float,
    measure: str,
) -> list[Panel]:
    panels: list[Panel] = []
    x, y = (side.values["severity"] for side in (a, b))
    both = [name for name in shared if name in x and name in y]
    if both:
        panels.append(
            ScatterPanel(
                "Severity of each prompt in both runs",
                "severity in A",
                "severity in B",
                f"One dot a prompt, by {measure} at g = {guidance:g}, mean over seeds; groups as "
                f"in A. Where nothing changed, dots lie on the line. n = {len(both)}.",
                tuple(
                    Points(
                        f"{label} in A (n = {len(members)})",
                        role,
                        np.array([x[p] for p in members]),
                        np.array([y[p] for p in members]),
                        tuple(members),
                    )
                    for state, (label, role) in GROUPS.items()
                    if (members := [name for name in both if a.states[name] == state])
                ),
                equal=True,
            )
        )
    bars = [
        Bar(
            row.population,
            POPULATIONS.get(row.population, "other"),
            row.estimate.value,
            row.estimate.low,
            row.estimate.high,
        )
        for row in differences
        if row.name == "severity"
    ]
    if bars:
        panels.append(
            BarPanel(
                "Change of severity",
                "",
                "severity in B − severity in A",
                "Mean over pairs. Interval: 95 % percentile bootstrap over prompts.",
                tuple(bars),
            )
        )
    reproduced = [name for name in shared if name in a.memorized - a.controls]
    whom = reproduced or [name for name in shared if name not in a.controls]
    population = "prompts reproduced in A" if reproduced else OURS
    for name, title, label in (
        ("w0", "Weight of the image in the state", "w0"),
        ("k", "Over-estimation", "k"),
        ("variance", "Variance across seeds", "variance of the guided estimate"),
    ):
        series = [
            made for side in (a, b) if (made := _series(side, name, whom, guidance)) is not None
        ]
        if series:
            panels.append(
                CurvePanel(
                    title,
                    "call, from first to last",
                    label,
                    f"{population.capitalize()}, g = {guidance:g}. Line: median over prompts of "
                    "the mean over seeds; band: 16 % to 84 % of prompts.",
                    tuple(series),
                )
            )
    return panels


def _series(side: Side, name: str, prompts: Sequence[str], guidance: float) -> Series | None:
    rows: list[np.ndarray] = []
    path = side.computed.paths.get(guidance)
    for prompt in prompts:
        key: Key = (prompt, guidance)
        if name == "variance":
            if key in side.computed.variance:
                rows.append(side.computed.variance[key])
        elif path is not None and prompt in path.rows:
            rows.append(path.values[name][path.rows[prompt]].mean(axis=0))
    if not rows:
        return None
    values = np.stack(rows)
    middle, low, high = quantiles(values, (0.5, 0.16, 0.84))
    calls = np.arange(values.shape[1], dtype=np.float64)
    return Series(
        f"{side.label} (n = {len(rows)})", "other", calls, middle, low, high,
        np.array(side.computed.schedule["log_snr"]),
    )  # fmt: skip
