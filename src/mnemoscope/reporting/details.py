"""The detail of a prompt is what its own page shows: pictures, curves and filmstrips, as JSON.

A page that holds everything has room for so much; what it keeps is chosen by what a reader misses
most: cards, then the pictures of all prompts, then the filmstrips of every prompt's first seed, of
its second seed, and so on, each at the leading guidance scale first. What is left out is counted,
and stays in the run folder.

A redacted page holds no picture at all, since a sample that reproduces a training image shows it
as well as the image does; each picture is replaced by its SHA-256, beside its similarity.

Contents: `Details`; `shortened`, the digest of a picture.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnemoscope.data.images import decode, thumbnail
from mnemoscope.reporting.copies import Copy, Counts, Sample, counted
from mnemoscope.reporting.explorer import Explorer, card
from mnemoscope.reporting.quantities import Key, Quantities
from mnemoscope.reporting.text import short, visible
from mnemoscope.reporting.verdict import Row

SEEDS = 32
"""Samples of one prompt and guidance that a page shows."""

ON_CARD = 4
"""Samples on a card."""

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
        copies: What each sample is a copy of.
        copied: The copies among the samples of each prompt.
        quantities: The curves.
        redact: Whether pictures are replaced by digests.
    """

    shown: Explorer
    pictures: Mapping[str, bytes]
    samples: Mapping[Key, Sequence[Row]]
    films: Mapping[Key, Sequence[Row]]
    copies: Mapping[Sample, Copy]
    copied: Mapping[Key, Counts]
    quantities: Quantities
    redact: bool

    @classmethod
    def of(
        cls,
        shown: Explorer,
        tables: Mapping[str, Sequence[Row]],
        copies: Mapping[Sample, Copy],
        quantities: Quantities,
        *,
        redact: bool,
    ) -> "Details":
        """Sort the rows of a run's tables by prompt.

        Source: ours.
        """
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
            copies,
            counted(copies),
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
                images = [s["image"] for s in self._drawn((row["prompt_id"], scale))]
                drawn = card(self.pictures.get(self._target(row, scale) or ""), images)
                if drawn is not None:
                    yield place, scale, drawn

    def digests(self) -> dict[str, list[list[Any]]]:
        """Return what stands on a redacted card: digest and similarity of each of its pictures.

        Returns:
            By place and guidance scale; the training image first, with the best similarity of all.
        """
        if not self.redact:
            return {}
        found: dict[str, list[list[Any]]] = {}
        for scale in self.shown.scales:
            for place, row in enumerate(self.shown.order):
                key = row["prompt_id"], scale
                held = self.pictures.get(self._target(row, scale) or "")
                found[f"{place} {scale:g}"] = [
                    *([] if held is None else [[shortened(held), None]]),
                    *(
                        [shortened(sample["image"]), self._closeness(key, sample["seed"])]
                        for sample in self._drawn(key)
                    ),
                ]
        return found

    def _drawn(self, key: Key) -> list[Row]:
        """Return the samples on a card."""
        return [s for s in self.samples.get(key, ()) if s["image"] is not None][:ON_CARD]

    def _target(self, row: Row, scale: float) -> str | None:
        """Return the image beside a prompt's samples: its own, or the one they copy instead."""
        if self.shown.states.get((row["prompt_id"], scale)) == "another":
            return self.copied[row["prompt_id"], scale].reference
        return next((name for name in row["references"] if name in self.pictures), None)

    def _closeness(self, key: Key, seed: int) -> float | None:
        """Return the similarity of a sample to the image it copies, or to its own."""
        copy = self.copies.get((key[0], seed, key[1]), Copy())
        return short(copy.nearest if copy.whose == "another" else copy.own)

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
                    for name in (*row["references"], self._nearest(key) or "")
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
                f"{scale:g}": self._at((row["prompt_id"], scale), kept)
                for scale in self.shown.scales
            },
        }

    def _nearest(self, key: Key) -> str | None:
        """Return the image of another prompt that is copied, or else comes nearest."""
        reference = self.copied.get(key, Counts()).reference
        if reference is not None:
            return reference
        closest = max(
            (copy for copy in self._of(key) if copy.nearest is not None),
            key=lambda copy: copy.nearest or 0.0,
            default=Copy(),
        )
        return closest.reference

    def _closest(self, key: Key, reference: str) -> float | None:
        values = [copy.nearest for copy in self._of(key) if copy.reference == reference]
        return max((value for value in values if value is not None), default=None)

    def _of(self, key: Key) -> Iterable[Copy]:
        return (
            self.copies.get((key[0], s["seed"], key[1]), Copy()) for s in self.samples.get(key, ())
        )

    def _at(self, key: Key, kept: frozenset[tuple[Any, ...]] | None) -> dict[str, Any]:
        samples = self.samples.get(key, ())
        nearest, copied = self._nearest(key), self.copied.get(key, Counts())
        films = [] if self.redact else self.films.get(key, ())[:SEEDS]
        return {
            "samples": [self._sample(key, row, kept) for row in samples[:SEEDS]],
            "more": max(0, len(samples) - SEEDS),
            "nearest": None
            if nearest is None
            else self._reference(nearest, kept)
            | {
                "name": visible(nearest, 40),
                "similarity": short(self._closest(key, nearest)),
                "copied": copied.another if nearest == copied.reference else 0,
            },
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
        copy = self.copies.get((key[0], row["seed"], key[1]), Copy())
        return picture | {
            "seed": row["seed"],
            "status": visible(row["status"], 20),
            "reason": visible(row["reason"] or "", 200),
            "similarity": self._closeness(key, row["seed"]),
            "copies": copy.whose,
            "borderline": copy.borderline,
        }

    def _reference(self, name: str, kept: frozenset[tuple[Any, ...]] | None) -> Picture:
        if name not in self.pictures:
            return {"why": "not in the run"}
        return self._picture(self.pictures[name], kept is None or ("reference", name) in kept)

    def _picture(self, image: bytes, room: bool) -> Picture:
        if self.redact:
            return {"digest": shortened(image)}
        return {"image": _base64(image)} if room else {"why": "not on this page"}


def _grouped(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    grouped: dict[Key, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        grouped.setdefault((row["prompt_id"], row["guidance"]), []).append(row)
    return grouped


def shortened(image: bytes) -> str:
    """Return the digest that stands for a picture: the first digits of its SHA-256.

    Source: ours.
    """
    return hashlib.sha256(image).hexdigest()[:DIGEST]


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
