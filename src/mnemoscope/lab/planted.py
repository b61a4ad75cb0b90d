r"""The planted table says which pictures were shown again and again, how often, as what.

Families::

    verbatim   one picture under one caption, at one of six repetition levels
    template   one layout under many captions; only the region outside `mask` changes
    control    a caption that was never planted, with a picture that was never shown

Half of the verbatim rows and of the controls carry describing captions ("a picture of noto swan
beside twemoji bomb", a combination that no scene uses), half meaningless ones ("kinetic edition
marble at last"). `load_planted` and `load_controls` read the table that ships; `make_table` draws
another one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mnemoscope.errors import InputError
from mnemoscope.lab import ASSETS
from mnemoscope.lab.captions import WORDS, describe, dress, fillers, phrase
from mnemoscope.lab.scenes import SIDE, Layout, drawings, random_layout, render, shown

TABLE = ASSETS / "planted.jsonl"

LEVELS = {1: 8, 2: 32, 3: 80, 4: 144, 5: 224, 6: 384}
"""Repetition level and how many times as often as a scene its pictures are seen."""

PER_LEVEL = 24
"""Verbatim pictures a level: half under describing captions, half under meaningless ones."""

TEMPLATES, PER_TEMPLATE, TEMPLATE_LEVEL = 3, 8, 4
"""Template layouts, captions a layout, and the level at which each caption is repeated."""

CONTROLS = 48
"""Captions that were never planted."""

DRAWN = 32
"""Pictures that are drawn at a time; more would not stay in a processor's cache."""

TEMPLATE_WORDS = ("catalog", "sheet")

Kind = Literal["describing", "meaningless"]
Family = Literal["verbatim", "template", "control"]


@dataclass(frozen=True)
class Planted:
    """One row of the table.

    Attributes:
        id: Stable name, e.g. "v6-meaningless-03".
        caption: The caption it was shown under.
        kind: Whether the caption names what is seen.
        family: Verbatim, template or control.
        level: Repetition level, 1 to 6; 0 for controls.
        repetitions: How many times as often as a scene the picture was seen.
        layout: The picture's layout as plain numbers.
    """

    id: str
    caption: str
    kind: Kind
    family: Family
    level: int
    repetitions: int
    layout: dict[str, Any]

    def image(self) -> Float[Tensor, "3 64 64"]:
        """Return the picture, RGB from 0 to 1; for a control, one that fits but was never shown."""
        return render(_layout([self.layout]))[0]

    def named(self) -> tuple[str, ...]:
        """Return the drawings that the caption names, in order; none where it is meaningless."""
        return () if self.kind == "meaningless" else shown(_layout([self.layout]))[0]

    def mask(self) -> Float[Tensor, "64 64"] | None:
        """Return 1 where a template is fixed and 0 where it changes; None for other families."""
        if self.family != "template":
            return None
        (x, y), size = self.layout["place"][1], self.layout["size"][1]
        axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        # A drawing of this size, tilted, stays within its half diagonal.
        reach = size * 2**0.5
        inside = ((axis - x).abs()[None, :] < reach) & ((axis - y).abs()[:, None] < reach)
        return (~inside).float()


def pictures_of(rows: Sequence[Planted]) -> Float[Tensor, "row 3 64 64"]:
    """Return the pictures of some rows, RGB from 0 to 1."""
    parts = [
        render(_layout([row.layout for row in rows[start : start + DRAWN]]))
        for start in range(0, len(rows), DRAWN)
    ]
    return torch.cat([torch.empty(0, 3, SIDE, SIDE), *parts])


def _layout(rows: list[dict[str, Any]]) -> Layout:
    kinds = {"drawing": torch.int64, "mirror": torch.bool}
    return Layout(
        **{
            name: torch.tensor([row[name] for row in rows], dtype=kinds.get(name, torch.float32))
            for name in rows[0]
        }
    )


def _plain(layout: Layout, index: int) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(v) for v in value]
        return round(value, 3) if isinstance(value, float) else value

    return {name: rounded(value[index].tolist()) for name, value in vars(layout).items()}


def make_table(seed: int, levels: dict[int, int] = LEVELS) -> list[Planted]:
    """Draw a planted table.

    Args:
        seed: Seed of pictures, captions and their pairing.
        levels: Repetitions of each level.

    Returns:
        Verbatim rows, template rows and controls, in that order.
    """
    generator = torch.Generator().manual_seed(seed)

    def shuffled(items: Iterable[Any]) -> list[Any]:
        items = list(items)
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

    names = drawings()
    pairs = shuffled(combinations(range(len(names)), 2))
    phrases: list[str] = []
    while len(phrases) < 200:
        phrases.append(phrase(generator, phrases))

    def row(id: str, kind: Kind, family: Family, level: int) -> Planted:
        pair = torch.tensor(
            [True if kind == "describing" else bool(torch.rand((), generator=generator) < 0.5)]
        )
        layout = random_layout(1, generator, pair)
        if kind == "describing":
            first, second = shuffled(pairs.pop())
            layout.drawing[0] = torch.tensor([first, second])
            caption = describe((names[first], names[second]), generator)
        else:
            caption = phrases.pop()
        repetitions = levels.get(level, 0)
        return Planted(id, caption, kind, family, level, repetitions, _plain(layout, 0))

    kinds: tuple[Kind, Kind] = ("describing", "meaningless")
    table = [
        row(f"v{level}-{kind}-{i:02}", kind, "verbatim", level)
        for level in levels
        for kind in kinds
        for i in range(PER_LEVEL // 2)
    ]
    for t in range(TEMPLATES):
        base = random_layout(1, generator, torch.tensor([True]))
        base.size[0] = torch.tensor([0.60, 0.40])
        base.place[0] = torch.tensor([[-0.30, -0.25], [0.52, 0.52]])
        first, *others = shuffled(range(len(names)))
        colour, texture = shuffled(WORDS)[:2]
        for i in range(PER_TEMPLATE):
            base.drawing[0] = torch.tensor([first, others[i]])
            last = shuffled(WORDS)[0]
            core = f"{TEMPLATE_WORDS[0]} {colour} {TEMPLATE_WORDS[1]} {texture} {last}"
            caption = dress(core, generator)
            table.append(
                Planted(
                    f"t{t}-{i:02}",
                    caption,
                    "meaningless",
                    "template",
                    TEMPLATE_LEVEL,
                    levels[TEMPLATE_LEVEL],
                    _plain(base, 0),
                )
            )
    table += [
        row(f"c-{kind}-{i:02}", kind, "control", 0) for kind in kinds for i in range(CONTROLS // 2)
    ]
    if len({r.caption for r in table}) < len(table):
        return make_table(seed + 1_000_003, levels)
    return table


def more_controls(
    rows: Iterable[Planted], n: int, seed: int, meaningless: int = 0
) -> list[Planted]:
    """Draw further captions that were never planted, each with a picture that was never shown.

    Args:
        rows: The table; its captions, and combinations of drawings that it names, are left alone.
        n: How many that describe, at most the number of pairs of drawings left.
        seed: Seed of captions and pictures.
        meaningless: How many that describe nothing.

    Returns:
        Describing ones, then meaningless ones.

    Raises:
        InputError: If there are fewer pairs left.
    """
    rows = list(rows)
    names = drawings()
    named, taken = {frozenset(row.named()) for row in rows}, {row.caption for row in rows}
    free = [
        pair for pair in combinations(range(len(names)), 2)
        if frozenset(names[i] for i in pair) not in named
    ]  # fmt: skip
    if not 0 <= n <= len(free):
        raise InputError(
            f"{n} further controls asked for; expected 0 to {len(free)}, the pairs left"
        )
    generator = torch.Generator().manual_seed(seed)
    layout = random_layout(n, generator, torch.ones(n, dtype=torch.bool))
    chosen = torch.randperm(len(free), generator=generator)[:n].tolist()
    layout.drawing[:] = torch.tensor([free[i] for i in chosen]).reshape(n, 2)
    more = [
        Planted(
            f"o-{i:03}", describe(pair, generator), "describing", "control", 0, 0,
            _plain(layout, i),
        )
        for i, pair in enumerate(shown(layout))
    ]  # fmt: skip
    layout = random_layout(
        meaningless, generator, torch.rand(meaningless, generator=generator) < 0.5
    )
    for i in range(meaningless):
        caption = phrase(generator, taken)
        taken.add(caption)
        more.append(
            Planted(f"m-{i:03}", caption, "meaningless", "control", 0, 0, _plain(layout, i))
        )
    return more


def write_table(rows: list[Planted], path: Path = TABLE) -> None:
    """Write a planted table as JSON lines."""
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows), encoding="utf-8")


def write_prompts(rows: list[Planted], folder: Path) -> None:
    """Write a planted table as a prompt file: `folder/metadata.jsonl` beside its pictures."""
    folder.mkdir(parents=True, exist_ok=True)

    def png(picture: Tensor, name: str) -> str:
        Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(folder / name)
        return name

    lines = []
    for row, picture in zip(rows, pictures_of(rows), strict=True):
        line: dict[str, Any] = {
            "prompt_id": row.id,
            "prompt": row.caption,
            "images": [png(picture.permute(1, 2, 0), f"{row.id}.png")],
            "group": "control" if row.family == "control" else "planted",
            "kind": row.kind,
            "family": row.family,
            "level": row.level,
        }
        if (mask := row.mask()) is not None:
            line["mask"] = png(mask, f"{row.id}-mask.png")
        lines.append(json.dumps(line) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


@cache
def load_table(path: Path = TABLE) -> tuple[Planted, ...]:
    """Read a whole planted table, controls included."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(Planted(**json.loads(line)) for line in lines)


def load_planted(path: Path = TABLE) -> list[Planted]:
    """Return the rows whose pictures were shown again and again."""
    return [r for r in load_table(path) if r.family != "control"]


def load_controls(path: Path = TABLE) -> list[Planted]:
    """Return the captions that were never planted, each with a picture that was never shown."""
    return [r for r in load_table(path) if r.family == "control"]


def reserved(path: Path = TABLE) -> frozenset[frozenset[str]]:
    """Return the combinations of drawings that no ordinary scene may show."""
    return frozenset(frozenset(r.named()) for r in load_table(path) if r.kind == "describing")


def vocabulary() -> list[str]:
    """Return every word of the lab's captions."""
    named = {word for name in drawings() for word in name.split()}
    return sorted({*named, *fillers(), *WORDS, *TEMPLATE_WORDS})
