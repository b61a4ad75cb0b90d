"""The explorer's data is what the page's table and gallery of prompts show, as plain JSON.

Images are kept once each, as stored (WebP), in the order of what a reader looks at first: the
training images, then samples at the verdict's guidance by falling severity. When they exceed the
budget the rest is left out, counted, and stays in the run folder.

Contents: `Explorer`, `explorer`.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from mnemoscope.images import decode, thumbnail
from mnemoscope.report.text import visible
from mnemoscope.report.verdict import Row, Verdict

BUDGET = 4_300_000
"""Base64 characters of images in one page; with figures and tables it stays below 6 MB."""

SEEDS = 10
"""Samples of one prompt and guidance that a page shows."""


@dataclass
class _Album:
    """Images by place, each kept once, up to the budget."""

    left: int
    images: list[str] = field(default_factory=list[str])
    places: dict[bytes, int] = field(default_factory=dict[bytes, int])
    omitted: int = 0

    def place(self, image: bytes | None) -> int | None:
        """Return where an image is, or None where there is none or no room for it."""
        if image is None:
            return None
        if image not in self.places:
            size = 4 * ((len(image) + 2) // 3)
            if size > self.left:
                self.omitted += 1
                return None
            self.left -= size
            self.places[image] = len(self.images)
            self.images.append(b64encode(image).decode("ascii"))
        return self.places[image]


@dataclass(frozen=True)
class Explorer:
    """What the page's table and gallery show.

    Attributes:
        data: JSON-ready; texts are spelled out (see `visible`), not escaped.
        omitted: Images left out for size.
    """

    data: dict[str, Any]
    omitted: int

    def picture(self, place: int) -> str:
        """Return an image as a data URI."""
        return f"data:image/webp;base64,{self.data['images'][place]}"


def explorer(
    prompts: Sequence[Row],
    references: Sequence[Row],
    samples: Sequence[Row],
    similarities: Sequence[Row],
    severity: Sequence[Row],
    found: Verdict,
) -> Explorer:
    """Collect what the explorer shows.

    Args:
        prompts: Rows of table `prompts`.
        references: Rows of table `references`.
        samples: Rows of table `samples`.
        similarities: Rows of table `similarities`.
        severity: Rows of table `severity`.
        found: The verdict, whose measure and guidance lead.

    Returns:
        The data, prompts by falling severity, ties by name.

    Source: ours.
    """
    rated = {
        (row["prompt_id"], row["guidance"]): row
        for row in severity
        if row["measure"] == found.measure
    }
    closest: dict[tuple[str, int, float], float] = {}
    for row in similarities:
        if row["measure"] == found.measure and row["relation"] == "own":
            key = row["prompt_id"], row["seed"], row["guidance"]
            value = row["value"]
            # JSON has no NaN, and a page that cannot be parsed shows nothing.
            if value is not None and isfinite(value):
                closest[key] = max(closest.get(key, -inf), value)
    scales = sorted({row["guidance"] for row in samples})
    lead = found.guidance if found.guidance in scales else scales[-1] if scales else None

    def weight(row: Row) -> tuple[float, float, str]:
        at = rated.get((row["prompt_id"], lead))
        share, mean = (at["share"], at["mean"]) if at else (None, None)
        return (
            -(share if share is not None else -1.0),
            -(mean if mean is not None else -1e9),
            row["prompt_id"],
        )

    ordered = sorted(prompts, key=weight)
    album = _Album(BUDGET)
    # A mask travels in the picture's transparency; a page shows the whole picture.
    pictures = {
        row["reference_id"]: thumbnail(decode(row["image"])) if row["masked"] else row["image"]
        for row in references
    }
    entries = [_entry(row, album, pictures) for row in ordered]
    by_prompt: dict[tuple[str, float], list[Row]] = {}
    for row in sorted(samples, key=lambda row: row["seed"]):
        by_prompt.setdefault((row["prompt_id"], row["guidance"]), []).append(row)
    for scale in sorted(scales, key=lambda scale: scale != lead):
        for entry, row in zip(entries, ordered, strict=True):
            key = row["prompt_id"], scale
            entry["at"][f"{scale:g}"] = _at(
                by_prompt.get(key, []), rated.get(key), closest, album, pictures
            )
    data = {
        "prompts": entries,
        "images": album.images,
        "guidances": [f"{scale:g}" for scale in scales],
        "lead": None if lead is None else f"{lead:g}",
        "measure": found.measure,
        "threshold": _finite(found.threshold),
    }
    return Explorer(data, album.omitted)


def _entry(row: Row, album: _Album, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    own = [album.place(pictures.get(name)) for name in row["references"]]
    return {
        "id": visible(row["prompt_id"], 120),
        "text": visible(row["prompt"]),
        "group": visible(row["group"] or "no group", 60),
        "level": row["level"],
        "kind": visible(row["kind"] or "", 60),
        # A control's image is held out, so no page may call it a training image.
        "image": "held-out image" if row["group"] == "control" else "training image",
        "tokens": row["tokens"],
        "truncated": row["truncated"],
        "own": [place for place in own if place is not None],
        "at": {},
    }


def _at(
    samples: Sequence[Row],
    rated: Row | None,
    closest: Mapping[tuple[str, int, float], float],
    album: _Album,
    pictures: Mapping[str, bytes],
) -> dict[str, Any]:
    shown = [
        {
            "seed": row["seed"],
            "image": album.place(row["image"]),
            "status": visible(row["status"], 20),
            "reason": visible(row["reason"] or "", 200),
            "similarity": closest.get((row["prompt_id"], row["seed"], row["guidance"])),
        }
        for row in samples[:SEEDS]
    ]
    at: dict[str, Any] = {"samples": shown, "more": max(0, len(samples) - SEEDS)}
    if rated is not None:
        at |= {name: _finite(rated[name]) for name in ("share", "mean", "max")}
        at |= {"n": rated["n"], "grade": rated["grade"]}
        nearest = pictures.get(rated["nearest_reference_id"] or "")
        at["nearest"] = album.places.get(nearest) if nearest is not None else None
    return at


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
