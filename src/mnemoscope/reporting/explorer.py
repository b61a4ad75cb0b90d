"""The explorer's data is what the page's list of prompts shows and sorts by, as plain JSON.

It is light: texts, scores and the name of one small picture a prompt and guidance, so that a run of
ten thousand prompts opens at once. All else about a prompt is its detail (see `details`).

A card is that small picture: the training image, and four samples beside it. The state of a prompt
at a guidance scale decides its colour, everywhere on the page::

    memorized    at least half of its samples reproduce its own image
    another      at least half reproduce a training image, but not so its own
    control      a control that is neither
    plain        any other prompt that is neither
    unjudged     neither can be told

Contents: `Explorer`, `explorer`, `State`, `state_of`, `card`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Literal

from PIL import Image

from mnemoscope.reporting.copies import Counts
from mnemoscope.reporting.quantities import Key, Quantities
from mnemoscope.reporting.scores import RECOMMENDED, Scores
from mnemoscope.reporting.text import short, visible
from mnemoscope.reporting.verdict import Row, Verdict
from mnemoscope.severity.truth import MEMORIZED_SHARE, NOT_JUDGED, Judgement, judge

TILE = 96
"""Side of the training image in a card, in pixels; a sample's is half of it."""

State = Literal["memorized", "another", "control", "plain", "unjudged"]

TEXT = 400
"""Characters of a prompt that the list shows and searches; its own page shows more."""


@dataclass(frozen=True)
class Explorer:
    """What the page's table and gallery show.

    Attributes:
        data: JSON-ready; texts are spelled out (see `visible`), not escaped.
        order: Prompts as listed: by falling severity, ties by name.
        lead: Guidance scale that leads; None where the run has no sample.
        scales: All guidance scales, the leading one first.
        scores: Scores of detectors.
        states: State of every prompt at every guidance scale.
    """

    data: dict[str, Any]
    order: tuple[Row, ...]
    lead: float | None
    scales: tuple[float, ...]
    scores: Scores
    states: Mapping[Key, State]

    @property
    def places(self) -> dict[str, int]:
        """Return the place of each prompt in the list."""
        return {row["prompt_id"]: place for place, row in enumerate(self.order)}


@dataclass
class _Columns:
    """Columns of numbers a prompt and guidance can be sorted by."""

    told: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    values: list[Mapping[Key, float | None]] = field(
        default_factory=list[Mapping[Key, float | None]]
    )

    def add(self, label: str, about: str, values: Mapping[Key, float | None]) -> None:
        if any(value is not None and isfinite(value) for value in values.values()):
            self.told.append({"label": label, "about": about})
            self.values.append(values)

    def of(self, key: Key) -> list[float | None]:
        return [short(values.get(key)) for values in self.values]


def explorer(
    prompts: Sequence[Row],
    samples: Sequence[Row],
    severity: Sequence[Row],
    scores: Scores,
    quantities: Quantities,
    found: Verdict,
    copied: Mapping[Key, Counts],
) -> Explorer:
    """Collect what the explorer shows.

    Args:
        prompts: Rows of table `prompts`.
        samples: Rows of table `samples`.
        severity: Rows of table `severity`.
        scores: Scores of detectors.
        quantities: What the record says of each prompt.
        found: The verdict, whose measure and guidance lead.
        copied: The copies among the samples of each prompt.

    Source: ours.
    """
    rated = {
        (row["prompt_id"], row["guidance"]): row
        for row in severity
        if row["measure"] == found.measure
    }
    scales = sorted({row["guidance"] for row in samples})
    lead = found.guidance if found.guidance in scales else scales[-1] if scales else None

    def weight(row: Row) -> tuple[float, float, str]:
        at = rated.get((row["prompt_id"], lead)) if lead is not None else None
        share, mean = (at["share"], at["mean"]) if at else (None, None)
        return (
            -(share if share is not None else -1.0),
            -(mean if mean is not None else -inf),
            row["prompt_id"],
        )

    ordered = tuple(sorted(prompts, key=weight))
    judged = {
        (prompt, scale): verdict
        for scale in sorted({row["guidance"] for row in severity})
        for prompt, verdict in judge(
            [row for row in severity if row["guidance"] == scale], found.measure
        ).items()
    }
    columns = _columns(rated, judged, severity, scores, quantities, found.measure)
    counts: dict[Key, int] = {}
    for row in samples:
        key = row["prompt_id"], row["guidance"]
        counts[key] = counts.get(key, 0) + (row["status"] == "ok")
    states: dict[Key, State] = {
        (row["prompt_id"], scale): state_of(
            judged.get((row["prompt_id"], scale), NOT_JUDGED),
            copied.get((row["prompt_id"], scale), Counts()),
            control=row["group"] == "control",
        )
        for row in ordered
        for scale in scales
    }
    data = {
        "prompts": [
            _entry(row)
            | {
                "at": {
                    f"{scale:g}": _at(
                        rated.get(key),
                        judged.get(key, NOT_JUDGED),
                        counts.get(key, 0),
                        columns.of(key),
                        copied.get(key, Counts()),
                        states[key],
                    )
                    for scale in scales
                    for key in [(row["prompt_id"], scale)]
                }
            }
            for row in ordered
        ],
        "columns": columns.told,
        "detectors": scores.listed(),
        "guidances": [f"{scale:g}" for scale in scales],
        "lead": None if lead is None else f"{lead:g}",
        "measure": found.measure,
        "threshold": short(found.threshold),
        "unjudged": found.unjudged,
        "schedule": quantities.schedule,
    }
    scales = sorted(scales, key=lambda scale: scale != lead)
    return Explorer(data, ordered, lead, tuple(scales), scores, states)


def state_of(judged: Judgement, copied: Counts, *, control: bool) -> State:
    """Return the state of a prompt at a guidance scale; see the module.

    Source: ours.
    """
    if judged.memorized:
        return "memorized"
    if copied.another and copied.own + copied.another >= MEMORIZED_SHARE * copied.n:
        return "another"
    if judged.memorized is None:
        return "unjudged"
    return "control" if control else "plain"


def _columns(
    rated: Mapping[Key, Row],
    judged: Mapping[Key, Judgement],
    severity: Sequence[Row],
    scores: Scores,
    quantities: Quantities,
    measure: str,
) -> _Columns:
    columns = _Columns()
    columns.add(
        "share",
        "share of samples that reproduce the image, or its layout where that is a template",
        {key: verdict.share for key, verdict in judged.items()},
    )
    for name, about in (
        ("mean", f"severity: mean similarity to the image ({measure}) over seeds"),
        ("max", f"similarity of the closest sample ({measure})"),
    ):
        label = {"mean": "severity", "max": "closest"}[name]
        columns.add(label, about, {key: row[name] for key, row in rated.items()})
    for label, about, values in quantities.scores:
        columns.add(label, about, values)
    for other in sorted({row["measure"] for row in severity} - {measure}):
        columns.add(
            f"severity {other}",
            f"mean similarity ({other}) over seeds",
            {
                (row["prompt_id"], row["guidance"]): row["mean"]
                for row in severity
                if row["measure"] == other
            },
        )
    for name in scores.first:
        which = "the detector we recommend" if name == RECOMMENDED else "a detector"
        columns.add(name, f"score of {which}; larger is more memorized", scores.column(name))
    return columns


def _entry(row: Row) -> dict[str, Any]:
    return {
        "id": visible(row["prompt_id"], 120),
        "text": visible(row["prompt"], TEXT),
        "group": visible(row["group"] or "no group", 60),
        "level": row["level"],
        "seen": row["repetitions"],
        "kind": visible(row["kind"] or "", 60),
        # A control's image is held out, so no page may call it a training image.
        "image": "held-out image" if row["group"] == "control" else "training image",
        "tokens": row["tokens"],
        "truncated": row["truncated"],
    }


def _at(
    rated: Row | None,
    judged: Judgement,
    n: int,
    values: list[float | None],
    copied: Counts,
    state: State,
) -> dict[str, Any]:
    grade = rated["grade"] if rated else None
    return {
        "n": rated["n"] if rated else n,
        "share": short(judged.share),
        "state": state,
        "another": copied.another,
        "borderline": copied.borderline,
        "grade": grade or "not graded",
        "v": values,
    }


def card(target: bytes | None, samples: Sequence[bytes]) -> bytes | None:
    """Draw a card.

    Args:
        target: The training image, as stored.
        samples: Samples, as stored; the first four are drawn.

    Returns:
        WebP of 2·`TILE` by `TILE` pixels, transparent where there is no picture; None where there
        is none at all.

    Source: ours.
    """
    if target is None and not samples:
        return None
    sheet = Image.new("RGBA", (2 * TILE, TILE))
    half = TILE // 2
    places = [(target, 0, 0, TILE)] if target is not None else []
    places += [
        (sample, TILE + half * (at % 2), half * (at // 2), half)
        for at, sample in enumerate(samples[:4])
    ]
    for data, left, top, side in places:
        # A mask travels in the picture's transparency; a page shows the whole picture.
        picture = Image.open(io.BytesIO(data), formats=("WEBP",)).convert("RGB")
        picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2)
        if max(picture.size) < side:
            ratio = side / max(picture.size)
            picture = picture.resize(
                (round(picture.width * ratio), round(picture.height * ratio)),
                Image.Resampling.BICUBIC,
            )
        sheet.paste(
            picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2)
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()
