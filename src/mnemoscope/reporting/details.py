"""The detail of a prompt is what its own page shows: pictures, curves and filmstrips, as JSON.

A page that holds everything has room for so much; what it keeps is chosen by what a reader misses
most: cards, then the pictures of all prompts, then the filmstrips of every prompt's first seed, of
its second seed, and so on, each at the leading guidance scale first. What is left out is counted,
and stays in the run folder.

A redacted page holds no picture at all, since a sample that reproduces a training image shows it
as well as the image does; each picture is replaced by its SHA-256, beside its similarity.

Contents: `Details`.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from mnemoscope.data.images import decode, thumbnail
from mnemoscope.reporting.explorer import Explorer, card
from mnemoscope.reporting.quantities import Key, Quantities
from mnemoscope.reporting.text import short, visible
from mnemoscope.reporting.verdict import Row

SEEDS = 32
"""Samples of one prompt and guidance that a page shows."""

DIGEST = 16
"""Hex digits of a digest that a page shows in place of a picture: 64 bits."""

Picture = dict[str, str]
"""{"image": base64}, {"digest": hex} or {"why": words}."""


@dataclass(frozen=True)
class Details:
    """Everything the pages of prompts can show.

    Attributes:
        shown: The list the prompts come from.
        pictures: Training images by reference_id, without masks.
        samples: Samples by prompt and guidance, by rising seed.
        films: Filmstrips by prompt and guidance, by rising seed.
        similarity: Closest similarity of a sample to an image of its prompt, by prompt, seed and
            guidance.
        nearest: Nearest training image of a prompt's samples.
        quantities: The curves.
        redact: Whether pictures are replaced by digests.
    """

    shown: Explorer
    pictures: Mapping[str, bytes]
    samples: Mapping[Key, Sequence[Row]]
    films: Mapping[Key, Sequence[Row]]
    similarity: Mapping[tuple[str, int, float], float]
    nearest: Mapping[Key, str]
    quantities: Quantities
    redact: bool

    @classmethod
    def of(
        cls,
        shown: Explorer,
        tables: Mapping[str, Sequence[Row]],
        measure: str,
        quantities: Quantities,
        *,
        redact: bool,
    ) -> "Details":
        """Sort the rows of a run's tables by prompt.

        Source: ours.
        """
        similarity: dict[tuple[str, int, float], float] = {}
        for row in tables["similarities"]:
            value = row["value"]
            if row["measure"] == measure and row["relation"] == "own" and value is not None:
                key = row["prompt_id"], row["seed"], row["guidance"]
                if isfinite(value):
                    similarity[key] = max(similarity.get(key, -inf), value)
        return cls(
            shown,
            {
                row["reference_id"]: (
                    thumbnail(decode(row["image"])) if row["masked"] else row["image"]
                )
                for row in tables["references"]
            },
            _grouped(tables["samples"]),
            _grouped(tables["filmstrips"]),
            similarity,
            {
                (row["prompt_id"], row["guidance"]): row["nearest_reference_id"]
                for row in tables["severity"]
                if row["measure"] == measure and row["nearest_reference_id"]
            },
            quantities,
            redact,
        )

    def cards(self) -> Iterable[tuple[int, float, bytes]]:
        """Draw the card of every prompt and guidance scale, the leading scale first.

        Yields:
            Place of the prompt in the list, guidance scale, WebP.
        """
        if self.redact:
            return
        for scale in self.shown.scales:
            for place, row in enumerate(self.shown.order):
                own = [self.pictures[name] for name in row["references"] if name in self.pictures]
                samples = self.samples.get((row["prompt_id"], scale), ())
                drawn = card(
                    own[0] if own else None, [s["image"] for s in samples if s["image"] is not None]
                )
                if drawn is not None:
                    yield place, scale, drawn

    def within(self, budget: float) -> tuple[frozenset[tuple[Any, ...]], int]:
        """Choose the pictures that a page has room for.

        Args:
            budget: Bytes of pictures.

        Returns:
            What is kept (a reference, a sample, a filmstrip), and how much is not.
        """
        wanted: list[tuple[tuple[Any, ...], int]] = []
        films: list[tuple[int, int, tuple[Any, ...], int]] = []
        for rank, scale in enumerate(self.shown.scales):
            for row in self.shown.order:
                key = row["prompt_id"], scale
                wanted += [
                    (("reference", name), len(self.pictures[name]))
                    for name in (*row["references"], self.nearest.get(key) or "")
                    if name in self.pictures
                ]
                wanted += [
                    (("sample", *key, sample["seed"]), len(sample["image"]))
                    for sample in self.samples.get(key, ())[:SEEDS]
                    if sample["image"] is not None
                ]
                films += [
                    (at, rank, ("film", *key, film["seed"]), len(film["image"]))
                    for at, film in enumerate(self.films.get(key, ())[:SEEDS])
                ]
        # Sorted by seed before guidance; a stable sort keeps prompts by severity within.
        wanted += [(name, size) for _, _, name, size in sorted(films, key=lambda f: f[:2])]
        kept: set[tuple[Any, ...]] = set()
        for name, size in dict(wanted).items():
            if size <= budget:
                kept.add(name)
                budget -= size
        return frozenset(kept), len(dict(wanted)) - len(kept)

    def of_prompt(self, place: int, kept: frozenset[tuple[Any, ...]] | None) -> dict[str, Any]:
        """Collect what the page of a prompt shows.

        Args:
            place: Place of the prompt in the list.
            kept: Pictures there is room for; None where there is room for all.

        Returns:
            JSON-ready; texts are spelled out, not escaped.
        """
        row = self.shown.order[place]
        return {
            "text": visible(row["prompt"]),
            "own": [
                self._reference(name, kept) | {"name": visible(name, 40)}
                for name in row["references"]
            ],
            "at": {
                f"{scale:g}": self._at((row["prompt_id"], scale), row["references"], kept)
                for scale in self.shown.scales
            },
        }

    def _at(
        self, key: Key, own: Sequence[str], kept: frozenset[tuple[Any, ...]] | None
    ) -> dict[str, Any]:
        samples = self.samples.get(key, ())
        nearest = self.nearest.get(key)
        films = [] if self.redact else self.films.get(key, ())[:SEEDS]
        return {
            "samples": [self._sample(key, row, kept) for row in samples[:SEEDS]],
            "more": max(0, len(samples) - SEEDS),
            "nearest": None
            if nearest is None or nearest in own
            else self._reference(nearest, kept) | {"name": visible(nearest, 40)},
            "curves": self.quantities.curves(*key),
            "scores": self.shown.scores.of(*key),
            "films": [
                {
                    "seed": film["seed"],
                    "calls": film["calls"],
                    "branches": film["branches"],
                    "image": _base64(film["image"]),
                }
                for film in films
                if kept is None or ("film", *key, film["seed"]) in kept
            ],
        }

    def _sample(
        self, key: Key, row: Row, kept: frozenset[tuple[Any, ...]] | None
    ) -> dict[str, Any]:
        if row["image"] is None:
            picture = {"why": visible(row["status"], 20)}
        else:
            room = kept is None or ("sample", *key, row["seed"]) in kept
            picture = self._picture(row["image"], room)
        return picture | {
            "seed": row["seed"],
            "status": visible(row["status"], 20),
            "reason": visible(row["reason"] or "", 200),
            "similarity": short(self.similarity.get((key[0], row["seed"], key[1]))),
        }

    def _reference(self, name: str, kept: frozenset[tuple[Any, ...]] | None) -> Picture:
        if name not in self.pictures:
            return {"why": "not in the run"}
        return self._picture(self.pictures[name], kept is None or ("reference", name) in kept)

    def _picture(self, image: bytes, room: bool) -> Picture:
        if self.redact:
            return {"digest": hashlib.sha256(image).hexdigest()[:DIGEST]}
        return {"image": _base64(image)} if room else {"why": "not on this page"}


def _grouped(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    grouped: dict[Key, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        grouped.setdefault((row["prompt_id"], row["guidance"]), []).append(row)
    return grouped


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
