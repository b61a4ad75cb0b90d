"""A page is one HTML file that holds all it shows: words, figures, pictures, data, style, script.

Nothing is fetched and nothing of a run is executed: text goes through autoescape, data is JSON in a
script element of another type, and the content policy lets in only the one script and the one style
of this package, by their digests::

    default-src 'none'; img-src data:; script-src 'sha256-…'; style-src 'sha256-…'

The same run gives the same bytes.

Contents: `report`.
"""

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mnemoscope import mechanism
from mnemoscope.errors import RunError
from mnemoscope.mechanism import Finding
from mnemoscope.mechanism.base import Check, Panel
from mnemoscope.report import argument, figures
from mnemoscope.report.explorer import Explorer, explorer
from mnemoscope.report.severity import level_panel, null_panel, similarity_panel
from mnemoscope.report.text import interval, number, percent, visible
from mnemoscope.report.verdict import Row, Verdict, verdict
from mnemoscope.runs import Run, write_atomically

PARTS = resources.files("mnemoscope.report") / "templates"

SHOWN = 4
"""Prompts beside the verdict; more would push it off the first screen."""


@dataclass(frozen=True)
class Drawn:
    """A panel, drawn for the page."""

    title: str
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
    def checks(self) -> tuple[Check, ...]:
        """Return the checks of its findings, in order."""
        return tuple(check for section in self.sections for check in section.finding.checks)

    @property
    def said(self) -> str:
        """Count what holds, what does not and what cannot be told."""
        return _count(self.checks)


def report(run: Run, out: str | Path | None = None) -> Path:
    """Write the page of a run, and its figures for print beside it.

    Args:
        run: An open run.
        out: Folder of the report; `report` within the run's where not given.

    Returns:
        Path of the page. Figures are in `figures` beside it, as PNG and PDF.

    Raises:
        RunError: If a table is damaged or the folder cannot be written.

    Source: ours.
    """
    folder = Path(out) if out is not None else run.path / "report"
    rows: dict[str, list[dict[str, Any]]] = {
        name: run.table(name).to_pylist()
        for name in (
            "prompts", "references", "samples", "similarities", "severity", "null", "convergence",
            "statistics",
        )
    }  # fmt: skip
    measure = str(run.manifest.study["similarity"][0])
    findings = mechanism.analyse(mechanism.read(run))
    if not rows["statistics"]:
        rows["statistics"] = _as_rows(mechanism.columns(findings)["statistics"])
    found = verdict(
        rows["prompts"], rows["severity"], rows["null"], rows["convergence"], rows["statistics"],
        measure,
    )  # fmt: skip
    shown = explorer(
        rows["prompts"], rows["references"], rows["samples"], rows["similarities"],
        rows["severity"], found,
    )  # fmt: skip
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        sections = _sections(findings, folder / "figures")
        severity = _severity(rows, found, folder / "figures")
        page = _render(run, found, shown, sections, severity, rows["null"])
        write_atomically(folder / "index.html", page.encode())
    except OSError as error:
        raise RunError(
            f"cannot write the report into {str(folder)!r}: {error.strerror or error}; make room "
            "or choose another folder"
        ) from error
    return folder / "index.html"


def _as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _sections(findings: Mapping[str, Finding], folder: Path) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    for place, (name, finding) in enumerate(findings.items(), 1):
        stem = f"{place}-{name.replace('_', '-')}"
        sections[name] = Section(finding, stem, _drawn(finding.panels, stem, folder))
    return sections


def _drawn(panels: Sequence[Panel], stem: str, folder: Path) -> tuple[Drawn, ...]:
    if panels:
        figures.save(panels, folder / stem)
    return tuple(
        # The drawing is rebuilt from a list of elements and attributes, and serialised by us.
        Drawn(panel.title, panel.caption, Markup(figures.svg(panel, f"{stem}-{place}")))
        for place, panel in enumerate(panels, 1)
    )


def _severity(
    rows: Mapping[str, Sequence[Row]], found: Verdict, folder: Path
) -> dict[str, tuple[Drawn, ...]]:
    drawn: dict[str, tuple[Drawn, ...]] = {}
    for name, panel in (
        ("levels", level_panel(found)),
        ("similarities", similarity_panel(rows["prompts"], rows["similarities"], found)),
        ("null", null_panel(rows["null"], found)),
    ):
        drawn[name] = _drawn([panel] if panel else [], f"0-{name}", folder)
    return drawn


def _render(
    run: Run,
    found: Verdict,
    shown: Explorer,
    sections: Mapping[str, Section],
    severity: Mapping[str, Sequence[Drawn]],
    nulls: Sequence[Row],
) -> str:
    style, script = ((PARTS / name).read_text("utf-8") for name in ("style.css", "script.js"))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (PARTS / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "visible": visible}
    checks = [check for section in sections.values() for check in section.finding.checks]
    return environment.get_template("page.html.j2").render(
        # Both are files of this package; autoescape would break them.
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
        manifest=run.manifest,
        facts=_facts(run),
        command=_command(run.manifest.given),
        digests=_digests(run),
        verdict=found,
        nulls=nulls,
        explorer=shown,
        examples=_examples(shown, found),
        steps=[
            Step(claim, tuple(sections[name] for name in claim.analyses if name in sections))
            for claim in argument.CLAIMS
        ],
        sections=list(sections.values()),
        checks_said=_count(checks),
        severity=severity,
        glossary=argument.GLOSSARY,
        interval=interval,
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _count(checks: Sequence[Check]) -> str:
    holds = sum(check.holds is True for check in checks)
    fails = sum(check.holds is False for check in checks)
    unknown = len(checks) - holds - fails
    parts = [f"{holds} of {holds + fails} expectations hold"] if holds + fails else []
    if unknown:
        parts.append(f"{unknown} could not be told" if parts else "nothing could be told")
    return ", ".join(parts) or "no expectations"


def _examples(shown: Explorer, found: Verdict) -> list[dict[str, Any]]:
    """Choose the pictures beside the verdict: the most severe prompts and one that is not."""
    lead = shown.data["lead"]
    usable = [
        entry
        for entry in shown.data["prompts"]
        if lead is not None
        and entry["own"]
        and any(sample["image"] is not None for sample in entry["at"][lead]["samples"])
    ]
    high = [entry for entry in usable if (entry["at"][lead].get("share") or 0) >= 0.5]
    low = [e for e in usable if e not in high and e["image"] == "training image"]
    chosen = high[: SHOWN - 1] + low[::-1][:1]
    return [
        {
            "text": entry["text"],
            "own": shown.picture(entry["own"][0]),
            "samples": [
                shown.picture(sample["image"])
                for sample in entry["at"][lead]["samples"]
                if sample["image"] is not None
            ][:4],
            "share": entry["at"][lead].get("share"),
            "n": entry["at"][lead].get("n"),
            "memorized": entry in high,
        }
        for entry in chosen
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
    manifest = run.manifest
    study = {
        name: visible(_plain(value), 200)
        for name, value in manifest.study.items()
        if value not in (None, "", [], {})
    }
    samples = ", ".join(f"{count:,} {status}" for status, count in sorted(manifest.samples.items()))
    return [
        ("Status", manifest.status),
        *((f"Study: {name}", text) for name, text in sorted(study.items())),
        *((f"Model {name}", visible(text, 200)) for name, text in sorted(manifest.model.items())),
        ("Prompts and images, SHA-256", manifest.prompts),
        ("Device, precision", f"{manifest.device}, {manifest.dtype}"),
        ("Latent", f"{' × '.join(map(str, manifest.latent_shape))} = {manifest.d:,} coordinates"),
        ("Final level α, σ", ", ".join(number(part, 5) for part in manifest.final_level)),
        ("Samples", samples or "none"),
        ("Started, finished (UTC)", f"{manifest.started}, {manifest.finished or 'not finished'}"),
        *((f"Package {name}", text) for name, text in sorted(manifest.packages.items())),
        ("Rows", ", ".join(f"{name} {rows:,}" for name, rows in sorted(manifest.rows.items()))),
    ]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _command(given: Mapping[str, Any]) -> str:
    """Write the study as passed as a command line, without the folder it went to."""
    words = ["mnemoscope", "study"]
    if "model" in given:
        words.append(str(given["model"]))
    for name, value in given.items():
        if name in ("model", "out") or value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            joined = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            words.append(joined)
    return visible(shlex.join([*words, "--out", "DIR"]))


def _digests(run: Run) -> list[tuple[str, str, int]]:
    return [
        (f"{table}/{unit}.parquet", part["sha256"], part["rows"])
        for unit, commit in sorted(run.commits().items())
        for table, part in sorted(commit.items())
    ]
