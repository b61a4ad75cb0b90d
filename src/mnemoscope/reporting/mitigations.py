"""The page of a comparison of mitigations: what each buys and at what price, in figures and tables.

The folder is what `mnemoscope bench mitigations` writes. The page fetches nothing and runs nothing:
a picture is wiped between before and after by radio buttons that lie over it, one a stop.

Contents: `is_comparison`, `read`, `page`, `write`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from mnemoscope.errors import RunError
from mnemoscope.reporting.figures import svg
from mnemoscope.reporting.fronts import FACTS, PAIRS, ROWS, Row, called, fronts
from mnemoscope.reporting.page import PARTS, digest, environment, webp
from mnemoscope.reporting.text import interval, percent
from mnemoscope.runs.parts import MAX_PART, decode
from mnemoscope.runs.records import read_bytes, unsealed, write_atomically
from mnemoscope.runs.tables import TABLES

SHOWN: Mapping[str, tuple[tuple[str, str], ...]] = {
    "memorized": (
        ("copies", "copies any"),
        ("reproduced", "reproduced"),
        ("right_new", "right and new"),
        ("right", "right"),
        ("alignment", "CLIP"),
        ("severity", "severity"),
        ("severity_95", "95 % of it"),
        ("scene_distance", "distance to scenes"),
        ("diversity", "diversity"),
        ("saturation", "saturation"),
        ("k", "k"),
        ("w0", "w0"),
        ("wT", "wT"),
    ),
    "others": (
        ("changed", "changed"),
        ("identical", "identical"),
        ("right", "right"),
        ("alignment", "CLIP"),
        ("copies", "copies any"),
        ("scene_distance", "distance to scenes"),
        ("saturation", "saturation"),
        ("network_calls", "calls a sample"),
        ("seconds", "seconds a sample"),
        ("memory", "memory, MiB"),
    ),
}
"""What the tables show of each population, with its heading; what nobody has is left out."""


STOPS = tuple(range(0, 101, 10))
"""Where a picture can be wiped to: percent of its width that show the sample without mitigation."""


@dataclass(frozen=True)
class Held:
    """A comparison as its folder holds it.

    Attributes:
        rows: Rows of table `mitigations`.
        facts: What `bench.json` says.
        pairs: Rows of table `pairs`.
    """

    rows: tuple[Row, ...]
    facts: Mapping[str, Any]
    pairs: tuple[Row, ...] = ()


def is_comparison(folder: Path) -> bool:
    """Return whether a folder is one of a comparison of mitigations.

    Source: ours.
    """
    return (folder / ROWS).is_file()


def read(folder: Path) -> Held:
    """Read a comparison.

    Raises:
        RunError: If it is damaged or lacks a file.

    Source: ours.
    """
    try:
        facts, _ = unsealed(read_bytes(folder / FACTS))
        held = {
            file: _checked(folder, file, name, facts["files"][file])
            for file, name in ((ROWS, "mitigations"), (PAIRS, "pairs"))
            if file in facts["files"] or file == ROWS
        }
        for name in ("model", "origins", "thresholds"):
            facts[name].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise RunError(
            f"the comparison in {str(folder)!r} is damaged: {error}; make it again with "
            "`mnemoscope bench mitigations`"
        ) from error
    return Held(held[ROWS], facts, held.get(PAIRS, ()))


def _checked(folder: Path, file: str, name: str, wanted: str) -> tuple[Row, ...]:
    data = read_bytes(folder / file, MAX_PART)
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ValueError(f"{file} differs from what was written")
    return tuple(decode(data).cast(TABLES[name].schema).to_pylist())


@dataclass(frozen=True)
class Table:
    """One table of the page.

    Attributes:
        title: What it is of.
        head: Headings of the numbers.
        lines: Setting, its short name, who it is from, and for each heading the value and its
            interval, as text.
    """

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...]


def tables(held: Held, gated: bool) -> list[Table]:
    """Return the tables of a comparison, one a population.

    Source: ours.
    """
    found: list[Table] = []
    for population, metrics in SHOWN.items():
        here = [
            row
            for row in held.rows
            if row["population"] == population and (row["gated"] == gated or not row["setting"])
        ]
        known = {(row["setting"], row["metric"]): row for row in here}
        kept = [pair for pair in metrics if any(metric == pair[0] for _, metric in known)]
        lines = tuple(
            (
                setting,
                name,
                held.facts["origins"].get(setting, "none" if not setting else "published"),
                tuple(_cell(known.get((setting, metric))) for metric, _ in kept),
            )
            for setting, name in {row["setting"]: called(row) for row in here}.items()
        )
        if lines:
            title = f"{population.removesuffix('s').capitalize()} prompts"
            found.append(Table(title, tuple(heading for _, heading in kept), lines))
    return found


def _cell(row: Row | None) -> tuple[str, str]:
    if row is None or row["value"] is None:
        return "–", ""
    wide = abs(row["value"]) >= 100
    digits = 3 if wide else 2
    low, high = row["low"], row["high"]
    told = f"{row['value']:,.0f}" if wide else f"{row['value']:.2f}"
    return told, "" if low == high else interval(low, high, digits)


@dataclass(frozen=True)
class Pair:
    """A sample before and after.

    Attributes:
        prompt: The prompt.
        before: Sample without mitigation, as an address of data.
        after: The one of the same seed with it.
        was: What the first is.
        became: What the second is.
    """

    prompt: str
    before: str
    after: str
    was: str
    became: str


def pairs(held: Held) -> list[tuple[str, str, list[Pair]]]:
    """Return samples before and after, by setting: its name, its short name, and its pairs.

    Source: ours.
    """
    short = {row["setting"]: called(row) for row in held.rows}
    found: dict[str, list[Pair]] = {}
    for row in held.pairs:
        new = {None: "no copy", True: "right and new", False: "no copy, and not what is named"}
        found.setdefault(row["setting"], []).append(
            Pair(
                row["prompt"],
                webp(row["before"]),
                webp(row["after"]),
                "a copy" if row["copied"] else "no copy",
                "still a copy" if row["copies"] else new[row["right"]],
            )
        )
    return [(setting, short.get(setting, setting), some) for setting, some in found.items()]


def page(held: Held) -> str:
    """Return the page.

    Source: ours.
    """
    style = (PARTS / "style.css").read_text("utf-8")
    panels = fronts(held.rows, held.facts["origins"])
    drawn = {
        name: (panel.caption, Markup(svg(panel, f"front-{name}"))) for name, panel in panels.items()
    }
    parts = [
        (
            title,
            [one for name, one in drawn.items() if name.endswith("-gated") == gated],
            tables(held, gated),
        )
        for title, gated in (
            ("On every prompt", False),
            ("On suspicious prompts alone", True),
        )
    ]
    return (
        environment()
        .get_template("mitigations.html.j2")
        .render(
            facts=held.facts,
            answer=sentences(held),
            parts=parts,
            pairs=pairs(held),
            stops=STOPS,
            style=style,
            style_digest=digest(style),
        )
    )


def sentences(held: Held) -> list[str]:
    """Say what was found, in words.

    Source: ours.
    """
    known = {
        (row["setting"], row["gated"], row["population"], row["metric"]): row for row in held.rows
    }

    def value(setting: str, gated: bool, metric: str) -> float | None:
        row = known.get((setting, gated, "memorized", metric))
        return None if row is None else row["value"]

    plain = value("", False, "copies")
    said = [
        f"Without mitigation {percent(plain)} of the samples of memorized prompts copy a training "
        "image."
    ]
    tried = {(row["setting"], row["gated"]): called(row) for row in held.rows if row["setting"]}
    rights = [value(*key, "right_new") for key in tried]
    metric = "copies" if all(right is None for right in rights) else "right_new"
    scored = [(found, key) for key in tried if (found := value(*key, metric)) is not None]
    if scored:
        best = max(scored) if metric == "right_new" else min(scored)
        copies = value(*best[1], "copies")
        where = "on suspicious prompts" if best[1][1] else "on every prompt"
        said.append(
            f"{tried[best[1]]}, {where}, leaves {percent(copies)}"
            + (
                f", and {percent(best[0])} are right and new: the most of what was compared, and "
                "chosen on these prompts."
                if metric == "right_new"
                else ": the fewest of what was compared, and chosen on these prompts."
            )
        )
    return said


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a comparison.

    Args:
        folder: The folder that `mnemoscope bench mitigations` wrote.
        out: Where to; the folder itself where not given.

    Returns:
        Path of the page, index.html.

    Raises:
        RunError: If the comparison is damaged, or the page cannot be written.

    Source: ours.
    """
    target = Path(folder if out is None else out) / "index.html"
    write_atomically(target, page(read(Path(folder))).encode("utf-8", "replace"))
    return target
