"""Fill pages from the source they describe, so that they cannot differ from it."""

import inspect
from collections.abc import Callable
from typing import Any

from mnemoscope.detectors import Detector, all_detectors
from mnemoscope.evidence import price
from mnemoscope.mitigations import all_mitigations
from mnemoscope.mitigations.base import Mitigation
from mnemoscope.runs.tables import DERIVED, TABLES
from mnemoscope.sampling.hooks import Intervention


def tables() -> str:
    """Return every table of a run folder with every column, as Markdown."""
    parts: list[str] = []
    for table in TABLES.values():
        derived = " Derived: can be rebuilt without a model." if table.name in DERIVED else ""
        parts.append(f"## {table.name}\n\nOne row is {table.row}.{derived}\n")
        parts.append("| column | type | unit | meaning |\n|---|---|---|---|")
        for column in table.columns:
            null = " May be null." if column.nullable else ""
            about = column.about.replace("|", "\\|")
            parts.append(
                f"| `{column.name}` | {column.type} | {column.unit} | "
                f"{about[0].upper()}{about[1:]}.{null} |"
            )
        parts.append("")
    return "\n".join(parts)


def detectors() -> str:
    """Return every detector with what it computes and costs, as Markdown."""
    rows = [
        "| detector | kind | what it computes | calls a seed | source |",
        "|---|---|---|---|---|",
    ]
    methods: dict[str, list[Detector]] = {}
    for detector in all_detectors():
        methods.setdefault(detector.source, []).append(detector)
    for source, variants in sorted(methods.items(), key=lambda item: item[1][0].name):
        for detector in variants:
            calls = price(detector.needs.pieces, calls=50, seeds=1).calls
            formula = detector.formula.replace("|", "\\|")
            rows.append(f"| `{detector.name}` | {detector.kind} | {formula} | {calls} | {source} |")
    return "\n".join(rows)


def mitigations() -> str:
    """Return every mitigation with its settings, as Markdown."""
    rows = [
        "| mitigation | what it does | strength | acts at | calls before the path | source "
        "| settings |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in all_mitigations().values():
        about, strength = (kind.__doc__ or "").split("\n")[0], told(kind)
        hooks = [name for name in HOOKS if getattr(kind, name) is not getattr(Intervention, name)]
        if kind.branches_asked:
            hooks.append(f"{len(kind.branches_asked)} branch more")
        rows.append(
            f"| `{kind.name}` | {about} | {strength} | {', '.join(hooks)} "
            f"| {kind().calls_before} | {kind.source} | `{kind()}` |"
        )
    return "\n".join(rows)


HOOKS = ("condition", "noise", "guide", "attention")


def told(kind: type[Mitigation]) -> str:
    """Return what the strength of a mitigation means."""
    lines = inspect.cleandoc(kind.__doc__ or "").split("\n")
    at = next(at for at, line in enumerate(lines) if line.strip().startswith("strength:"))
    parts = [lines[at].split(":", 1)[1].strip()]
    for line in lines[at + 1 :]:
        if not line.startswith("        "):
            break
        parts.append(line.strip())
    return " ".join(parts).replace("|", "\\|")


MARKS: dict[str, Callable[[], str]] = {
    "<!-- tables -->": tables,
    "<!-- detectors -->": detectors,
    "<!-- mitigations -->": mitigations,
}
"""What stands for what in a page."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page by what they stand for."""
    for mark, filled in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, filled())
    return markdown
