"""A page shows a run: words, figures, pictures and data, offline, without a server.

Two forms::

    folder       index.html      verdict, argument, list of prompts, evidence
                 data/N.html     the detail of one prompt, read when it is looked at
                 cards/N-gG.webp its small picture
                 tables/         derived tables as CSV and Parquet
                 figures/        figures for print
    single file  one HTML file that holds all of this, as far as there is room

Nothing is fetched and nothing of a run is executed: text goes through autoescape, data is JSON in a
script element of another type, and the content policy lets in only the scripts and the style of
this package, by their digests. Details come in through a frame, since a page opened from a disk may
read no file: the frame posts its JSON to the page, which makes text and pictures of it.

The same run gives the same bytes.

Contents: `report`; `environment`, `digest`, `command` and `Drawn`, which `compare`
shares.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mnemoscope import mechanism
from mnemoscope.core.panels import Panel
from mnemoscope.errors import RunError
from mnemoscope.mechanism import Finding
from mnemoscope.mechanism.base import Check
from mnemoscope.reporting import argument, figures
from mnemoscope.reporting.board import Board, board
from mnemoscope.reporting.copies import copies, counted
from mnemoscope.reporting.details import Details
from mnemoscope.reporting.explorer import Explorer, State, explorer
from mnemoscope.reporting.export import Download, downloads
from mnemoscope.reporting.quantities import quantities
from mnemoscope.reporting.scores import RECOMMENDED, Scores, scores_of, shown_first, told
from mnemoscope.reporting.severity import level_panel, null_panel, similarity_panel
from mnemoscope.reporting.text import interval, known, number, percent, visible
from mnemoscope.reporting.verdict import Row, Scorecard, Verdict, measure_of, verdict
from mnemoscope.runs.folder import Run
from mnemoscope.runs.records import write_atomically

PARTS = resources.files("mnemoscope.reporting") / "templates"

SHOWN = 4
"""Prompts beside the verdict; more would push it off the first screen."""

LISTED = 6
"""Detectors of the overview; the others are folded away."""

COUNTED: Mapping[bool, Mapping[State, str]] = {
    False: {
        "memorized": "prompts reproduce their own image",
        "another": "prompts copy another training image",
        "plain": "prompts reproduce no known image",
    },
    True: {
        "memorized": "controls reproduce the image held out for them",
        "another": "controls copy a training image",
        "control": "controls reproduce no known image",
    },
}
"""Words for the states, of prompts with a training image and of controls."""

BUDGET = 2_300_000
"""Bytes of pictures in a single file: 3.1 MB as base64, which leaves 2.9 of the demo's 6 MB for
figures, curves and tables."""

OURS = re.compile(r"\d+\.html|\d+-g[\d.e+]+\.webp")
"""Names of details and cards; other files in the folder are somebody else's."""

READ = (
    "prompts", "references", "samples", "similarities", "severity", "null", "convergence",
    "statistics", "filmstrips",
)  # fmt: skip
"""Tables a page is made of; a run that lacks one has no rows of it."""


@dataclass(frozen=True)
class Drawn:
    """A panel, drawn for the page."""

    name: str
    title: str
    label: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """A finding, ready for the page."""

    finding: Finding
    figure: str
    panels: tuple[Drawn, ...]

    @property
    def title(self) -> str:
        """Return the name of the analysis in words."""
        return self.finding.name.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Step:
    """A claim of the argument with what the run says about it."""

    claim: argument.Claim
    sections: tuple[Section, ...]

    @property
    def panels(self) -> tuple[Drawn, ...]:
        """Return the panels that stand beside the claim."""
        found: list[Drawn] = []
        for section in self.sections:
            labels = self.claim.shown.get(section.finding.name, ())
            wanted = [panel for panel in section.panels if panel.label in labels]
            found += wanted or section.panels[:2]
        return tuple(found)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Return the checks of its findings, in order."""
        return tuple(check for section in self.sections for check in section.finding.checks)

    @property
    def said(self) -> str:
        """Count what holds, what does not and what cannot be told."""
        return Scorecard.of(self.checks).said


def report(
    run: Run,
    out: str | Path | None = None,
    *,
    single_file: bool = False,
    redact_images: bool = False,
    leaderboard: str | Path | None = None,
) -> Path:
    """Write the page of a run.

    Args:
        run: An open run.
        out: Folder of the report; `report` within the run's where not given.
        single_file: Write one HTML file that holds everything, and nothing beside it.
        redact_images: Show digest and similarity in place of every picture.
        leaderboard: Folder that `mnemoscope bench detectors` wrote on the same model; the one the
            run lies in where not given and it is one.

    Returns:
        Path of the page.

    Raises:
        RunError: If the run is no study, a table or the leaderboard is damaged, the leaderboard is
            of another model, or the folder cannot be written.

    Source: ours.
    """
    folder = Path(out) if out is not None else run.path / "report"
    rows: dict[str, list[dict[str, Any]]] = {name: run.table(name).to_pylist() for name in READ}
    measure = measure_of(run)
    ranked = board(run, leaderboard)
    record = mechanism.read(run)
    findings = mechanism.analyse(record)
    if not rows["statistics"]:
        rows["statistics"] = _as_rows(mechanism.columns(findings)["statistics"])
    found = verdict(
        rows["prompts"], rows["severity"], rows["null"], rows["convergence"], rows["statistics"],
        measure,
    )  # fmt: skip
    computed = quantities(record)
    scores = scores_of(run.table("scores"))
    copied = copies(rows["prompts"], rows["similarities"], rows["severity"], rows["null"], measure)
    shown = explorer(
        rows["prompts"], rows["samples"], rows["severity"], scores, computed, found,
        counted(copied),
    )  # fmt: skip
    details = Details.of(shown, rows, copied, computed, redact=redact_images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = _sections(findings, shown.places)
        overview = _overview(rows, shown, found, findings, ranked)
        parts = _embedded(details) if single_file else _beside(details, folder)
        if not single_file:
            _print(overview, sections, folder / "figures")
        files = downloads(run, None if single_file else folder / "tables")
        page = _render(run, found, shown, parts, sections, overview, rows["null"], files, ranked)
        target = folder / ("report.html" if single_file else "index.html")
        write_atomically(target, page.encode())
    except OSError as error:
        raise RunError(
            f"cannot write the report into {str(folder)!r}: {error.strerror or error}; make room "
            "or choose another folder"
        ) from error
    return target


@dataclass(frozen=True)
class Delivery:
    """How the details of prompts reach the page.

    Attributes:
        paged: Whether they lie beside the page.
        redacted: Whether digests stand for pictures.
        digests: What stands on redacted cards, by place and scale.
        cards: Source of the card of each prompt and guidance scale, by place and scale.
        details: Detail of each prompt, where the page holds them.
        examples: Detail of the prompts beside the verdict.
        omitted: Pictures there was no room for.
    """

    paged: bool
    redacted: bool
    digests: dict[str, list[list[Any]]]
    cards: dict[str, str]
    details: list[dict[str, Any]]
    examples: list[tuple[int, dict[str, Any]]]
    omitted: int


def _embedded(details: Details) -> Delivery:
    room, cards = float(BUDGET), dict[str, str]()
    left_out = 0
    for place, scale, image in details.cards():
        # Cards may take a third of the room: a list without them is hard to use.
        if room - len(image) < BUDGET * 2 / 3:
            left_out += 1
            continue
        room -= len(image)
        cards[f"{place} {scale:g}"] = webp(image)
    kept, omitted = details.within(room)
    every = [details.of_prompt(place, kept) for place in range(len(details.shown.order))]
    examples = [(place, every[place]) for place in _chosen(details.shown)]
    return Delivery(
        False, details.redact, details.digests(), cards, every, examples, omitted + left_out
    )


def _beside(details: Details, folder: Path) -> Delivery:
    for name in ("data", "cards"):
        (folder / name).mkdir(exist_ok=True)
        # What a larger run left here would otherwise be mistaken for a part of this one.
        for stale in (folder / name).iterdir():
            if OURS.fullmatch(stale.name):
                stale.unlink()
    cards: dict[str, str] = {}
    for place, scale, image in details.cards():
        cards[f"{place} {scale:g}"] = name = f"cards/{place}-g{scale:g}.webp"
        (folder / name).write_bytes(image)
    template = environment().get_template("detail.html.j2")
    script = (PARTS / "detail.js").read_text("utf-8")
    for place in range(len(details.shown.order)):
        text = template.render(
            data={"place": place, "detail": details.of_prompt(place, None)},
            script=Markup(script),
            script_digest=digest(script),
        )
        (folder / "data" / f"{place}.html").write_text(text, "utf-8")
    examples = [(place, details.of_prompt(place, None)) for place in _chosen(details.shown)]
    return Delivery(True, details.redact, details.digests(), cards, [], examples, 0)


def webp(image: bytes) -> str:
    """Return a stored picture as an address of data."""
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"


def _as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _sections(findings: Mapping[str, Finding], places: Mapping[str, int]) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    for place, (name, finding) in enumerate(findings.items(), 1):
        stem = f"{place}-{name.replace('_', '-')}"
        sections[name] = Section(finding, stem, _drawn(finding.panels, stem, places))
    return sections


def _drawn(
    panels: Sequence[Panel], stem: str, places: Mapping[str, int] | None = None
) -> tuple[Drawn, ...]:
    return tuple(
        # The drawing is rebuilt from a list of elements and attributes, and serialised by us.
        Drawn(
            f"{stem}-{place}",
            panel.title,
            panel.y_label,
            panel.caption,
            Markup(figures.svg(panel, f"{stem}-{place}", places)),
        )
        for place, panel in enumerate(panels, 1)
    )


def _overview(
    rows: Mapping[str, Sequence[Row]],
    shown: Explorer,
    found: Verdict,
    findings: Mapping[str, Finding],
    ranked: Board | None,
) -> dict[str, Panel]:
    """Return the panels beside the words of the verdict, those that there are."""
    deviation = findings["deviation"].panels if "deviation" in findings else ()
    panels = {
        "levels": level_panel(rows["prompts"], found),
        "similarities": similarity_panel(rows["similarities"], shown.states, found),
        "null": null_panel(rows["null"], found),
        "scatter": deviation[0] if deviation else None,
        "board": ranked.panel if ranked else None,
    }
    return {name: panel for name, panel in panels.items() if panel}


def _print(overview: Mapping[str, Panel], sections: Mapping[str, Section], folder: Path) -> None:
    # The scatter is the first panel of the deviation already.
    front = [panel for name, panel in overview.items() if name != "scatter"]
    sheets = {section.figure: section.finding.panels for section in sections.values()}
    folder.mkdir(exist_ok=True)
    figures.save({"0-overview": front, **sheets}, folder / "figures.pdf")


def environment() -> jinja2.Environment:
    """Return the template engine: everything is escaped, and what is missing is an error.

    Source: ours.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (PARTS / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = environment.filters
    filters |= {
        "number": number,
        "percent": percent,
        "visible": visible,
        "known": known,
        "linked": argument.linked,
        "anchor": argument.anchor,
        "scorecard": Scorecard.of,
    }
    # Shorter by a third than with spaces, and the order of keys is already fixed.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment


def _render(
    run: Run,
    found: Verdict,
    shown: Explorer,
    parts: Delivery,
    sections: Mapping[str, Section],
    overview: Mapping[str, Panel],
    nulls: Sequence[Row],
    files: Sequence[Download],
    ranked: Board | None,
) -> str:
    style, script = ((PARTS / name).read_text("utf-8") for name in ("style.css", "script.js"))
    style += _foot(run)
    checks = [check for section in sections.values() for check in section.finding.checks]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            # Both are files of this package; autoescape would break them.
            style=Markup(style),
            script=Markup(script),
            style_digest=digest(style),
            script_digest=digest(script),
            manifest=run.manifest,
            facts=_facts(run),
            command=command(run.manifest.given),
            digests=_digests(run),
            verdict=found,
            nulls=nulls,
            data=shown.data
            | {
                "cards": parts.cards,
                "paged": parts.paged,
                "redacted": parts.redacted,
                "digests": parts.digests,
                "films": run.manifest.rows.get("filmstrips", 0) > 0,
            },
            parts=parts,
            examples=list(_examples(shown, parts)),
            tallies=_tallies(shown),
            steps=[
                Step(claim, tuple(sections[name] for name in claim.analyses if name in sections))
                for claim in argument.CLAIMS
            ],
            sections=list(sections.values()),
            checks_said=Scorecard.of(checks).said,
            overview=dict.fromkeys(("levels", "similarities", "scatter", "board", "null"))
            | {
                # The dots of the leaderboard are detectors.
                name: _drawn([panel], f"0-{name}", None if name == "board" else shown.places)[0]
                for name, panel in overview.items()
            },
            downloads=files,
            ranked=ranked,
            scored=_scored(shown.scores, found),
            glossary=argument.GLOSSARY,
            interval=interval,
        )
    )


def digest(text: str) -> str:
    """Return the SHA-256 of a script or style, as a content policy names it.

    Source: ours.
    """
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _foot(run: Run) -> str:
    """Return the style that prints the run's digest beneath every page."""
    return f"@page {{ @bottom-left {{ content: 'mnemoscope · run {run_digest(run)[:16]}'; }} }}\n"


def run_digest(run: Run) -> str:
    """Return the SHA-256 over the digests of all parts of a run, 64 hex digits.

    Source: ours.
    """
    lines = "\n".join(f"{name} {digest}" for name, digest, _ in _digests(run))
    return hashlib.sha256(lines.encode()).hexdigest()


def _chosen(shown: Explorer) -> list[int]:
    """Choose the prompts beside the verdict: the most severe ones and one not memorized."""
    if shown.lead is None:
        return []
    usable = [place for place, row in enumerate(shown.order) if row["references"]]
    of = {place: shown.states[shown.order[place]["prompt_id"], shown.lead] for place in usable}
    memorized, another, plain = (
        [place for place in usable if of[place] == state]
        for state in ("memorized", "another", "plain")
    )
    last = [*another[:1], *plain[::-1][:1]]
    # Where no prompt is judged, the first are shown, and said not to be.
    return [*memorized[: SHOWN - len(last)], *last] or usable[:SHOWN]


def _examples(shown: Explorer, parts: Delivery) -> Iterator[dict[str, Any]]:
    lead = shown.data["lead"]
    for place, detail in parts.examples:
        entry, here = shown.data["prompts"][place], detail["at"][lead]
        state = entry["at"][lead]["state"]
        yield entry["at"][lead] | {
            "place": place,
            "text": entry["text"],
            "beside": here["nearest"] if state == "another" else detail["own"][0],
            "samples": [s for s in here["samples"] if s["status"] == "ok"][:4],
        }


def _tallies(shown: Explorer) -> list[dict[str, Any]]:
    """Count the prompts of each state, those with a training image and controls apart."""
    found: list[dict[str, Any]] = []
    if shown.lead is None:
        return found
    for control in (False, True):
        states = [
            shown.states[row["prompt_id"], shown.lead]
            for row in shown.order
            if (row["group"] == "control") == control
            and shown.states[row["prompt_id"], shown.lead] != "unjudged"
        ]
        for state, words in COUNTED[control].items():
            count = states.count(state)
            if count or (states and state == "memorized" and not control):
                found.append({"state": state, "count": count, "n": len(states), "words": words})
    return found


def _scored(scores: Scores, found: Verdict) -> dict[str, Any] | None:
    """Return what the page says of the study's own detectors; None where none scored."""
    if not scores.detectors:
        return None
    rows = told(scores, found)
    judged = [one for one in found.judged.values() if one.counts]
    memorized = sum(one.memorized is True for one in judged)
    return {
        "rows": rows,
        "first": shown_first(rows, LISTED),
        "detectors": len(scores.detectors),
        "memorized": memorized,
        "others": len(judged) - memorized,
        "left_out": len(scores.places) - len(judged),
        "recommended": RECOMMENDED if RECOMMENDED in scores.detectors else None,
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    manifest = run.manifest
    study = {
        name: visible(_plain(value), 200)
        for name, value in manifest.options.items()
        if value not in (None, "", [], {})
    }
    samples = ", ".join(f"{count:,} {status}" for status, count in sorted(manifest.samples.items()))
    return [
        ("Status", manifest.status),
        ("Run, SHA-256 over its parts", run_digest(run)),
        *((f"Study: {name}", text) for name, text in sorted(study.items())),
        *((f"Model {name}", visible(text, 200)) for name, text in sorted(manifest.model.items())),
        ("Prompts and images, SHA-256", manifest.prompts),
        ("Device, precision", f"{manifest.device}, {manifest.dtype}"),
        ("Latent", f"{' × '.join(map(str, manifest.latent_shape))} = {manifest.d:,} coordinates"),
        ("Final level α, σ", ", ".join(number(part, 5) for part in manifest.final_level)),
        ("Samples", samples or "none"),
        *((f"Recipe {visible(key, 80)}", _recipe(row)) for key, row in sorted(run.recipes.items())),
        ("Started, finished (UTC)", f"{manifest.started}, {manifest.finished or 'not finished'}"),
        *((f"Package {name}", text) for name, text in sorted(manifest.packages.items())),
        ("Rows", ", ".join(f"{name} {rows:,}" for name, rows in sorted(manifest.rows.items()))),
    ]


def _recipe(row: Row) -> str:
    said = (
        f"guidance {row['guidance']:g}, {row['scheduler']}, {row['steps']} steps, eta "
        f"{row['eta']:g}, seed {row['seed']}, noise {row['noise']}"
    )
    return visible(said + (f", {row['intervention']}" if row["intervention"] else ""), 400)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def command(given: Mapping[str, Any], name: str = "study") -> str:
    """Write a command as passed as a command line, without the folder it went to."""
    line = ["mnemoscope", name]
    # What follows the model is given by its place as well.
    line += [str(given[part]) for part in ("model", "dataset") if part in given]
    for name, value in given.items():
        if name in ("model", "dataset", "out") or value is None or value is False:
            continue
        line.append(f"--{name.replace('_', '-')}")
        if value is not True:
            joined = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            line.append(joined)
    return visible(shlex.join([*line, "--out", "DIR"]))


def _digests(run: Run) -> list[tuple[str, str, int]]:
    return [
        (f"{table}/{unit}.parquet", part["sha256"], part["rows"])
        for unit, commit in sorted(run.commits().items())
        for table, part in sorted(commit.items())
    ]
